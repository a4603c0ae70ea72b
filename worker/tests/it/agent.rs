//! The endpoint, spoken to as a master does.

use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use docklet_types::agent::{AgentReply, AgentRequest};
use docklet_types::spec::Wanted;
use docklet_worker::agent::Agent;
use docklet_worker_host::fake::Op;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::host::TestHost;
use crate::site::{eventually, node, node_id, vcluster};

struct Endpoint {
    host: TestHost,
    agent: Agent,
    directory: tempfile::TempDir,
}

async fn open() -> Endpoint {
    let directory = tempfile::tempdir().unwrap();
    let host = TestHost::default();
    host.put_running(&node(1, Wanted::Running, 1), &vcluster(Wanted::Running, 1)).await;
    let agent = Agent::listen(&directory.path().join("worker.sock"), Arc::new(host.clone())).unwrap();
    Endpoint { host, agent, directory }
}

fn exchange(socket: &Path, message: &[u8]) -> (AgentReply, Option<OwnedFd>) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&u32::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(message).unwrap();
    let mut bytes = [0; 4];
    let mut space = nix::cmsg_space!([i32; 1]);
    let (count, descriptor) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()).unwrap();
        let descriptor = received.cmsgs().unwrap().find_map(|c| match c {
            // SAFETY: the kernel just gave us this descriptor.
            ControlMessageOwned::ScmRights(fds) => Some(unsafe { OwnedFd::from_raw_fd(fds[0]) }),
            _ => None,
        });
        (received.bytes, descriptor)
    };
    stream.read_exact(&mut bytes[count..]).unwrap();
    let mut document = vec![0; u32::from_be_bytes(bytes) as usize];
    stream.read_exact(&mut document).unwrap();
    (serde_json::from_slice(&document).unwrap(), descriptor)
}

async fn ask(endpoint: &Endpoint, request: &AgentRequest) -> (AgentReply, Option<OwnedFd>) {
    let (socket, message) = (endpoint.directory.path().join("worker.sock"), serde_json::to_vec(request).unwrap());
    tokio::task::spawn_blocking(move || exchange(&socket, &message)).await.unwrap()
}

#[tokio::test]
async fn a_socket_comes_with_the_answer() {
    let endpoint = open().await;
    let terminal = AgentRequest::Terminal { node: node_id(1), session: "a-1".to_owned(), cols: 80, rows: 24 };
    // sshd greets; a terminal's first frame is one of control, and says that it is a new one.
    for (request, greeting) in
        [(AgentRequest::Dial { node: node_id(1), port: 22 }, "SSH-2.0-"), (terminal, "\u{1}\0\0\0")]
    {
        let (reply, descriptor) = ask(&endpoint, &request).await;
        assert_eq!(reply, AgentReply::Stream);
        let mut stream = std::fs::File::from(descriptor.unwrap());
        let mut heard = vec![0; greeting.len()];
        eventually("the node greets", || {
            // The descriptor does not block.
            let heard = stream.read_exact(&mut heard).is_ok();
            async move { heard }
        })
        .await;
        assert_eq!(heard, greeting.as_bytes());
    }
}

#[tokio::test]
async fn every_other_answer() {
    let endpoint = open().await;
    let (here, away) = (node_id(1), node_id(2));
    let terminal =
        |session: &str| AgentRequest::Terminal { node: here, session: session.to_owned(), cols: 80, rows: 24 };
    let exec = |argv: &[&str]| AgentRequest::Exec {
        node: here,
        argv: argv.iter().map(|s| (*s).to_owned()).collect(),
        stdin: "in".to_owned(),
        timeout_s: 5,
    };
    assert_eq!(ask(&endpoint, &AgentRequest::Dial { node: here, port: 81 }).await.0, AgentReply::Refused);
    assert_eq!(ask(&endpoint, &AgentRequest::Dial { node: away, port: 22 }).await.0, AgentReply::NotRunning);
    assert_eq!(
        ask(&endpoint, &AgentRequest::WaitPort { node: here, port: 22, timeout_ms: 10 }).await.0,
        AgentReply::Done
    );
    assert_eq!(
        ask(&endpoint, &AgentRequest::WaitPort { node: here, port: 81, timeout_ms: 10 }).await.0,
        AgentReply::TimedOut
    );
    assert_eq!(
        ask(&endpoint, &AgentRequest::Logs { node: here, lines: 3 }).await.0,
        AgentReply::Logs { text: "node1 boots\n".to_owned() }
    );
    assert!(
        matches!(ask(&endpoint, &exec(&["cat"])).await.0, AgentReply::Exec(o) if o.stdout == "in" && o.exit_code == 0)
    );
    for bad in [exec(&[]), terminal(""), terminal("../x"), terminal(&"a".repeat(41))] {
        assert!(matches!(ask(&endpoint, &bad).await.0, AgentReply::Failed(r) if r.code == "bad_request"), "{bad:?}");
    }
}

