//! The agent's line to init, shared by everything that needs it.

use std::os::fd::OwnedFd;

use tidegate_model::control::{FromInit, ToInit};
use tokio::sync::mpsc;
use tracing::{error, warn};

use crate::control::AsyncChannel;

/// Sends to init, in order and without waiting.
#[derive(Clone)]
pub(super) struct InitLink(mpsc::UnboundedSender<(ToInit, Vec<OwnedFd>)>);

impl InitLink {
    /// Starts the task that owns the channel. What init says goes to the receiver; it closes when init is gone.
    pub(super) fn start(channel: AsyncChannel) -> (Self, mpsc::UnboundedReceiver<FromInit>) {
        let (outgoing, queue) = mpsc::unbounded_channel();
        let (sender, incoming) = mpsc::unbounded_channel();
        tokio::task::spawn_local(run_link(channel, queue, sender));
        (Self(outgoing), incoming)
    }

    /// Queues a message.
    pub(super) fn send(&self, message: ToInit, descriptors: Vec<OwnedFd>) {
        // The task ends with init, and the agent with both.
        let _ = self.0.send((message, descriptors));
    }
}

async fn run_link(
    mut channel: AsyncChannel,
    mut queue: mpsc::UnboundedReceiver<(ToInit, Vec<OwnedFd>)>,
    incoming: mpsc::UnboundedSender<FromInit>,
) {
    loop {
        tokio::select! {
            message = queue.recv() => {
                let Some((message, descriptors)) = message else { return };
                if let Err(error) = channel.push(&message, descriptors) {
                    error!("cannot tell init {message:?}: {error}");
                }
            }
            message = channel.next::<FromInit>() => match message {
                Ok(Some((message, _))) => {
                    if incoming.send(message).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    warn!("init: {error}");
                    return;
                }
            },
        }
    }
}
