//! Disks of the fake on their way: real streams, with what a test put on the disk in them.

use async_trait::async_trait;
use docklet_types::agent::Part;
use docklet_types::agent::disk::Control;
use docklet_types::id::NodeId;
use docklet_types::plan::NodePlan;
use docklet_types::report::Reason;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use tokio::net::UnixStream;

use super::{FakeHost, FakeNode, Op};
use crate::reason::{chain, failed};
use crate::{HostError, Moves, Result, courier};

/// A node's move, as one host sees it.
#[derive(Debug, Clone, Default)]
pub struct FakeMove {
    pub number: u64,
    /// Parts that have come.
    pub taken: BTreeSet<&'static str>,
    /// A stream is under way.
    busy: bool,
}

const fn name(part: Part) -> &'static str {
    match part {
        Part::First => "first",
        Part::Last => "last",
    }
}

fn pair() -> Result<(UnixStream, OwnedFd)> {
    let make = || -> io::Result<(UnixStream, OwnedFd)> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs.into()))
    };
    make().map_err(|e| failed("move_failed", "The node's disk could not be sent", &e))
}

impl FakeHost {
    fn enter_move(&self, id: NodeId, number: u64, part: Option<Part>) -> Result<bool> {
        let mut state = self.state();
        let mut moving = state.nodes.get_mut(&id).and_then(|n| n.moving.as_mut());
        // Of whatever number: the real host lets one stream of a node through before it looks at its notes.
        if moving.as_ref().is_some_and(|m| m.busy) {
            return Err(HostError::new("move_busy", "Another stream of this node's disk is under way."));
        }
        let Some(moving) = moving.take_if(|m| m.number == number) else {
            return Err(HostError::new("move_not_begun", "This host has not been told of that move of the node."));
        };
        let taken = part.is_some_and(|part| moving.taken.contains(name(part)));
        moving.busy = !taken;
        Ok(taken)
    }

    fn leave_move(&self, id: NodeId, number: u64, taken: Option<(Part, Vec<u8>)>) {
        let mut state = self.state();
        let Some(node) = state.nodes.get_mut(&id) else { return };
        let Some(moving) = node.moving.as_mut().filter(|m| m.number == number) else { return };
        moving.busy = false;
        if let Some((part, content)) = taken {
            moving.taken.insert(name(part));
            if part == Part::Last {
                node.disk = true;
                node.content = content;
            }
        }
    }
}

#[async_trait]
impl Moves for FakeHost {
    async fn begin_move(&self, node: &NodePlan, number: u64) -> Result<()> {
        self.enter(Op::BeginMove, Some(node.id)).await?;
        let mut state = self.state();
        let entry = state.nodes.entry(node.id).or_insert_with(FakeNode::new);
        if entry.moving.as_ref().is_none_or(|m| m.number != number) {
            entry.moving = Some(FakeMove { number, ..FakeMove::default() });
        }
        Ok(())
    }

    async fn end_move(&self, id: NodeId) -> Result<()> {
        self.enter(Op::EndMove, Some(id)).await?;
        let mut state = self.state();
        if let Some(node) = state.nodes.get_mut(&id) {
            node.moving = None;
        }
        state.forget_empty(id);
        Ok(())
    }

    async fn send_disk(&self, id: NodeId, number: u64, part: Part, _based: bool) -> Result<OwnedFd> {
        self.enter(Op::SendDisk, Some(id)).await?;
        self.enter_move(id, number, None)?;
        let (running, content) = {
            let state = self.state();
            let node = state.nodes.get(&id);
            (node.is_some_and(|n| n.init.is_some()), node.filter(|n| n.disk).map(|n| n.content.clone()))
        };
        if part == Part::Last && running {
            self.leave_move(id, number, None);
            return Err(HostError::new(
                "still_running",
                "The node runs; the last copy of its disk is taken after its end.",
            ));
        }
        let (mut ours, theirs) = pair()?;
        let host = self.clone();
        tokio::spawn(async move {
            let sent = courier::pack(&mut content.unwrap_or_default().as_slice(), &mut ours).await;
            if let Ok(bytes) = sent {
                let _ = courier::close(&mut ours, &Control::Complete { bytes }).await;
                courier::until_closed(&mut ours).await;
            }
            host.leave_move(id, number, None);
        });
        Ok(theirs)
    }

    async fn take_disk(&self, id: NodeId, number: u64, part: Part) -> Result<Option<OwnedFd>> {
        self.enter(Op::TakeDisk, Some(id)).await?;
        if self.enter_move(id, number, Some(part))? {
            return Ok(None);
        }
        let (mut ours, theirs) = pair()?;
        let host = self.clone();
        tokio::spawn(async move {
            let mut content = Vec::new();
            let last = match courier::unpack(&mut ours, &mut content, 1 << 30, || Ok(())).await {
                Ok(_) => {
                    host.leave_move(id, number, Some((part, content)));
                    Control::Taken
                }
                Err(error) => {
                    host.leave_move(id, number, None);
                    Control::Failed(Reason::new("move_failed", chain(&error)))
                }
            };
            let _ = courier::close(&mut ours, &last).await;
            courier::until_closed(&mut ours).await;
        });
        Ok(Some(theirs))
    }
}