#[tokio::test]
async fn nonsense_is_answered_and_a_lie_about_the_length_is_cut_off() {
    let endpoint = open().await;
    let socket = endpoint.directory.path().join("worker.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let at = socket.clone();
    let (reply, _) = tokio::task::spawn_blocking(move || exchange(&at, b"{\"bogus\":1}")).await.unwrap();
    assert!(matches!(reply, AgentReply::Failed(r) if r.code == "bad_request"));
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
    let mut answer = Vec::new();
    tokio::task::spawn_blocking(move || stream.read_to_end(&mut answer).map(|_| answer)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_command_with_it() {
    let endpoint = open().await;
    endpoint.host.hang(Op::Exec);
    let request =
        AgentRequest::Exec { node: node_id(1), argv: vec!["true".to_owned()], stdin: String::new(), timeout_s: 3600 };
    let message = serde_json::to_vec(&request).unwrap();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut stream = UnixStream::connect(endpoint.directory.path().join("worker.sock")).unwrap();
        stream.write_all(&u32::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&message).unwrap();
        clients.push(stream);
    }
    eventually("all are served", || async { endpoint.host.stuck() == 50 }).await;
    drop(clients);
    eventually("no descriptor is left", || async { descriptors() <= before }).await;
}

mod others {
    //! The same, from another machine.

    use std::net::SocketAddr;

    use docklet_identity::authority::{Authority, Holder};
    use docklet_identity::message;
    use docklet_identity::tls::{Tls, server_name};
    use docklet_types::agent::MAX_MESSAGE;
    use docklet_types::join::worker_identity;
    use docklet_types::name::HostName;
    use docklet_types::paths::{IdentityFiles, Paths};
    use docklet_types::time::Micros;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    use super::*;

    struct Remote {
        endpoint: Endpoint,
        address: SocketAddr,
        host: HostName,
        authority: Authority,
    }

    impl Remote {
        async fn open() -> Self {
            let mut endpoint = open().await;
            let paths = Paths::new(endpoint.directory.path());
            let authority =
                Authority::make("test", &paths.worker_identity().authority, &paths.authority_key(), Micros::now())
                    .unwrap();
            let host: HostName = "h1".parse().unwrap();
            let holder = Holder::Worker { host: &host, identity: "worker-h1-1" };
            authority.equip(&holder, &paths.worker_identity(), Micros::now(), 3600).unwrap();
            let tls = Tls::new(paths.worker_identity());
            let address = endpoint.agent.listen_for_others("127.0.0.1:0".parse().unwrap(), tls).await.unwrap();
            Self { endpoint, address, host, authority }
        }

        /// The files of somebody with a certificate of the same authority.
        fn files(&self, holder: &Holder<'_>, name: &str) -> IdentityFiles {
            let files = Paths::new(self.endpoint.directory.path().join(name)).master_identity();
            self.authority.equip(holder, &files, Micros::now(), 3600).unwrap();
            files
        }

        async fn ask(
            &self,
            files: IdentityFiles,
            request: &AgentRequest,
        ) -> std::io::Result<(AgentReply, TlsStream<TcpStream>)> {
            let stream = TcpStream::connect(self.address).await?;
            let name = server_name(&worker_identity(&self.host))?;
            let client = Tls::new(files).client().unwrap();
            let mut stream = TlsConnector::from(client).connect(name, stream).await?;
            message::write(&mut stream, request, MAX_MESSAGE).await.map_err(std::io::Error::other)?;
            let reply = message::read(&mut stream, MAX_MESSAGE).await.map_err(std::io::Error::other)?;
            Ok((reply, stream))
        }
    }

    #[tokio::test]
    async fn a_master_of_another_host_gets_streams_and_answers() {
        let remote = Remote::open().await;
        remote.endpoint.host.fake.listen(node_id(1), 80);
        let master = remote.files(&Holder::Master, "master");
        let dial = AgentRequest::Dial { node: node_id(1), port: 80 };
        let (reply, stream) = remote.ask(master.clone(), &dial).await.unwrap();
        assert_eq!(reply, AgentReply::Stream);
        // What listens there echoes. That one side has said all does not keep the other from answering.
        let said = vec![7; 1 << 20];
        let (mut read, mut write) = tokio::io::split(stream);
        let writing = tokio::spawn(async move {
            write.write_all(&said).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut answer = Vec::new();
        read.read_to_end(&mut answer).await.unwrap();
        writing.await.unwrap();
        assert_eq!(answer.len(), 1 << 20);
        let logs = AgentRequest::Logs { node: node_id(1), lines: 5 };
        assert!(matches!(remote.ask(master, &logs).await.unwrap().0, AgentReply::Logs { .. }));
    }

    #[tokio::test]
    async fn only_masters_are_served() {
        let remote = Remote::open().await;
        let logs = AgentRequest::Logs { node: node_id(1), lines: 5 };
        // Another host's worker has a certificate of the same authority.
        let h2 = "h2".parse().unwrap();
        let worker = remote.files(&Holder::Worker { host: &h2, identity: "worker-h2-1" }, "h2");
        assert!(remote.ask(worker, &logs).await.is_err());
        let names = ["docklet-masters".to_owned()];
        let alike = remote.files(&Holder::Etcd { reached_at: &names }, "alike");
        assert!(remote.ask(alike, &logs).await.is_err());
        // A master of another cluster.
        let paths = Paths::new(remote.endpoint.directory.path().join("stranger"));
        let authority =
            Authority::make("other", &paths.master_identity().authority, &paths.authority_key(), Micros::now())
                .unwrap();
        authority.equip(&Holder::Master, &paths.master_identity(), Micros::now(), 3600).unwrap();
        assert!(remote.ask(paths.master_identity(), &logs).await.is_err());
        // And one without any: no byte of an answer.
        let mut plain = TcpStream::connect(remote.address).await.unwrap();
        plain.write_all(b"\0\0\0\x02{}").await.unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer).await;
        assert!(!answer.windows(4).any(|w| w == b"fail"), "{answer:?}");
    }

    #[tokio::test]
    async fn a_master_does_not_take_one_host_for_another() {
        let mut remote = Remote::open().await;
        remote.host = "h2".parse().unwrap();
        let master = remote.files(&Holder::Master, "master");
        let logs = AgentRequest::Logs { node: node_id(1), lines: 5 };
        assert!(remote.ask(master, &logs).await.is_err());
    }
}
