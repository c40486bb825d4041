//! A WebSocket client.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::client::{Failure, Stream, Target};

/// An open WebSocket.
pub struct WebSocket(WebSocketStream<Box<dyn Stream>>);

impl WebSocket {
    /// Opens a WebSocket: the handshake of RFC 6455 over HTTP/1.1.
    ///
    /// # Errors
    /// How the attempt failed; [`Failure::Protocol`] when the upgrade was not granted.
    pub async fn open(target: &Target, host: &str, path: &str) -> Result<Self, Failure> {
        let (stream, _) = target.connect().await?;
        let request =
            format!("ws://{host}{path}").into_client_request().map_err(|error| Failure::Local(error.to_string()))?;
        let opened = tokio::time::timeout(target.answer_limit, client_async(request, stream)).await;
        let (socket, _) =
            opened.map_err(|_| Failure::Stalled)?.map_err(|error| Failure::Protocol(error.to_string()))?;
        Ok(Self(socket))
    }

    /// Sends a text and returns the next text that comes.
    ///
    /// # Errors
    /// When the connection ends first.
    pub async fn echo(&mut self, text: &str) -> Result<String, Failure> {
        self.0.send(Message::text(text)).await.map_err(|error| Failure::Protocol(error.to_string()))?;
        let next = tokio::time::timeout(super::PATIENCE, self.0.next()).await.map_err(|_| Failure::Stalled)?;
        match next {
            Some(Ok(Message::Text(text))) => Ok(text.to_string()),
            Some(Ok(other)) => Err(Failure::Protocol(format!("unexpected message {other:?}"))),
            Some(Err(error)) => Err(Failure::Protocol(error.to_string())),
            None => Err(Failure::Closed),
        }
    }

    /// Closes with the closing handshake.
    ///
    /// # Errors
    /// When the connection ended before.
    pub async fn close(mut self) -> Result<(), Failure> {
        self.0.close(None).await.map_err(|error| Failure::Protocol(error.to_string()))
    }
}
