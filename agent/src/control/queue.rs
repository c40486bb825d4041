//! One end of a control channel that never waits.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};
use serde::{Serialize, de::DeserializeOwned};
use tidegate_model::codec::{CodecError, Decoder, MAX_PACKET, encode};

use crate::sys::{MAX_PACKET_FDS, receive_packet};

/// Most descriptors that are kept for a message under way: a peer cannot make us hold more.
const MAX_PENDING_FDS: usize = MAX_PACKET_FDS;

/// Why a channel is of no more use, or one message is lost.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// A message cannot be encoded or decoded.
    #[error("control message: {0}")]
    Codec(#[from] CodecError),
    /// More descriptors than one packet can carry.
    #[error("{0} file descriptors with one message, at most {MAX_PACKET_FDS} are possible")]
    Descriptors(usize),
}

/// What [`Channel::receive`] found.
pub enum Incoming<T> {
    /// A whole message with its descriptors.
    Message(T, Vec<OwnedFd>),
    /// Nothing (whole) yet.
    Nothing,
    /// The other side is gone.
    Closed,
}

/// One end of a control channel.
pub struct Channel {
    socket: OwnedFd,
    decoder: Decoder,
    descriptors: Vec<OwnedFd>,
    unsent: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    buffer: Vec<u8>,
}

impl Channel {
    /// Takes a socket of [`super::pair`].
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            decoder: Decoder::default(),
            descriptors: Vec::new(),
            unsent: VecDeque::new(),
            buffer: vec![0; MAX_PACKET],
        }
    }

    /// Queues a message.
    ///
    /// # Errors
    /// When it cannot be encoded, or carries too many descriptors.
    pub fn push<T: Serialize>(&mut self, message: &T, descriptors: Vec<OwnedFd>) -> Result<(), ChannelError> {
        if descriptors.len() > MAX_PACKET_FDS {
            return Err(ChannelError::Descriptors(descriptors.len()));
        }
        let mut descriptors = Some(descriptors);
        for packet in encode(message)? {
            self.unsent.push_back((packet, descriptors.take().unwrap_or_default()));
        }
        Ok(())
    }

    /// Sends what fits; returns whether everything is sent.
    ///
    /// # Errors
    /// As `sendmsg(2)`, less the full buffer.
    pub fn flush(&mut self) -> Result<bool, ChannelError> {
        while let Some((packet, descriptors)) = self.unsent.front() {
            let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&numbers)];
            let control: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(packet)], control, flags, None) {
                Ok(_) => {
                    self.unsent.pop_front();
                }
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(true)
    }

    /// Whether something waits to be sent.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads until a message is whole or nothing more is there.
    ///
    /// # Errors
    /// The socket's, or a message that cannot be decoded; the latter leaves the channel usable.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Incoming<T>, ChannelError> {
        loop {
            let (length, descriptors) = match receive_packet(self.socket.as_fd(), &mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Incoming::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Incoming::Closed),
                Err(error) => return Err(error.into()),
            };
            if length == 0 {
                return Ok(Incoming::Closed);
            }
            self.descriptors.extend(descriptors);
            self.descriptors.truncate(MAX_PENDING_FDS);
            match self.decoder.push_packet(&self.buffer[..length]) {
                Ok(Some(message)) => return Ok(Incoming::Message(message, std::mem::take(&mut self.descriptors))),
                Ok(None) => {}
                Err(error) => {
                    self.descriptors.clear();
                    return Err(error.into());
                }
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek, Write},
    };

    use super::*;

    #[test]
    fn a_message_larger_than_the_socket_buffer_arrives_whole_with_its_descriptor() {
        let (one, other) = super::super::pair().unwrap();
        let (mut sender, mut receiver) = (Channel::new(one), Channel::new(other));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kept").unwrap();
        file.rewind().unwrap();
        let body = vec![7u8; 3_000_000];
        sender.push(&body, vec![file.into()]).unwrap();
        let (received, mut descriptors) = loop {
            sender.flush().unwrap();
            if let Incoming::Message(message, descriptors) = receiver.receive::<Vec<u8>>().unwrap() {
                break (message, descriptors);
            }
        };
        assert_eq!(received, body);
        let mut text = String::new();
        File::from(descriptors.pop().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept");
        assert!(descriptors.is_empty());
    }

    #[test]
    fn tells_an_empty_channel_from_a_closed_one() {
        let (one, other) = super::super::pair().unwrap();
        let mut receiver = Channel::new(other);
        assert!(matches!(receiver.receive::<u8>().unwrap(), Incoming::Nothing));
        drop(one);
        assert!(matches!(receiver.receive::<u8>().unwrap(), Incoming::Closed));
    }
}
