//! A result: what was measured, how, on what, as Markdown for people and JSON for programs.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::Context;
use serde_json::{Value, json};

/// Names of the columns, and the rows.
type Table = (Vec<String>, Vec<Vec<String>>);

/// One measurement.
pub(crate) struct Report {
    name: &'static str,
    title: &'static str,
    method: String,
    tables: Vec<Table>,
    notes: Vec<String>,
    raw: Value,
}

impl Report {
    pub(crate) fn new(name: &'static str, title: &'static str, method: impl Into<String>) -> Self {
        Self { name, title, method: method.into(), tables: Vec::new(), notes: Vec::new(), raw: Value::Null }
    }

    /// Begins a table, by the names of its columns.
    pub(crate) fn columns(&mut self, columns: &[&str]) {
        self.tables.push((columns.iter().map(|column| (*column).to_owned()).collect(), Vec::new()));
    }

    /// Adds a row to the table that was begun last.
    pub(crate) fn push(&mut self, cells: Vec<String>) {
        self.tables.last_mut().expect("a measurement names its columns first").1.push(cells);
    }

    /// Adds a sentence below the tables.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Everything that was measured, before any median.
    pub(crate) fn raw(&mut self, raw: Value) {
        self.raw = raw;
    }

    pub(crate) fn to_markdown(&self) -> anyhow::Result<String> {
        let mut text = format!("# {}\n\n{}\n\n", self.title, machine()?);
        let _ = writeln!(text, "Method: {}", self.method);
        for (columns, rows) in &self.tables {
            let _ = writeln!(text, "\n| {} |", columns.join(" | "));
            let _ = writeln!(text, "|{}", "---|".repeat(columns.len()));
            for row in rows {
                let _ = writeln!(text, "| {} |", row.join(" | "));
            }
        }
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        Ok(text)
    }

    /// Writes `NAME.md` and `NAME.json`.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        fs::write(folder.join(format!("{}.md", self.name)), self.to_markdown()?)?;
        let raw = json!({"name": self.name, "machine": machine()?, "raw": self.raw});
        fs::write(folder.join(format!("{}.json", self.name)), serde_json::to_string_pretty(&raw)?)?;
        Ok(())
    }
}

/// When, with which build of the agent and on what machine.
fn machine() -> anyhow::Result<String> {
    let tidegate = tidegate_lab::process::program("tidegate")?;
    let say = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let busy = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Ok(format!(
        "{}, {}, Linux {}, {} x {}, load average at the end {}",
        say("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        say(&tidegate.to_string_lossy(), &["version"]),
        say("uname", &["-r"]),
        say("nproc", &[]),
        model.trim_start_matches([' ', '\t', ':']),
        busy.split_whitespace().next().unwrap_or("unknown")
    ))
}
