//! Connections that are no longer HTTP (WebSocket), or never were: bytes go both ways until both sides have closed theirs.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWrite, time::Instant};

use crate::{
    http::h1::write::Sink,
    net::{
        buffer::{Buffer, LARGE_BUFFER},
        stream::Stream,
        timer::Timer,
    },
    timeouts,
};

/// Both streams with what was read of them before.
pub struct Ends<'a> {
    /// The client's stream.
    pub client: &'a RefCell<Stream>,
    /// Bytes read from it.
    pub from_client: &'a mut Buffer,
    /// The endpoint's stream.
    pub endpoint: &'a mut Stream,
    /// Bytes read from it.
    pub from_endpoint: &'a mut Buffer,
}

/// What went through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// Bytes from the client.
    pub from_client: u64,
    /// Bytes from the endpoint.
    pub from_endpoint: u64,
    /// Why it ended, unless both sides closed.
    pub reason: Option<&'static str>,
}

/// Moves bytes until both directions have ended, one has failed or nothing has moved for long. `count` is told how many more
/// have gone on, from the client and from the endpoint.
pub async fn run(ends: Ends<'_>, timer: &mut Timer, count: &mut dyn FnMut(u64, u64)) -> Moved {
    let Ends { mut client, from_client, endpoint, from_endpoint } = ends;
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let mut seen = None::<(u64, u64)>;
    let reason = poll_fn(|cx| {
        let mut endpoint = &mut *endpoint;
        let upward = up.poll(&mut client, &mut endpoint, from_client, cx);
        let downward = down.poll(&mut endpoint, &mut client, from_endpoint, cx);
        let (up_before, down_before) = seen.unwrap_or_default();
        if (up.moved, down.moved) != (up_before, down_before) {
            count(up.moved - up_before, down.moved - down_before);
        }
        match (upward, downward) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(None),
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(Some("tunnel_closed")),
            _ => {}
        }
        if seen != Some((up.moved, down.moved)) {
            seen = Some((up.moved, down.moved));
            timer.set(Some(Instant::now() + timeouts::TUNNEL_IDLE));
        }
        ready!(timer.poll_expired(cx));
        Poll::Ready(Some("tunnel_idle"))
    })
    .await;
    Moved { from_client: up.moved, from_endpoint: down.moved, reason }
}

#[derive(Default)]
struct Direction {
    moved: u64,
    has_ended: bool,
    is_shut: bool,
}

impl Direction {
    fn poll(
        &mut self,
        from: &mut impl Sink,
        to: &mut impl Sink,
        buffer: &mut Buffer,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            while !buffer.is_empty() {
                let count = ready!(to.with(|stream| Pin::new(stream).poll_write(cx, buffer.window())))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                buffer.consume(count);
                self.moved += count as u64;
            }
            if self.has_ended {
                if !self.is_shut {
                    ready!(to.with(|stream| Pin::new(stream).poll_shutdown(cx)))?;
                    self.is_shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            match from.with(|stream| buffer.poll_fill(stream, LARGE_BUFFER, cx)) {
                Poll::Ready(filled) => self.has_ended = filled? == 0,
                Poll::Pending => {
                    ready!(to.with(|stream| Pin::new(stream).poll_flush(cx)))?;
                    return Poll::Pending;
                }
            }
        }
    }
}
