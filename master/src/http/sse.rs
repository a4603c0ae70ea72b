//! Server-sent events: one task per stream, which ends when the client leaves or its session ends.

use actix_web::HttpResponse;
use actix_web::web::Bytes;
use futures::StreamExt as _;
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::auth::sessions::Ended;

/// A comment this often keeps proxies in between from closing a quiet stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Events that wait for a slow reader; after that the writer waits, too, and sends the newest state then.
const QUEUE: usize = 16;

/// Where a stream's task puts its events.
#[derive(Clone)]
pub struct Sink(mpsc::Sender<Bytes>);

impl Sink {
    /// `false` when nobody reads any more.
    pub async fn send(&self, text: String) -> bool {
        self.0.send(Bytes::from(text)).await.is_ok()
    }
}

/// Answers with what `work` sends, until it returns, the reader leaves, or the session ends.
pub fn stream<F>(ended: Ended, work: impl FnOnce(Sink) -> F) -> HttpResponse
where
    F: Future<Output = ()> + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    let work = work(Sink(sender.clone()));
    actix_web::rt::spawn(async move {
        let heartbeat = async {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                if sender.send(Bytes::from_static(b": still here\n\n")).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = ended.wait() => {}
            () = sender.closed() => {}
            () = heartbeat => {}
        }
    });
    HttpResponse::Ok()
        .content_type("text/event-stream; charset=utf-8")
        .insert_header(("cache-control", "no-store"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(ReceiverStream::new(receiver).map(Ok::<_, Infallible>))
}
