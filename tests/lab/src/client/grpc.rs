//! gRPC framing: messages with a five-byte prefix over HTTP/2, the status in the trailers.

use bytes::{BufMut, Bytes, BytesMut};

use crate::client::{Failure, Reply, Request, Target, send};

/// What a call returned.
#[derive(Clone, Debug)]
pub struct Answer {
    /// `grpc-status` of the trailers, or of the head when there are none ("trailers only").
    pub status: Option<i32>,
    /// Whether the status came in trailers.
    pub is_in_trailers: bool,
    /// Messages.
    pub messages: Vec<Bytes>,
    /// The HTTP answer.
    pub reply: Reply,
}

/// Puts a message into its frame.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("messages of tests are small"));
    framed.put_slice(message);
    framed.freeze()
}

/// Takes messages out of their frames; `None` when a frame is incomplete.
pub fn unframe(mut body: Bytes) -> Option<Vec<Bytes>> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let prefix = body.get(..5)?;
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if body.len() < 5 + length {
            return None;
        }
        messages.push(body.slice(5..5 + length));
        body = body.slice(5 + length..);
    }
    Some(messages)
}

/// Makes a call with one message; further header fields as given.
///
/// # Errors
/// The way in which no answer came.
pub async fn call(
    target: &Target,
    host: &str,
    method: &str,
    message: &[u8],
    headers: &[(&str, &str)],
) -> Result<Answer, Failure> {
    let mut request =
        Request::post(host, method, frame(message)).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let reply = send(&target.clone().http2(), request).await?;
    let find =
        |headers: &http::HeaderMap| headers.get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
    let in_trailers = reply.trailers.as_ref().and_then(find);
    let is_grpc = reply.header("content-type").is_some_and(|value| value.starts_with("application/grpc"));
    let messages = match is_grpc {
        true => unframe(reply.body.clone()).ok_or_else(|| Failure::Protocol("incomplete gRPC frame".into()))?,
        // A plain HTTP answer, which gRPC clients translate (404 is UNIMPLEMENTED).
        false => Vec::new(),
    };
    Ok(Answer {
        status: in_trailers.or_else(|| find(&reply.headers)),
        is_in_trailers: in_trailers.is_some(),
        messages,
        reply,
    })
}
