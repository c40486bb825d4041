//! Runs commands so that a person sees one line of progress and, when one fails, the command and the end of its log.
//!
//! Output goes to `<target>/xtask/log/`, never between the lines of progress.

use std::{
    fs::{self, File},
    io::{IsTerminal, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::place;

/// Lines of a failed command's log that are shown.
const TAIL_LINES: usize = 40;
/// How often the line of progress is drawn on a terminal.
const FRAME: Duration = Duration::from_millis(100);
/// How often a line says, where there is no terminal, that a command is still running: CI kills what is silent.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// Enough of a log's end to find [`TAIL_LINES`] or the last line in, in bytes.
const TAIL_BYTES: u64 = 64 * 1024;

/// A command that ran to its end.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Everything that it printed.
    pub(crate) log: PathBuf,
    /// Where it failed: the command and the end of its log, for people.
    pub(crate) failure: Option<String>,
}

/// Runs a command under a title ("build the agent") and waits for it.
///
/// # Errors
/// The command cannot be started, or fails: the error shows the command and the end of its log.
pub(crate) fn step(title: &str, command: &mut Command) -> Result<()> {
    match attempt(title, command)?.failure {
        None => Ok(()),
        Some(failure) => bail!(failure),
    }
}

/// As [`step`], for a caller that goes on after a failure.
///
/// # Errors
/// The command cannot be started.
pub(crate) fn attempt(title: &str, command: &mut Command) -> Result<Attempt> {
    let log = log_file(title)?;
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {}", shown(command)))?;
    let mut progress = Progress::start(title);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        progress.draw(begun.elapsed(), &log);
        thread::sleep(FRAME);
    };
    progress.finish(status.success(), begun.elapsed());
    let failure = (!status.success()).then(|| failure(command, status, &log));
    Ok(Attempt { log, failure })
}

/// Runs a short command; returns what it printed to its standard output.
///
/// # Errors
/// As [`step`]; the error shows its standard error.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", shown(command), output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no text", shown(command)))
}

/// A step that needs no command: the result of `work` decides about its mark.
///
/// # Errors
/// Those of `work`.
pub(crate) fn judge(title: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    let mut progress = Progress::start(title);
    let outcome = work();
    progress.finish(outcome.is_ok(), begun.elapsed());
    outcome
}

/// Says something between steps.
pub(crate) fn note(text: &str) {
    eprintln!("  {text}");
}

/// Prints what a command was asked for. Who reads no further, as `head` does, misses nothing that he wants.
pub(crate) fn print(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Seconds and minutes as people read them.
pub(crate) fn human(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
    }
}

/// A command as it can be pasted into a shell.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = Vec::new();
    if let Some(dir) = command.get_current_dir() {
        words.push(format!("cd {} &&", dir.display()));
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!("{}={}", name.display(), quoted(&value.to_string_lossy())));
        }
    }
    words.push(quoted(&command.get_program().to_string_lossy()));
    words.extend(command.get_args().map(|arg| quoted(&arg.to_string_lossy())));
    words.join(" ")
}

/// A word as a shell reads it back.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c));
    if is_plain {
        return word.to_owned();
    }
    // $'…' also shows the separator of CARGO_ENCODED_RUSTFLAGS.
    if word.contains('\x1f') {
        return format!("$'{}'", word.replace('\\', "\\\\").replace('\'', "\\'").replace('\x1f', "\\x1f"));
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn failure(command: &Command, status: ExitStatus, log: &Path) -> String {
    format!("{status} from\n  {}\n{}", shown(command), end_of(log))
}

/// The end of a log, with its name, for people.
pub(crate) fn end_of(log: &Path) -> String {
    let text = tail(log);
    let lines: Vec<_> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    format!("The end of {}:\n{end}", log.display())
}

fn log_file(title: &str) -> Result<PathBuf> {
    let dir = place::target().join("xtask/log");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let name: String = title
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' })
        .collect();
    Ok(dir.join(format!("{name}.log")))
}

/// The end of a log, lossily decoded; empty where there is none.
fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// One line about what runs: redrawn on a terminal, printed at begin and end elsewhere.
struct Progress<'a> {
    title: &'a str,
    is_terminal: bool,
    frame: usize,
    beaten: Duration,
}

impl<'a> Progress<'a> {
    fn start(title: &'a str) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let progress = Self { title, is_terminal, frame: 0, beaten: Duration::ZERO };
        if is_terminal {
            progress.line(&format!("{} {title}", Self::SPINNER[0]));
        }
        progress
    }

    const SPINNER: [char; 8] = ['⣾', '⣽', '⣻', '⢿', '⡿', '⣟', '⣯', '⣷'];
    /// Characters of a line that fit on any terminal.
    const WIDTH: usize = 78;

    fn draw(&mut self, elapsed: Duration, log: &Path) {
        if self.is_terminal {
            self.frame += 1;
            let spinner = Self::SPINNER[self.frame % Self::SPINNER.len()];
            let text = tail(log);
            let last = text.trim_end().rsplit(['\n', '\r']).next().unwrap_or_default();
            let last: String = last.chars().filter(|c| !c.is_control()).collect();
            let line = format!("{spinner} {} ({:.0} s)  {}", self.title, elapsed.as_secs_f64(), last.trim());
            self.line(&line.chars().take(Self::WIDTH).collect::<String>());
        } else if elapsed >= self.beaten + HEARTBEAT {
            self.beaten = elapsed;
            eprintln!("  … {} ({})", self.title, human(elapsed));
        }
    }

    fn finish(&mut self, is_good: bool, elapsed: Duration) {
        let mark = if is_good { "ok  " } else { "FAIL" };
        let line = format!("{mark} {} ({})", self.title, human(elapsed));
        if self.is_terminal {
            self.line(&line);
            eprintln!();
        } else {
            eprintln!("{line}");
        }
    }

    fn line(&self, text: &str) {
        let mut stderr = std::io::stderr();
        // A closed terminal loses progress, nothing else.
        let _ = write!(stderr, "\r\x1b[2K{text}").and_then(|()| stderr.flush());
    }
}
