//! Control channels: messages of `tidegate_model::control` over `SOCK_SEQPACKET`, with file descriptors.
//!
//! [`Channel`] never waits: what cannot be sent yet is queued, in order. [`AsyncChannel`] is the same for the agent's
//! runtime. No message is understood here.

mod queue;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys::watch;

pub use queue::{Channel, ChannelError, Incoming};

/// Makes a pair of connected sockets.
///
/// # Errors
/// As `socketpair(2)`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A [`Channel`] on the agent's runtime.
pub struct AsyncChannel {
    /// A duplicate to wait for; `Channel` owns the descriptor that is read and written.
    ready: AsyncFd<OwnedFd>,
    channel: Channel,
}

impl AsyncChannel {
    /// Puts a socket of [`pair`] on the runtime of the caller.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated or registered.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let ready = watch(socket.try_clone()?)?;
        Ok(Self { ready, channel: Channel::new(socket) })
    }

    /// Queues a message and sends as much as fits now; the rest goes out while [`Self::next`] is awaited.
    ///
    /// # Errors
    /// When the message cannot be encoded. A closed channel shows in [`Self::next`] only, after what came before.
    pub fn push<T: Serialize>(&mut self, message: &T, descriptors: Vec<OwnedFd>) -> Result<(), ChannelError> {
        self.channel.push(message, descriptors)?;
        // An error here comes again from `next`.
        let _ = self.channel.flush();
        Ok(())
    }

    /// The next message; `None` when the other side is gone. Cancel-safe.
    ///
    /// # Errors
    /// [`ChannelError`]; after a message that cannot be decoded the channel goes on.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
        loop {
            let is_flushed = self.channel.flush()?;
            match self.channel.receive()? {
                Incoming::Message(message, descriptors) => return Ok(Some((message, descriptors))),
                Incoming::Closed => return Ok(None),
                Incoming::Nothing => {}
            }
            let interest = if is_flushed { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let mut guard = self.ready.ready(interest).await?;
            // Both calls are repeated at the top; they find out anew whether the socket is ready.
            guard.clear_ready();
            if let Incoming::Message(message, descriptors) = self.channel.receive()? {
                return Ok(Some((message, descriptors)));
            }
        }
    }
}

impl AsFd for AsyncChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
