//! The client of the worker's socket against a scripted worker.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use docklet_master::proxy::agent::{AccessError, Agents, NodeAccess, ShellName, WindowSize};
use docklet_master::proxy::routes::RouteTarget;
use docklet_types::agent::{AgentReply, AgentRequest, ExecOutput};
use docklet_types::id::NodeId;
use docklet_types::report::Reason;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::{descriptors, eventually};

struct Worker {
    client: Agents,
    target: RouteTarget,
    _directory: tempfile::TempDir,
}

/// A worker that answers each request with what `answer` makes of it.
async fn worker<F, Fut>(answer: F) -> Worker
where
    F: Fn(AgentRequest, UnixStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("worker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = stream.read_u32().await.unwrap();
            let mut body = vec![0; length as usize];
            stream.read_exact(&mut body).await.unwrap();
            tokio::spawn(answer(serde_json::from_slice(&body).unwrap(), stream));
        }
    });
    let target =
        RouteTarget { node: NodeId::from_uuid(uuid::Uuid::now_v7()), host: "host1".parse().unwrap(), agent: None };
    Worker { client: Agents::of_this_machine(path), target, _directory: directory }
}

fn encoded(reply: &AgentReply) -> Vec<u8> {
    let body = serde_json::to_vec(reply).unwrap();
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

/// Sends a reply with a descriptor on its first byte; the rest in dribs and drabs.
async fn send_with(mut stream: UnixStream, reply: &AgentReply, fd: impl AsFd) {
    let bytes = encoded(reply);
    stream.writable().await.unwrap();
    let fds = [fd.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    assert_eq!(sendmsg(&stream, &[IoSlice::new(&bytes[..1])], &mut ancillary, SendFlags::empty()).unwrap(), 1);
    for byte in &bytes[1..] {
        stream.write_all(&[*byte]).await.unwrap();
    }
}

#[tokio::test]
async fn a_dialled_socket_is_handed_over() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let worker = worker(move |request, stream| async move {
        assert!(matches!(request, AgentRequest::Dial { port: 8888, .. }));
        send_with(stream, &AgentReply::Stream, TcpStream::connect(at).await.unwrap()).await;
    })
    .await;
    let mut stream = worker.client.dial(&worker.target, 8888).await.unwrap();
    let (mut other, _) = listener.accept().await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    other.read_exact(&mut got).await.unwrap();
    other.write_all(b"pong").await.unwrap();
    drop(other);
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!((&got, back.as_slice()), (b"ping", b"pong".as_slice()));
}

#[tokio::test]
async fn a_shell_is_a_unix_stream() {
    let worker = worker(|request, stream| async move {
        let AgentRequest::Terminal { session, cols: 80, rows: 24, .. } = request else { panic!("{request:?}") };
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        send_with(stream, &AgentReply::Stream, ours).await;
        theirs.write_all(session.as_bytes()).await.unwrap();
    })
    .await;
    let shell = ShellName::parse("main").unwrap();
    let mut stream = worker.client.terminal(&worker.target, &shell, WindowSize { cols: 80, rows: 24 }).await.unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "main");
}

#[tokio::test]
async fn every_reply_has_its_error() {
    let reply = std::sync::Arc::new(parking_lot::Mutex::new(AgentReply::Done));
    let shared = std::sync::Arc::clone(&reply);
    let worker = worker(move |_, mut stream| {
        let reply = encoded(&shared.lock());
        async move { stream.write_all(&reply).await.unwrap() }
    })
    .await;
    let is =
        |error: &AccessError, what: &str| assert!(format!("{error:?}").starts_with(what), "{error:?} is not {what}");
    for (answer, what) in [
        (AgentReply::NotRunning, "NotRunning"),
        (AgentReply::Refused, "Refused"),
        (AgentReply::TimedOut, "TimedOut"),
        (AgentReply::Failed(Reason::new("x", "y")), "Failed"),
        (AgentReply::Done, "Protocol"),
        // A stream was said and none came.
        (AgentReply::Stream, "Protocol"),
    ] {
        *reply.lock() = answer;
        is(&worker.client.dial(&worker.target, 1).await.err().unwrap(), what);
    }
    *reply.lock() = AgentReply::Done;
    worker.client.wait_port(&worker.target, 1, Duration::from_secs(1)).await.unwrap();
    *reply.lock() = AgentReply::Logs { text: "booted".to_owned() };
    assert_eq!(worker.client.logs(&worker.target, 10).await.unwrap(), "booted");
    let output = ExecOutput { exit_code: 3, stdout: "x".repeat(1 << 20), stderr: String::new(), truncated: true };
    *reply.lock() = AgentReply::Exec(output.clone());
    assert_eq!(
        worker
            .client
            .exec(&worker.target, vec!["true".to_owned()], String::new(), Duration::from_secs(1))
            .await
            .unwrap(),
        output
    );
    is(&worker.client.logs(&worker.target, 10).await.err().unwrap(), "Protocol");
}

#[tokio::test]
async fn a_worker_that_is_not_there_or_breaks_off_is_down() {
    let worker = worker(|_, mut stream| async move { stream.write_all(&[0, 0]).await.unwrap() }).await;
    assert!(matches!(worker.client.dial(&worker.target, 1).await.err().unwrap(), AccessError::WorkerDown(_)));
    let nobody = Agents::of_this_machine(worker._directory.path().join("nobody.sock"));
    assert!(matches!(nobody.dial(&worker.target, 1).await.err().unwrap(), AccessError::WorkerDown(_)));
}

#[tokio::test]
async fn a_reply_that_is_too_large_or_no_json_is_not_believed() {
    let large = worker(|_, mut stream| async move { stream.write_all(&u32::MAX.to_be_bytes()).await.unwrap() }).await;
    assert!(matches!(large.client.dial(&large.target, 1).await.err().unwrap(), AccessError::Protocol));
    let nonsense =
        worker(|_, mut stream| async move { stream.write_all(&[0, 0, 0, 2, b'{', b'{']).await.unwrap() }).await;
    assert!(matches!(nonsense.client.dial(&nonsense.target, 1).await.err().unwrap(), AccessError::Protocol));
}

#[tokio::test]
async fn a_descriptor_that_nobody_asked_for_is_closed() {
    let worker = worker(|_, stream| async move {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        send_with(stream, &AgentReply::Done, ours).await;
    })
    .await;
    worker.client.wait_port(&worker.target, 1, Duration::from_secs(1)).await.unwrap();
    let before = descriptors();
    for _ in 0..50 {
        worker.client.wait_port(&worker.target, 1, Duration::from_secs(1)).await.unwrap();
    }
    eventually(Duration::from_secs(2), "descriptors are back", || descriptors() <= before + 1).await;
}
