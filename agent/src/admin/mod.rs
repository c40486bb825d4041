//! What the agent shows of itself: an HTTP server for scrapers and probes, a Unix socket for the command line.
//!
//! Both only read the agent's state; nothing here changes what is served. Callers are not trusted: connections, sizes and
//! times are bounded, so that a slow or hostile one costs the agent nothing but its own connection.

mod debug;
mod exposition;
mod http;
pub mod protocol;
pub mod report;
mod socket;

use std::rc::Rc;

use anyhow::Context;
use tokio::net::TcpListener;

use crate::state::State;

/// Binds the admin address and the CLI socket, then serves both for ever on the current `LocalSet`.
///
/// # Errors
/// When one of them cannot be bound, with the option that names it.
pub async fn serve(state: Rc<State>) -> anyhow::Result<()> {
    let address = state.options.admin;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on admin address {address}; choose another with --admin"))?;
    let path = state.options.socket.clone();
    let socket = socket::bind(&path)
        .with_context(|| format!("cannot make the socket {}; choose another with --socket", path.display()))?;
    tracing::info!(%address, socket = %path.display(), "admin server listens");
    tokio::join!(http::run_server(listener, state.clone()), socket::run_server(socket, state));
    Ok(())
}

#[cfg(test)]
mod tests;
