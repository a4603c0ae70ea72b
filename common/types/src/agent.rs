//! What a master asks of a worker directly: byte streams into nodes, commands, logs. Everything else goes through the store.
//!
//! On one host this runs over a unix socket (`Paths::worker_socket`), one request per connection: a u32 big-endian
//! length and the JSON of [`AgentRequest`]; back come a length and the JSON of [`AgentReply`]. Where the reply is
//! [`AgentReply::Stream`], the connected socket itself is attached to the reply's first byte (`SCM_RIGHTS`).

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::report::Reason;

/// The largest request or reply in bytes.
pub const MAX_MESSAGE: u32 = 8 << 20;
/// How much of a command's standard output and of its standard error is kept, in bytes each.
pub const MAX_EXEC_OUTPUT: usize = 1 << 20;
/// How much of a terminal's output is kept for a client that comes back, in bytes.
pub const TERMINAL_REPLAY: usize = 256 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AgentRequest {
    /// A TCP connection to a port of the node, made inside the node's network namespace to 127.0.0.1.
    Dial { node: NodeId, port: u16 },
    /// Waits until something listens on the port inside the node; `timeout_ms` at most 60,000.
    WaitPort { node: NodeId, port: u16, timeout_ms: u32 },
    /// Attaches to the shell of that session, starting it when there is none. `session` is `[a-z0-9-]{1,40}`.
    Terminal { node: NodeId, session: String, cols: u16, rows: u16 },
    /// Runs a command to its end as the node's root. Not a shell: `argv` goes to exec as it is.
    Exec { node: NodeId, argv: Vec<String>, stdin: String, timeout_s: u32 },
    /// The end of the node's console log.
    Logs { node: NodeId, lines: u32 },
    /// A copy of the node's disk as a stream (see [`disk`]), for the move of that number. `based`: the other host has the
    /// first copy, so that only what changed since is sent.
    SendDisk { node: NodeId, number: u64, part: Part, based: bool },
    /// Takes such a stream. The answer is [`AgentReply::Done`] where that part has been taken before.
    TakeDisk { node: NodeId, number: u64, part: Part },
}

/// Which copy of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// While the node runs.
    First,
    /// After it has stopped. Once all of it has been taken it is the node's disk there.
    Last,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentReply {
    /// A descriptor comes with this message.
    Stream,
    Done,
    Exec(ExecOutput),
    Logs {
        text: String,
    },
    /// The node is not on this host or does not run.
    NotRunning,
    /// Nothing listens there.
    Refused,
    TimedOut,
    Failed(Reason),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutput {
    /// 128 + n where signal n ended it, as shells say it.
    pub exit_code: i32,
    /// Bytes that are not UTF-8 are replaced.
    pub stdout: String,
    pub stderr: String,
    /// Some output was cut at [`MAX_EXEC_OUTPUT`].
    pub truncated: bool,
}

/// A disk on its way from one host to another: frames as in [`frame`], data first, then one control frame. The receiver
/// answers with one control frame of its own. A stream that ends before is broken, and nothing of it counts.
pub mod disk {
    use serde::{Deserialize, Serialize};

    use crate::report::Reason;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Control {
        /// Sender to receiver: that was all, so many bytes of data. None at all: there is no disk yet.
        Complete { bytes: u64 },
        /// Receiver to sender: all of it is on disk.
        Taken,
        /// Either way, last: it came to nothing.
        Failed(Reason),
    }
}

/// Frames on a terminal's stream: one byte of kind, a u32 big-endian length, the payload.
pub mod frame {
    use serde::{Deserialize, Serialize};

    /// Bytes for, or of, the pty.
    pub const DATA: u8 = 0;
    /// JSON of [`Control`].
    pub const CONTROL: u8 = 1;
    /// Kind and length.
    pub const HEADER: usize = 5;
    /// The largest payload in bytes.
    pub const MAX_PAYLOAD: usize = 64 << 10;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Control {
        /// Client to shell.
        Resize { cols: u16, rows: u16 },
        /// Client to shell: end it.
        Close,
        /// Shell to client, before anything else: whether the shell was already there, and then the replay follows as data.
        Attached { resumed: bool },
        /// Shell to client, last: it has ended.
        Exit { code: i32 },
        /// Shell to client, last: another client took over.
        TakenOver,
    }

    /// The five bytes before a payload.
    #[must_use]
    pub fn header(kind: u8, len: u32) -> [u8; HEADER] {
        let l = len.to_be_bytes();
        [kind, l[0], l[1], l[2], l[3]]
    }
}
