//! A backend that ends TLS itself, below HTTP: it sends back what it gets, behind the server name that it was asked for.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::listen;
use crate::{certificate::Leaf, island::Island};

/// A server for TLS connections.
#[derive(Debug)]
pub struct TlsEcho {
    /// Where it listens.
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl TlsEcho {
    /// Starts the server on an island, with a certificate.
    ///
    /// # Errors
    /// When the address cannot be bound, or the key is none.
    pub fn start(island: &Island, addr: SocketAddr, leaf: &Leaf) -> anyhow::Result<Self> {
        let key = PrivateKeyDer::try_from(leaf.key_der.clone()).map_err(|error| anyhow::anyhow!("key: {error}"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(leaf.der.clone())], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = island.run(listen(addr)).with_context(|| format!("TLS backend on {addr}"))?;
        let task = island.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move { drop(serve(acceptor, stream).await) });
            }
        });
        Ok(Self { addr, task })
    }
}

impl Drop for TlsEcho {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let asked = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            count => stream.write_all(&[asked.as_bytes(), b":", &buffer[..count]].concat()).await?,
        }
    }
}
