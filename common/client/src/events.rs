//! The server's event stream (SSE): a line protocol in which `data:` lines up to an empty line make one event.

use docklet_types::view::VclusterEvent;
use futures::stream::{self, Stream, StreamExt};
use reqwest::Method;
use std::collections::VecDeque;
use std::time::Duration;

use crate::error::Result;
use crate::http::{Call, Client};

/// The largest line, in bytes. A server that sends more does not speak this protocol.
const MAX_LINE: usize = 8 << 20;

impl Client {
    /// Changes of the caller's vclusters as they happen, until the server ends the stream.
    ///
    /// # Errors
    /// The server refuses or cannot be reached. An error inside the stream is its last item.
    pub async fn events(&self) -> Result<impl Stream<Item = Result<VclusterEvent>> + use<>> {
        let response = self.stream(Call::new(Method::GET, &["events"])).await?;
        let client = self.clone();
        let bytes = Box::pin(response.bytes_stream());
        let state = (client, bytes, Parser::default(), VecDeque::new());
        Ok(stream::unfold(Some(state), |state| async move {
            let (client, mut bytes, mut parser, mut ready) = state?;
            loop {
                if let Some(event) = ready.pop_front() {
                    return Some((Ok(event), Some((client, bytes, parser, ready))));
                }
                match bytes.next().await? {
                    Ok(chunk) => ready.extend(parser.feed(&chunk)),
                    Err(e) => return Some((Err(client.failure(e, Duration::ZERO)), None)),
                }
            }
        }))
    }
}

/// Cuts a byte stream into events, whatever the chunks.
#[derive(Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    data: String,
}

impl Parser {
    /// The events that these bytes complete. What is not a vcluster event (comments, other kinds) is passed over.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<VclusterEvent> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() < MAX_LINE {
                    self.line.push(byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                events.extend(serde_json::from_str(&std::mem::take(&mut self.data)).ok());
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
        events
    }
}
