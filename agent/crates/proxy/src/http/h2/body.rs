//! Bodies between hyper's trait and the proxy's own.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::head;
use crate::{
    error::{Error, ErrorKind, Side},
    http::{
        body::{Body, Piece, Source},
        head::Headers,
    },
};

/// A body that arrives over HTTP/2.
#[derive(Debug)]
pub struct IncomingBody {
    incoming: Incoming,
    side: Side,
    data: Bytes,
    trailers: Option<Headers>,
    length: Option<u64>,
    has_ended: bool,
}

impl IncomingBody {
    /// Takes what hyper received from that side.
    pub fn new(incoming: Incoming, side: Side) -> Self {
        let length = incoming.size_hint().exact();
        Self { incoming, side, data: Bytes::new(), trailers: None, length, has_ended: false }
    }

    /// As a body; one that has ended already is empty.
    pub fn into_body(self) -> Body {
        if self.incoming.is_end_stream() { Body::Empty } else { Body::Stream(Box::new(self)) }
    }
}

impl Source for IncomingBody {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        loop {
            if !self.data.is_empty() {
                return Poll::Ready(Ok(Piece::Data));
            }
            if self.has_ended {
                return Poll::Ready(Ok(Piece::End));
            }
            match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
                None => self.has_ended = true,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.data = data,
                    Err(frame) => {
                        self.trailers = frame.trailers_ref().map(head::trailers_from);
                        self.has_ended = true;
                    }
                },
                Some(Err(error)) => {
                    let kind = if self.side == Side::Downstream { ErrorKind::Closed } else { ErrorKind::Http2 };
                    let failure =
                        if self.side == Side::Downstream { Error::downstream(kind) } else { Error::upstream(kind) };
                    return Poll::Ready(Err(failure.because(io::Error::other(error))));
                }
            }
        }
    }

    fn data(&self) -> &[u8] {
        &self.data
    }

    fn consume(&mut self, count: usize) {
        self.data.advance(count.min(self.data.len()));
    }

    fn take_data(&mut self) -> Bytes {
        std::mem::take(&mut self.data)
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take()
    }

    fn length(&self) -> Option<u64> {
        self.length
    }
}

/// A body that leaves over HTTP/2.
#[derive(Debug, Default)]
pub struct OutgoingBody {
    body: Body,
    has_ended: bool,
}

impl OutgoingBody {
    /// Sends that body.
    pub fn new(body: Body) -> Self {
        Self { has_ended: body.is_empty(), body }
    }
}

impl http_body::Body for OutgoingBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        match ready!(self.body.poll_piece(cx))? {
            Piece::Data => Poll::Ready(Some(Ok(Frame::data(self.body.take_data())))),
            Piece::End => {
                self.has_ended = true;
                Poll::Ready(self.body.take_trailers().map(|trailers| Ok(trailers_frame(&trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Trailer fields as a frame.
pub fn trailers_frame(trailers: &Headers) -> Frame<Bytes> {
    let mut map = http::HeaderMap::new();
    head::copy_fields(trailers, &mut map, |_| false);
    Frame::trailers(map)
}
