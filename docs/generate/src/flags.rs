//! The flags of every program.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};

use crate::cell;

/// The page.
pub(crate) fn page() -> String {
    let mut text =
        "# Flags\n\nEvery flag of every program. An environment variable counts where its flag is not given.\n"
            .to_owned();
    for mut command in [
        loam_controller::config::described(),
        loam_agent::config::Cli::command(),
        loam_ztunnel::config::Flags::command(),
    ] {
        command.build();
        describe(&command, command.get_name(), &mut text);
    }
    text
}

fn describe(command: &Command, name: &str, text: &mut String) {
    // Writing to a string does not fail.
    let _ = write!(text, "\n## {name}\n");
    if let Some(about) = command.get_about() {
        let _ = write!(text, "\n{}\n", sentence(&about.to_string()));
    }
    let flags: Vec<_> = command.get_arguments().filter(|flag| is_told(flag)).collect();
    if !flags.is_empty() {
        text.push_str("\n| flag | environment | default | meaning |\n|---|---|---|---|\n");
    }
    for flag in flags {
        let _ = writeln!(text, "| {} | {} | {} | {} |", named(flag), environment(flag), default(flag), meaning(flag));
    }
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        describe(inner, &format!("{name} {}", inner.get_name()), text);
    }
}

/// Help and version are the same everywhere.
fn is_told(flag: &Arg) -> bool {
    !flag.is_hide_set() && !matches!(flag.get_id().as_str(), "help" | "version")
}

fn named(flag: &Arg) -> String {
    match flag.get_long() {
        Some(long) => format!("`--{long}`"),
        None => {
            format!("`{}`", flag.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str()))
        }
    }
}

fn environment(flag: &Arg) -> String {
    flag.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default()
}

fn default(flag: &Arg) -> String {
    let values: Vec<_> = flag.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let values = values.join(", ");
    if values.is_empty() { String::new() } else { format!("`{values}`") }
}

fn meaning(flag: &Arg) -> String {
    cell(&flag.get_long_help().or_else(|| flag.get_help()).map(|help| sentence(&help.to_string())).unwrap_or_default())
}

fn sentence(text: &str) -> String {
    match text.trim_end() {
        "" => String::new(),
        text if text.ends_with('.') => text.to_owned(),
        text => format!("{text}."),
    }
}
