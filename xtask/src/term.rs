//! Calm output: colour and rewritten lines for a person at a terminal, plain lines for everything else.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;

/// How to write to standard output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term {
    live: bool,
    colour: bool,
}

impl Term {
    /// As the environment asks.
    pub(crate) fn new() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let live = std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Self { live, colour: live && !set("NO_COLOR") }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(crate) fn accent(self, text: &str) -> String {
        self.paint("36", text)
    }

    /// A heading with air above it.
    pub(crate) fn heading(self, text: &str) {
        println!("\n{}", self.bold(text));
    }

    /// Does `work` and shows how long it took; at a terminal it also shows that it is under way.
    pub(crate) fn step<T>(self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.live {
            print!("  {} {what} ...", self.dim("·"));
            let _ = std::io::stdout().flush();
        }
        let start = Instant::now();
        let result = work();
        if self.live {
            print!("\r\x1b[K");
        }
        match &result {
            Ok(_) => println!("  {} {what}  {}", self.good("✓"), self.dim(&seconds(start.elapsed()))),
            Err(_) => println!("  {} {what}", self.bad("✗")),
        }
        result
    }

    /// Rows in columns as wide as they need to be; the first row is the heading.
    pub(crate) fn table(self, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (i, row) in rows.iter().enumerate() {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &w)| format!("{cell:<w$}")).collect();
            let line = cells.join("  ");
            let line = line.trim_end();
            println!("  {}", if i == 0 { self.dim(line) } else { line.to_owned() });
        }
    }
}

/// A time as a person says it.
pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        s if s >= 100 => format!("{} min {:02} s", s / 60, s % 60),
        s if s >= 10 => format!("{s} s"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}
