//! What the demo prints.

use std::{fmt::Display, io::IsTerminal, time::Instant};

/// The teller: chapters, lines, and the summary of what held.
pub(super) struct Story {
    is_coloured: bool,
    begun: Instant,
    chapter: usize,
    outcomes: Vec<(String, Result<String, String>)>,
}

const BOLD: &str = "1";
const FAINT: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";

impl Story {
    pub(super) fn begin() -> Self {
        let is_coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let story = Self { is_coloured, begun: Instant::now(), chapter: 0, outcomes: Vec::new() };
        println!("{}", story.paint(BOLD, "Tidegate demo: two traffic domains on one gateway node"));
        story
    }

    pub(super) fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        println!("\n{} {}", self.paint(BOLD, &format!("{}.", self.chapter)), self.paint(BOLD, title));
    }

    /// One line about what was done or seen.
    pub(super) fn line(&self, text: impl Display) {
        for line in text.to_string().lines() {
            println!("   {line}");
        }
    }

    /// Output of a command, as it came.
    pub(super) fn quote(&self, text: &str) {
        for line in text.lines() {
            println!("   {}", self.paint(FAINT, &format!("│ {line}")));
        }
    }

    pub(super) fn conclude(&mut self, title: &str, outcome: anyhow::Result<String>) {
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        match &outcome {
            Ok(evidence) => println!("   {} {evidence}", self.paint(GREEN, "holds:")),
            Err(error) => println!("   {} {error}", self.paint(RED, "DOES NOT HOLD:")),
        }
        self.outcomes.push((title.to_owned(), outcome));
    }

    /// Prints the table; returns how many steps did not hold.
    pub(super) fn summarize(&self) -> usize {
        let width = self.outcomes.iter().map(|(title, _)| title.len()).max().unwrap_or(0);
        println!("\n{}", self.paint(BOLD, "Summary"));
        for (title, outcome) in &self.outcomes {
            let (mark, text) = match outcome {
                Ok(evidence) => (self.paint(GREEN, "ok  "), evidence.as_str()),
                Err(error) => (self.paint(RED, "FAIL"), error.lines().next().unwrap_or_default()),
            };
            println!("   {mark} {title:width$}  {text}");
        }
        let failed = self.outcomes.iter().filter(|(_, outcome)| outcome.is_err()).count();
        let seconds = self.begun.elapsed().as_secs_f64();
        println!("   {} of {} steps held, {seconds:.0} s", self.outcomes.len() - failed, self.outcomes.len());
        failed
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.is_coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
