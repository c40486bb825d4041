//! Dialling endpoints.

use std::io;

use tidegate_model::BackendProtocol;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, TlsStream};

use crate::{
    balance::EndpointState,
    certificates::UpstreamTls,
    error::{Error, ErrorKind, Retry},
    net::stream::Stream,
    timeouts,
};

/// Connects to an endpoint, with TLS if given. Cancel-safe: a connection under way is closed.
///
/// # Errors
/// Always with leave to try another endpoint: no byte of a request has been sent.
pub async fn connect(
    endpoint: &EndpointState,
    tls: Option<&UpstreamTls>,
    protocol: BackendProtocol,
) -> Result<Stream, Error> {
    let tcp = match timeout(timeouts::UPSTREAM_CONNECT, TcpStream::connect(endpoint.addr)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(Error::upstream(ErrorKind::Connect).because(error).retry(Retry::Always)),
        Err(_) => return Err(Error::upstream(ErrorKind::ConnectTimeout).retry(Retry::Always)),
    };
    // Heads and small bodies leave in one write: Nagle's algorithm could only delay the next.
    tcp.set_nodelay(true).map_err(|error| Error::upstream(ErrorKind::Connect).because(error).retry(Retry::Always))?;
    let Some(tls) = tls else { return Ok(Stream::Tcp(tcp)) };
    let connector = TlsConnector::from(tls.config.clone());
    let handshake = timeout(timeouts::UPSTREAM_HANDSHAKE, connector.connect(tls.server_name.clone(), tcp));
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Error::upstream(ErrorKind::Tls).because(error).retry(Retry::Always)),
        Err(_) => return Err(Error::upstream(ErrorKind::ConnectTimeout).retry(Retry::Always)),
    };
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    if protocol == BackendProtocol::Http2 && !is_h2 {
        let error = io::Error::new(io::ErrorKind::Unsupported, "endpoint did not choose h2 by ALPN");
        return Err(Error::upstream(ErrorKind::Http2).because(error).retry(Retry::Always));
    }
    Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
}
