//! A connection that several requests go over.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{task::JoinHandle, time::timeout};

use crate::client::{Failure, Reply, Request, Target};

/// An open connection to a frontend.
#[derive(Debug)]
pub struct Session {
    sender: Sender,
    driver: JoinHandle<()>,
    target: Target,
    certificate: Option<Vec<u8>>,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Session {
    /// Opens a connection.
    ///
    /// # Errors
    /// How the attempt failed.
    pub async fn connect(target: &Target) -> Result<Self, Failure> {
        let (stream, certificate) = target.connect().await?;
        let io = TokioIo::new(stream);
        let (sender, driver) = if target.is_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            (Sender::Http2(sender), tokio::spawn(async { drop(connection.await) }))
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            (Sender::Http1(sender), tokio::spawn(async { drop(connection.with_upgrades().await) }))
        };
        Ok(Self { sender, driver, target: target.clone(), certificate })
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// The way in which no answer came. The connection is of no further use then.
    pub async fn send(&mut self, request: Request) -> Result<Reply, Failure> {
        let limit = self.target.answer_limit;
        timeout(limit, self.exchange(request)).await.unwrap_or(Err(Failure::Stalled))
    }

    /// Whether the peer has closed the connection, or said that it will: no request was lost by that.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed() || !sender.is_ready(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// DER of the certificate that the peer showed.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.certificate.as_deref()
    }

    async fn exchange(&mut self, request: Request) -> Result<Reply, Failure> {
        let request = self.build(request)?;
        let response = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Reply {
            status: head.status.as_u16(),
            version: head.version,
            headers: head.headers,
            body: body.to_bytes(),
            trailers,
        })
    }

    fn build(&self, request: Request) -> Result<http::Request<Full<Bytes>>, Failure> {
        let scheme = if self.target.tls.is_some() { "https" } else { "http" };
        let builder = http::Request::builder().method(request.method);
        let mut builder = if self.target.is_http2 {
            builder.uri(format!("{scheme}://{}{}", request.host, request.path))
        } else {
            builder.uri(&request.path).header(http::header::HOST, &request.host)
        };
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        builder.body(Full::new(request.body)).map_err(|error| Failure::Local(error.to_string()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closes the socket now, not when the driver notices that its sender has gone.
        self.driver.abort();
    }
}
