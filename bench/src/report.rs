//! A result: what was measured, how, on what, as Markdown for people and JSON for programs.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::Context;
use serde_json::{Value, json};

/// One measurement.
pub(crate) struct Report {
    name: &'static str,
    title: &'static str,
    method: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
    raw: Value,
}

impl Report {
    pub(crate) fn new(name: &'static str, title: &'static str, method: impl Into<String>) -> Self {
        Self {
            name,
            title,
            method: method.into(),
            columns: Vec::new(),
            rows: Vec::new(),
            notes: Vec::new(),
            raw: Value::Null,
        }
    }

    /// Names the columns of the table.
    pub(crate) fn columns(&mut self, columns: &[&str]) {
        self.columns = columns.iter().map(|column| (*column).to_owned()).collect();
    }

    /// Adds a row of the table.
    pub(crate) fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Adds a sentence below the table.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Everything that was measured, before any median.
    pub(crate) fn raw(&mut self, raw: Value) {
        self.raw = raw;
    }

    pub(crate) fn to_markdown(&self) -> anyhow::Result<String> {
        let mut text = format!("# {}\n\n{}\n\n", self.title, machine()?);
        let _ = writeln!(text, "Method: {}\n", self.method);
        let _ = writeln!(text, "| {} |", self.columns.join(" | "));
        let _ = writeln!(text, "|{}", "---|".repeat(self.columns.len()));
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
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
