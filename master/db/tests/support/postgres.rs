//! A PostgreSQL of a test's own: made in a temporary directory, reached by a socket in it, gone with the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The server refuses to run as root; Debian's package makes this user.
const USER: &str = "postgres";

/// See the module.
pub struct Postgres {
    server: Child,
    programs: PathBuf,
    dir: TempDir,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A fast shutdown: a killed server leaves shared memory behind.
        let _ = Command::new("kill").args(["-INT", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
    }
}

/// Debian keeps versions side by side.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("Debian's package postgresql is installed");
    let newest = versions.map(|entry| entry.unwrap().path()).max().expect("a version of PostgreSQL");
    newest.join("bin")
}

/// The user's and its group's number.
fn user() -> (u32, u32) {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.split(':').next() == Some(USER)).expect("the user postgres");
    let fields: Vec<&str> = line.split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}

impl Postgres {
    pub async fn start() -> Self {
        let programs = programs();
        let dir = tempfile::Builder::new().prefix("dkpg").tempdir_in("/tmp").unwrap();
        // It ends with the test, however that ends.
        let mut as_user = vec!["--pdeathsig".to_owned(), "INT".to_owned()];
        if Command::new("id").arg("-u").output().unwrap().stdout == b"0\n" {
            let (uid, gid) = user();
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
            as_user.extend([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
        }
        let command = |program: &str| {
            let mut command = Command::new("setpriv");
            command.args(&as_user).arg(programs.join(program)).current_dir(dir.path()).stdin(Stdio::null());
            command
        };
        let data = dir.path().join("data");
        let made = command("initdb")
            .args(["--username=docklet", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "--pgdata"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let server = command("postgres")
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(dir.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let postgres = Self { server, programs, dir };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !postgres.client("pg_isready").output().unwrap().status.success() {
            let log = || std::fs::read_to_string(postgres.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "PostgreSQL does not start:\n{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        postgres
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("--host").arg(self.socket()).args(["--username", "docklet"]);
        command
    }

    fn socket(&self) -> &Path {
        self.dir.path()
    }

    /// An empty database of that name, as DATABASE_URL names it.
    pub fn database(&self, name: &str) -> String {
        let made = self.client("createdb").arg(name).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        format!("postgres://docklet@localhost/{name}?host={}", self.socket().display())
    }
}
