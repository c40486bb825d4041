//! Where to connect to, from which source address, and with which TLS.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpSocket,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    certificate::Authority,
    client::{Failure, PATIENCE},
};

/// A byte stream to the gateway.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A frontend, and how to reach it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address and port.
    pub addr: SocketAddr,
    /// Source address; `None` is the kernel's choice.
    pub source: Option<IpAddr>,
    /// Server name and settings for TLS.
    pub tls: Option<(String, Arc<ClientConfig>)>,
    /// Whether to speak HTTP/2 (by ALPN with TLS, else with prior knowledge).
    pub is_http2: bool,
    /// Longest wait for the handshake.
    pub connect_limit: Duration,
    /// Longest wait for a whole answer.
    pub answer_limit: Duration,
}

impl Target {
    /// A frontend over clear text and HTTP/1.1.
    pub fn http(addr: SocketAddr) -> Self {
        Self { addr, source: None, tls: None, is_http2: false, connect_limit: PATIENCE, answer_limit: PATIENCE }
    }

    /// A frontend over TLS with this SNI.
    pub fn https(addr: SocketAddr, server_name: &str, authority: &Authority) -> Self {
        let config = authority.client_config(&[b"http/1.1"]);
        Self { tls: Some((server_name.to_owned(), config)), ..Self::http(addr) }
    }

    /// The same over HTTP/2.
    #[must_use]
    pub fn http2(mut self) -> Self {
        self.is_http2 = true;
        if let Some((_, config)) = &mut self.tls {
            let mut offered = ClientConfig::clone(config);
            offered.alpn_protocols = vec![b"h2".to_vec()];
            *config = Arc::new(offered);
        }
        self
    }

    /// The same from a given source address.
    #[must_use]
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// The same with another limit for the handshake.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.connect_limit = limit;
        self
    }

    /// Opens a TCP connection.
    ///
    /// # Errors
    /// How the attempt failed.
    pub async fn connect_tcp(&self) -> Result<tokio::net::TcpStream, Failure> {
        let attempt = async {
            let socket = if self.addr.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
            if let Some(source) = self.source {
                socket.bind(SocketAddr::new(source, 0))?;
            }
            let stream = socket.connect(self.addr).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        timeout(self.connect_limit, attempt)
            .await
            .map_err(|_| Failure::Silent)?
            .map_err(|error: std::io::Error| Failure::from_connect(&error))
    }

    /// Opens a connection with TLS when the target has it. Returns the peer's certificate too.
    ///
    /// # Errors
    /// How the attempt failed.
    pub async fn connect(&self) -> Result<(Box<dyn Stream>, Option<Vec<u8>>), Failure> {
        let tcp = self.connect_tcp().await?;
        let Some((name, config)) = &self.tls else { return Ok((Box::new(tcp), None)) };
        let name = ServerName::try_from(name.clone()).map_err(|error| Failure::Local(error.to_string()))?;
        let handshake = TlsConnector::from(config.clone()).connect(name, tcp);
        let stream = timeout(self.connect_limit, handshake)
            .await
            .map_err(|_| Failure::Stalled)?
            .map_err(|error| Failure::from_io(&error))?;
        let certificate =
            stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec());
        Ok((Box::new(stream), certificate))
    }
}
