//! What a command found, for people or for programs.

use serde::Serialize;

use crate::code::Code;
use crate::fault::{Fault, typed};
use crate::style::Style;

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Columns
    #[default]
    Table,
    /// More columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// How a report is to look.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Its form.
    pub format: Format,
    /// Its colours.
    pub style: Style,
    /// What a person types to run this program.
    pub program: &'static str,
}

impl Look {
    /// Whether people want to see more.
    pub fn wide(self) -> bool {
        self.format == Format::Wide
    }

    /// A command as it is typed.
    pub fn typed(self, command: &str) -> String {
        typed(command, self.program)
    }

    /// A report in the form that was asked for, with a line break at the end.
    pub fn render(self, report: &impl Report) -> Result<String, Fault> {
        let unfit = |why: String| Fault::new(Code::Unreadable, "write the answer in that form", why, "loam version");
        match self.format {
            Format::Table | Format::Wide => Ok(report.text(self)),
            Format::Json => match serde_json::to_string_pretty(report) {
                Ok(text) => Ok(text + "\n"),
                Err(error) => Err(unfit(error.to_string())),
            },
            Format::Yaml => match serde_saphyr::to_string(report) {
                Ok(text) => Ok(text.trim_end().to_owned() + "\n"),
                Err(error) => Err(unfit(error.to_string())),
            },
        }
    }
}

/// What a command found.
pub trait Report: Serialize {
    /// For people.
    fn text(&self, look: Look) -> String;
}
