//! The port that other hosts join at and renew their certificates at.
//!
//! TLS 1.3; who joins has no certificate yet. One request per connection, bounded in number, size and time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use docklet_identity::certificate;
use docklet_identity::message::{self, MessageError};
use docklet_identity::tls::{Tls, TlsError};
use docklet_types::join::{MAX_MESSAGE, MasterReply};
use docklet_types::report::Reason;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::Admission;
use crate::http::problem::chain;

/// Connections served at once.
const AT_ONCE: usize = 32;
/// A connection's whole life.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Tls(TlsError),
    #[error("the handshake failed")]
    Handshake(#[source] io::Error),
    #[error(transparent)]
    Message(MessageError),
    #[error("it took longer than {} s", PATIENCE.as_secs())]
    TooLong,
}

/// Takes the port.
///
/// # Errors
/// It is taken, or the address is not this machine's.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, tls: Tls, admission: Arc<Admission>) {
    let tls = Arc::new(tls);
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (tls, admission) = (Arc::clone(&tls), Arc::clone(&admission));
                tokio::spawn(async move {
                    let served = tokio::time::timeout(PATIENCE, answer(stream, &tls, &admission)).await;
                    if let Err(error) = served.unwrap_or(Err(ServeError::TooLong)) {
                        tracing::debug!(%peer, error = chain(&error), "a host's request broke off");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot take a connection of a host");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, tls: &Tls, admission: &Admission) -> Result<(), ServeError> {
    let acceptor = TlsAcceptor::from(tls.server().map_err(ServeError::Tls)?);
    let mut stream = acceptor.accept(stream).await.map_err(ServeError::Handshake)?;
    let shown = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|own| certificate::names(own))
        .unwrap_or_default();
    let reply = match message::read(&mut stream, MAX_MESSAGE).await {
        Ok(request) => admission.answer(request, &shown).await,
        Err(error @ (MessageError::TooLong { .. } | MessageError::Unreadable(_))) => {
            MasterReply::Refused(Reason::new("bad_request", format!("{}.", chain(&error))))
        }
        Err(error) => return Err(ServeError::Message(error)),
    };
    message::write(&mut stream, &reply, MAX_MESSAGE).await.map_err(ServeError::Message)?;
    stream.shutdown().await.map_err(|error| ServeError::Message(error.into()))
}
