//! Workers of other hosts, over TLS: both sides show a certificate of the cluster's authority. After a reply that says
//! so, the connection is the stream.

use std::io;
use std::net::SocketAddr;

use docklet_identity::message::{self, MessageError};
use docklet_identity::tls::{Tls, server_name};
use docklet_types::agent::{AgentReply, AgentRequest, MAX_MESSAGE};
use docklet_types::join::worker_identity;
use docklet_types::name::HostName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{AccessError, NodeStream, down};

/// See the module.
pub(super) struct RemoteAgent {
    tls: Tls,
}

impl RemoteAgent {
    pub(super) fn new(tls: Tls) -> Self {
        Self { tls }
    }

    pub(super) async fn ask(
        &self,
        host: &HostName,
        address: SocketAddr,
        request: &AgentRequest,
    ) -> Result<(AgentReply, Option<NodeStream>), AccessError> {
        let mut stream = self.connect(address, &worker_identity(host)).await.map_err(down)?;
        message::write(&mut stream, request, MAX_MESSAGE).await.map_err(broken)?;
        let reply: AgentReply = message::read(&mut stream, MAX_MESSAGE).await.map_err(broken)?;
        let stream = (reply == AgentReply::Stream).then(|| Box::new(stream) as NodeStream);
        Ok((reply, stream))
    }

    async fn connect(&self, address: SocketAddr, identity: &str) -> io::Result<TlsStream<TcpStream>> {
        let config = self.tls.client().map_err(io::Error::other)?;
        let stream = TcpStream::connect(address).await?;
        // Small frames of WebSockets must not wait for each other.
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(server_name(identity)?, stream).await
    }
}

fn broken(error: MessageError) -> AccessError {
    match error {
        MessageError::Io(error) => down(error),
        MessageError::TooLong { .. } | MessageError::Unreadable(_) => AccessError::Protocol,
    }
}
