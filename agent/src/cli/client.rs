//! The command line's side of the agent's socket.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use crate::admin::protocol::{Answer, Ask};

/// Time for an answer: the slowest one walks a model of 100,000 routes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Asks the agent and returns its answer.
///
/// # Errors
/// When no agent answers at the socket, or it refuses.
pub(super) fn ask<T: DeserializeOwned>(socket: &Path, ask: &Ask) -> anyhow::Result<T> {
    let stream = send(socket, ask)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the agent does not answer")?;
    read_answer(&line)
}

/// Asks for a stream and gives each line of it to `each`, until the agent ends it or `each` returns false.
///
/// # Errors
/// When no agent answers at the socket, or the stream breaks.
pub(super) fn follow<T: DeserializeOwned>(
    socket: &Path,
    ask: &Ask,
    mut each: impl FnMut(T) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut lines = BufReader::new(send(socket, ask)?);
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line).context("the agent is gone")? == 0 || !each(read_answer(&line)?)? {
            return Ok(());
        }
    }
}

fn send(socket: &Path, ask: &Ask) -> anyhow::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!("no agent answers at {}; is one running, and is --socket the same as its own?", socket.display())
    })?;
    let mut line = serde_json::to_vec(ask)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(stream)
}

fn read_answer<T: DeserializeOwned>(line: &str) -> anyhow::Result<T> {
    if line.is_empty() {
        bail!("the agent closed the connection without an answer");
    }
    match serde_json::from_str(line).context("the answer is not understood; are agent and command of one version?")? {
        Answer::Ok(value) => {
            serde_json::from_value(value).context("the answer is not understood; are agent and command of one version?")
        }
        Answer::Error(error) => bail!("{error}"),
    }
}
