//! The CLI's Unix socket: mode 0600, so only the agent's own user (root) can ask.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, broadcast::error::RecvError},
    task::spawn_local,
    time::timeout,
};

use super::{
    protocol::{Answer, Ask, MAX_QUESTION},
    report::StatusReport,
};
use crate::{
    explain,
    state::State,
    verdicts::{self, Filter, Reading, Sources, Summary},
};

/// Command lines at once.
const MAX_CONNECTIONS: usize = 32;

/// Time to ask.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for the caller to take an answer or a line of a stream; who reads slower is cut off.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest interval of a summary in seconds: a day.
const MAX_INTERVAL: u32 = 86_400;

/// Pause after `accept` has failed, e.g. for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Makes the socket; one that a dead agent left behind is replaced.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent answers there"));
            }
            fs::remove_file(path)?;
        }
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there")),
        Err(_) => {}
    }
    // Bound under another name and moved when its mode is set: nobody can connect in between.
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

pub(super) async fn run_server(listener: UnixListener, state: Rc<State>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = state.clone();
                spawn_local(async move {
                    // A caller that goes away or is too slow is not worth a word.
                    let _ = serve_caller(stream, &state).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the CLI socket cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_caller(mut stream: UnixStream, state: &Rc<State>) -> io::Result<()> {
    let mut line = Vec::new();
    {
        let (reader, _) = stream.split();
        let mut reader = BufReader::new(reader.take(MAX_QUESTION as u64));
        timeout(ASK_TIMEOUT, reader.read_until(b'\n', &mut line)).await??;
    }
    let ask = match serde_json::from_slice(&line) {
        Ok(ask) => ask,
        Err(error) => {
            let answer = Answer::Error(format!(
                "the agent does not understand this command ({error}); are both of one version?"
            ));
            return send(&mut stream, &answer).await;
        }
    };
    match ask {
        Ask::Status => send(&mut stream, &to_answer(&StatusReport::of(state))).await,
        Ask::SummarizeVerdicts { filter, interval: None } => {
            let answer = summarize_all(state, &filter).map_or_else(Answer::Error, |summary| to_answer(&summary));
            send(&mut stream, &answer).await
        }
        Ask::SummarizeVerdicts { filter, interval: Some(seconds) } => {
            let length = Duration::from_secs(seconds.clamp(1, MAX_INTERVAL).into());
            summarize_intervals(stream, state, &filter, length).await
        }
        Ask::Explain(question) => match explain::explain(state, &question) {
            Ok(explanation) => send(&mut stream, &to_answer(&explanation)).await,
            Err(error) => send(&mut stream, &Answer::Error(error.to_string())).await,
        },
        Ask::FollowVerdicts(filter) => follow(stream, state, &filter).await,
    }
}

async fn follow(mut stream: UnixStream, state: &State, filter: &Filter) -> io::Result<()> {
    if !state.kernel.borrow().is_on() {
        let answer = Answer::Error(crate::verdicts::NOT_JUDGED.to_owned());
        return send(&mut stream, &answer).await;
    }
    let mut samples = state.samples.subscribe();
    loop {
        let mut unexpected = [0; 1];
        let sample = tokio::select! {
            sample = samples.recv() => sample,
            // The caller says nothing more; bytes or an end both mean that it is done.
            _ = stream.read(&mut unexpected) => return Ok(()),
        };
        let answer = match sample {
            Ok(sample) => match verdicts::VerdictRow::of(&sample, state, filter) {
                Some(row) => to_answer(&row),
                None => continue,
            },
            Err(RecvError::Lagged(lost)) => to_answer(&verdicts::VerdictRow::lost(lost)),
            Err(RecvError::Closed) => return Ok(()),
        };
        send(&mut stream, &answer).await?;
    }
}

fn summarize_all(state: &State, filter: &Filter) -> Result<Summary, String> {
    let now = Reading::take(state)?;
    Ok(verdicts::summarize(&now, None, &state.sources.borrow(), filter, &verdicts::domain_names(state)))
}

/// A summary after each interval, of that interval.
async fn summarize_intervals(
    mut stream: UnixStream,
    state: &State,
    filter: &Filter,
    length: Duration,
) -> io::Result<()> {
    let mut samples = state.samples.subscribe();
    let mut before = match Reading::take(state) {
        Ok(reading) => reading,
        Err(error) => return send(&mut stream, &Answer::Error(error)).await,
    };
    loop {
        let (begun, mut sources) = (Instant::now(), Sources::default());
        let end = tokio::time::sleep(length);
        tokio::pin!(end);
        loop {
            let mut unexpected = [0; 1];
            tokio::select! {
                sample = samples.recv() => match sample {
                    Ok(sample) => {
                        if filter.source.is_none_or(|net| net.contains(&sample.source.to_canonical())) {
                            sources.push(&sample);
                        }
                    }
                    // What is missing is a random part of all: the shares stay what they are.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Ok(()),
                },
                () = &mut end => break,
                _ = stream.read(&mut unexpected) => return Ok(()),
            }
        }
        let now = match Reading::take(state) {
            Ok(reading) => reading,
            Err(error) => return send(&mut stream, &Answer::Error(error)).await,
        };
        let interval = Some((&before, begun.elapsed()));
        let summary = verdicts::summarize(&now, interval, &sources, filter, &verdicts::domain_names(state));
        send(&mut stream, &to_answer(&summary)).await?;
        before = now;
    }
}

fn to_answer(value: &impl Serialize) -> Answer {
    serde_json::to_value(value).map_or_else(|error| Answer::Error(error.to_string()), Answer::Ok)
}

async fn send(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(WRITE_TIMEOUT, stream.write_all(&line)).await?
}
