//! `docklet-worker run`: from the pid file to the signal that ends it.

use docklet_daemon::config::Loaded;
use docklet_daemon::{Program, exit};
use docklet_identity::tls::Tls;
use docklet_store::patient::PatientEtcd;
use docklet_worker::Worker;
use docklet_worker::agent::Agent;
use docklet_worker::{machine, membership};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::{NAME, Outcome, chain, failed, linux, runtime, settings};

/// Each running node takes a descriptor, each open connection of a user two while it is handed over.
const DESCRIPTORS: u64 = 65_536;
const BROKE_OFF: &str = "the worker's loop broke off; see the log";

pub(super) fn run(program: &Program, loaded: &Loaded) -> Outcome {
    let mut ready = program.enter(loaded.config.log_level).map_err(|e| (exit::FAILED, chain(&e)))?;
    // Nothing of ours may depend on where it was started, or keep that from being unmounted.
    std::env::set_current_dir("/").map_err(failed)?;
    raise_descriptor_limit();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %loaded.file.display(), "{NAME} starts");
    let outcome = runtime()?.block_on(async {
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let host = Arc::new(linux(loaded, program.paths.clone()));
        let store = Arc::new(PatientEtcd::new(loaded.config.etcd.clone(), program.paths.worker_identity()));
        let mut worker = Worker::start(settings(loaded, program.paths.clone()), host.clone(), store);
        tokio::select! {
            started = worker.wait_started() => if !started {
                return Err((exit::FAILED, BROKE_OFF.to_owned()));
            },
            _ = term.recv() => return Ok(String::new()),
            _ = interrupt.recv() => return Ok(String::new()),
        }
        let mut agent = Agent::listen(&program.paths.worker_socket(), host).map_err(failed)?;
        let mut tasks = JoinSet::new();
        if let Some(address) = membership::endpoint(&loaded.config) {
            let identity = program.paths.worker_identity();
            agent.listen_for_others(address, Tls::new(identity.clone())).await.map_err(failed)?;
            let name = machine::host_name(loaded.config.host_name.as_ref());
            tasks.spawn(membership::keep(loaded.config.clone(), name, identity));
        }
        ready.ready();
        tracing::info!(connected = worker.is_connected(), "ready");
        tokio::select! {
            () = worker.ended() => return Err((exit::FAILED, BROKE_OFF.to_owned())),
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        ready.stopping();
        tracing::info!("{NAME} ends; nodes run on");
        drop(agent);
        worker.stop().await;
        Ok(String::new())
    });
    if let Err((_, text)) = &outcome {
        tracing::error!("{text}");
    }
    outcome
}

fn raise_descriptor_limit() {
    use nix::libc;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct lives across both calls, which read or write nothing else.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < DESCRIPTORS {
            limit.rlim_cur = DESCRIPTORS.min(limit.rlim_max);
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
                tracing::warn!("the limit of open files cannot be raised");
            }
        }
    }
}
