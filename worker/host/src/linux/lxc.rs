//! A safe face for the few calls of liblxc that Docklet makes. Only the helper uses it: liblxc forks, and must not be
//! called in a process with threads.

use std::ffi::{CStr, CString, NulError, c_int, c_void};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr::NonNull;

use super::sys;

#[derive(Debug, thiserror::Error)]
pub enum LxcError {
    #[error("liblxc could not make a handle of container {0}")]
    New(String),
    #[error("liblxc refused {key} = {value:?}")]
    Config { key: String, value: String },
    #[error("liblxc lacks the call {0}")]
    Missing(&'static str),
    #[error("liblxc could not start container {0}")]
    Start(String),
    #[error("liblxc could not enter container {0}")]
    Attach(String),
    #[error("a text has a zero byte")]
    Nul(#[source] NulError),
    #[error("the helper's oom_score_adj could not be set")]
    Score(#[source] std::io::Error),
    #[error("a path could not be used")]
    Path(#[source] std::io::Error),
}

/// A handle of one container of one directory of containers.
pub struct Container {
    raw: NonNull<lxc_sys::lxc_container>,
    name: String,
}

/// What runs inside the container.
pub struct Command {
    pub argv: Vec<CString>,
    /// `KEY=value`; nothing else is in the environment.
    pub env: Vec<CString>,
    pub stdin: RawFd,
    pub stdout: RawFd,
    pub stderr: RawFd,
    /// Make the terminal on standard input the controlling one.
    pub terminal: bool,
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Whether the kernel spares this process when memory runs out, as its unit asks for the worker. What runs in a node is
/// worth what it is anywhere: set back by the host's root, it cannot be lowered by anybody in the node.
fn is_spared() -> bool {
    std::fs::read_to_string(OOM_SCORE).is_ok_and(|score| score.starts_with('-'))
}

fn c(text: &str) -> Result<CString, LxcError> {
    CString::new(text).map_err(LxcError::Nul)
}

impl Container {
    pub fn new(name: &str, lxcpath: &Path) -> Result<Self, LxcError> {
        let c_name = c(name)?;
        let c_lxcpath = sys::c_path(lxcpath).map_err(LxcError::Path)?;
        // SAFETY: both strings live through the call; liblxc copies them.
        let raw = unsafe { lxc_sys::lxc_container_new(c_name.as_ptr(), c_lxcpath.as_ptr()) };
        NonNull::new(raw).map(|raw| Self { raw, name: name.to_owned() }).ok_or_else(|| LxcError::New(name.to_owned()))
    }

    fn methods(&self) -> &lxc_sys::lxc_container {
        // SAFETY: the pointer came from lxc_container_new and is released only on drop.
        unsafe { self.raw.as_ref() }
    }

    pub fn set(&self, key: &str, value: &str) -> Result<(), LxcError> {
        let call = self.methods().set_config_item.ok_or(LxcError::Missing("set_config_item"))?;
        let (c_key, c_value) = (c(key)?, c(value)?);
        // SAFETY: the handle is live and both strings outlive the call.
        if unsafe { call(self.raw.as_ptr(), c_key.as_ptr(), c_value.as_ptr()) } {
            Ok(())
        } else {
            Err(LxcError::Config { key: key.to_owned(), value: value.to_owned() })
        }
    }

    /// Starts init under a monitor process of its own, which outlives this one.
    pub fn start(&self) -> Result<(), LxcError> {
        if is_spared() {
            self.set("lxc.proc.oom_score_adj", "0")?;
        }
        let methods = self.methods();
        let daemonize = methods.want_daemonize.ok_or(LxcError::Missing("want_daemonize"))?;
        let close_fds = methods.want_close_all_fds.ok_or(LxcError::Missing("want_close_all_fds"))?;
        let start = methods.start.ok_or(LxcError::Missing("start"))?;
        // SAFETY: the handle is live; a null argv means lxc.init.cmd.
        let started = unsafe {
            daemonize(self.raw.as_ptr(), true)
                && close_fds(self.raw.as_ptr(), true)
                && start(self.raw.as_ptr(), 0, std::ptr::null())
        };
        if started { Ok(()) } else { Err(LxcError::Start(self.name.clone())) }
    }

    /// Init's process id as the host sees it, while it runs.
    pub fn init_pid(&self) -> Option<i32> {
        let call = self.methods().init_pid?;
        // SAFETY: the handle is live.
        let pid = unsafe { call(self.raw.as_ptr()) };
        (pid > 0).then_some(pid)
    }

    /// The container's own devpts, to make terminals in.
    pub fn devpts(&self) -> Option<OwnedFd> {
        let call = self.methods().devpts_fd?;
        // SAFETY: the handle is live; a descriptor that comes back is ours.
        let fd = unsafe { call(self.raw.as_ptr()) };
        // SAFETY: as above.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Runs the command as the container's root, in all its namespaces and cgroups, and returns its process id.
    pub fn attach(&self, command: &Command) -> Result<i32, LxcError> {
        let call = self.methods().attach.ok_or(LxcError::Missing("attach"))?;
        if is_spared() {
            std::fs::write(OOM_SCORE, "0").map_err(LxcError::Score)?;
        }
        let cwd = c"/";
        let payload = Payload::of(command);
        let mut options = lxc_sys::lxc_attach_options_t {
            attach_flags: lxc_sys::LXC_ATTACH_DEFAULT as c_int,
            namespaces: -1,
            personality: !0,
            initial_cwd: cwd.as_ptr().cast_mut(),
            uid: u32::MAX,
            gid: u32::MAX,
            env_policy: lxc_sys::lxc_attach_env_policy_t_LXC_ATTACH_CLEAR_ENV,
            extra_env_vars: std::ptr::null_mut(),
            extra_keep_env: std::ptr::null_mut(),
            stdin_fd: command.stdin,
            stdout_fd: command.stdout,
            stderr_fd: command.stderr,
            log_fd: -1,
            lsm_label: std::ptr::null_mut(),
            groups: lxc_sys::lxc_groups_t { size: 0, list: std::ptr::null_mut() },
        };
        let mut pid: libc::pid_t = -1;
        // SAFETY: the payload and options live until attach returns; the child works on its own copy of the memory.
        let result = unsafe {
            call(self.raw.as_ptr(), Some(enter), (&raw const payload).cast_mut().cast(), &raw mut options, &raw mut pid)
        };
        if result == 0 && pid > 0 { Ok(pid) } else { Err(LxcError::Attach(self.name.clone())) }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // SAFETY: the handle is live and not used again.
        unsafe { lxc_sys::lxc_container_put(self.raw.as_ptr()) };
    }
}

/// The command as C arrays, made before the fork so that the child allocates nothing.
struct Payload {
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    terminal: bool,
}

impl Payload {
    fn of(command: &Command) -> Self {
        let array = |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        Self { argv: array(&command.argv), env: array(&command.env), terminal: command.terminal }
    }
}

unsafe extern "C" {
    static mut environ: *const *const libc::c_char;
}

/// Runs in the child, inside the container, and becomes the command.
unsafe extern "C" fn enter(payload: *mut c_void) -> c_int {
    // SAFETY: attach() passes a Payload that the child has its own copy of; every pointer in it is to a C string.
    unsafe {
        let payload = &*payload.cast::<Payload>();
        libc::setsid();
        if payload.terminal {
            libc::ioctl(0, libc::TIOCSCTTY, 0);
        }
        // Ends with the helper or holder, so that nobody's abandoned command runs on.
        libc::prctl(libc::PR_SET_PDEATHSIG, if payload.terminal { libc::SIGHUP } else { libc::SIGKILL });
        // A parent outside of the container's processes is number 0; where it ended before, another one is by now.
        if libc::getppid() != 0 {
            libc::_exit(128 + libc::SIGKILL);
        }
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        // A Rust process ignores it, which its children would inherit.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        if libc::chdir(c"/root".as_ptr()) != 0 {
            libc::chdir(c"/".as_ptr());
        }
        libc::umask(0o022);
        // execvp looks the command up in the PATH of the environment in force, so it must be the node's.
        environ = payload.env.as_ptr();
        libc::execvp(payload.argv[0], payload.argv.as_ptr());
        let errno = *libc::__errno_location();
        let (code, text): (c_int, &CStr) = match errno {
            libc::ENOENT => (127, c": command not found\n"),
            libc::EACCES => (126, c": permission denied\n"),
            _ => (126, c": cannot be executed\n"),
        };
        let name = CStr::from_ptr(payload.argv[0]);
        libc::write(2, name.as_ptr().cast(), name.count_bytes());
        libc::write(2, text.as_ptr().cast(), text.count_bytes());
        libc::_exit(code)
    }
}
