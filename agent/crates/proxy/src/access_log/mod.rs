//! The access log: one JSON object a line for each request, each forwarded connection and each UDP session, on standard
//! output.
//!
//! A shard formats into a buffer of its own and hands full buffers to one writer thread. When that falls behind, lines are
//! dropped and counted; a request never waits for its log line. Switched off it costs one test of a flag.

mod forward;
mod line;
mod session;

use std::{
    cell::{Cell, RefCell},
    io::Write,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

pub use forward::ForwardLine;
pub use line::Line;
pub use session::SessionLine;
use tidegate_model::control::Settings;

/// A shard's buffer is handed over at this size, in bytes, or when it is [`FLUSH_EVERY`] old.
const BUFFER: usize = 32 * 1024;

/// How often shards hand over what they have.
pub const FLUSH_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

/// Buffers that wait for the writer: 4 MiB for all shards of a worker.
const QUEUE: usize = 128;

/// Sends buffers to the writer thread.
#[derive(Clone, Debug)]
pub struct LogSender(SyncSender<Vec<u8>>);

/// Starts the writer thread; it ends when the last sender is dropped.
///
/// # Errors
/// The system's, when there can be no thread.
pub fn start_writer(mut out: impl Write + Send + 'static) -> std::io::Result<(LogSender, JoinHandle<()>)> {
    let (sender, receiver): (_, Receiver<Vec<u8>>) = sync_channel(QUEUE);
    let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
        for buffer in receiver {
            // Nobody can be told that the log's reader is gone; requests go on.
            let _ = out.write_all(&buffer).and_then(|()| out.flush());
        }
    })?;
    Ok((LogSender(sender), thread))
}

/// A shard's side of the log.
#[derive(Debug)]
pub struct LogBuffer {
    is_on: Cell<bool>,
    /// The domain's labels as JSON members with a comma behind each.
    labels: RefCell<String>,
    buffer: RefCell<Vec<u8>>,
    lines: Cell<u64>,
    dropped: Cell<u64>,
    sender: LogSender,
}

impl LogBuffer {
    /// A buffer that is switched off.
    pub fn new(sender: LogSender) -> Self {
        Self {
            is_on: Cell::new(false),
            labels: RefCell::default(),
            buffer: RefCell::default(),
            lines: Cell::new(0),
            dropped: Cell::new(0),
            sender,
        }
    }

    /// Takes settings.
    pub fn configure(&self, settings: &Arc<Settings>) {
        self.is_on.set(settings.access_log);
        *self.labels.borrow_mut() = line::label_members(&settings.labels);
    }

    /// Whether lines are wanted.
    pub fn is_on(&self) -> bool {
        self.is_on.get()
    }

    /// Lines dropped because the writer fell behind.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Writes a line about a request.
    pub fn push(&self, line: &Line<'_>) {
        self.write(|labels, out| line.render(labels, out));
    }

    /// Writes a line about a connection.
    pub fn push_forward(&self, line: &ForwardLine<'_>) {
        self.write(|labels, out| line.render(labels, out));
    }

    /// Writes a line about a UDP session.
    pub fn push_session(&self, line: &SessionLine<'_>) {
        self.write(|labels, out| line.render(labels, out));
    }

    fn write(&self, render: impl FnOnce(&str, &mut Vec<u8>)) {
        let mut buffer = self.buffer.borrow_mut();
        render(&self.labels.borrow(), &mut buffer);
        self.lines.set(self.lines.get() + 1);
        let is_full = buffer.len() >= BUFFER;
        drop(buffer);
        if is_full {
            self.flush();
        }
    }

    /// Hands over what there is.
    pub fn flush(&self) {
        let buffer = std::mem::take(&mut *self.buffer.borrow_mut());
        let lines = self.lines.replace(0);
        if !buffer.is_empty() && self.sender.0.try_send(buffer).is_err() {
            self.dropped.set(self.dropped.get() + lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_writer_costs_lines_and_never_time() {
        let (sender, receiver) = sync_channel(1);
        let log = LogBuffer::new(LogSender(sender));
        for _ in 0..3 {
            log.push(&Line::example());
            log.flush();
        }
        assert_eq!(log.dropped(), 2);
        assert_eq!(receiver.try_iter().count(), 1);
    }
}
