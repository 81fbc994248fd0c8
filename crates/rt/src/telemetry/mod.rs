//! Logs: one line per event on standard output, filtered per target, never blocking whoever logs.

mod format;
mod sink;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

pub use format::{Line, LogFormat};
pub use sink::{MAX_WAITING_BYTES, Sink};

/// The target of access lines: `access=off` silences them.
pub const ACCESS: &str = "access";

/// Logs of a process whose filter can be changed while it runs.
#[derive(Debug, Clone)]
pub struct Telemetry {
    format: LogFormat,
    sink: Sink,
    filter: Filter,
}

/// The filter in force, and the way to change it.
#[derive(Clone)]
pub struct Filter {
    initial: Arc<Targets>,
    handle: reload::Handle<Targets, Registry>,
}

/// A filter that cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// One directive has another form.
    #[error("log filter {0:?} is not <level> or <target>=<level> with level off, error, warn, info, debug or trace")]
    Syntax(String),
    /// Nobody reads the filter any more.
    #[error("log filter cannot be changed")]
    Gone,
}

/// Starts logging to standard output with `filter`, such as `info,loam_hbone=debug,access=off`. An empty filter is
/// `info`. Called once, by main.
pub fn init(format: LogFormat, filter: &str) -> Result<Telemetry, InitError> {
    let (telemetry, subscriber) = detached(format, filter, Box::new(io::stdout()))?;
    subscriber.try_init().map_err(|_| InitError::Again)?;
    Ok(telemetry)
}

/// Logging that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is not one.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The thread that writes cannot be started.
    #[error("start the log writer")]
    Writer(#[from] io::Error),
    /// Only one can be installed.
    #[error("logging was started before")]
    Again,
}

/// Logging to `output` that is in force only where the caller makes the subscriber its default, as tests do.
pub fn detached(
    format: LogFormat,
    filter: &str,
    output: Box<dyn io::Write + Send>,
) -> Result<(Telemetry, impl tracing::Subscriber + Send + Sync), InitError> {
    let initial = merge(&Targets::new().with_default(LevelFilter::INFO), filter)?;
    let (filtering, handle) = reload::Layer::new(initial.clone());
    let sink = Sink::new(output)?;
    let subscriber = Registry::default().with(filtering).with(format::Layer::new(format, sink.clone()));
    Ok((Telemetry { format, sink, filter: Filter { initial: Arc::new(initial), handle } }, subscriber))
}

impl Telemetry {
    /// The filter in force.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Where lines go; for writers that format their own, such as the access log.
    pub fn sink(&self) -> &Sink {
        &self.sink
    }

    /// How lines look.
    pub fn format(&self) -> LogFormat {
        self.format
    }
}

impl Filter {
    /// Changes the targets named in `directives` and keeps the others. Both `=` and Istio's `:` separate a target from
    /// its level.
    pub fn change(&self, directives: &str) -> Result<(), FilterError> {
        let current = self.handle.clone_current().ok_or(FilterError::Gone)?;
        self.handle.reload(merge(&current, directives)?).map_err(|_| FilterError::Gone)
    }

    /// Goes back to the filter of the start.
    pub fn reset(&self) -> Result<(), FilterError> {
        self.handle.reload((*self.initial).clone()).map_err(|_| FilterError::Gone)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.handle.clone_current() {
            Some(targets) => targets.fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({self})")
    }
}

/// Longest text of directives, and therefore of the filter they can grow.
const MAX_FILTER_BYTES: usize = 4096;

/// Most targets a filter names. Each log statement compares against all of them once.
const MAX_TARGETS: usize = 128;

fn merge(current: &Targets, directives: &str) -> Result<Targets, FilterError> {
    let syntax = |text: &str| FilterError::Syntax(text.chars().take(128).collect());
    if directives.len() > MAX_FILTER_BYTES {
        return Err(syntax(directives));
    }
    let mut merged = current.clone();
    for directive in directives.split(',').map(str::trim).filter(|d| !d.is_empty()) {
        merged = match directive.rsplit_once('=').or_else(|| directive.rsplit_once(':')) {
            None => merged.with_default(level(directive).ok_or_else(|| syntax(directive))?),
            Some((target, level_text)) => {
                let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b':' | b'.');
                match level(level_text) {
                    Some(level) if !target.is_empty() && target.bytes().all(known) => merged.with_target(target, level),
                    _ => return Err(syntax(directive)),
                }
            }
        };
    }
    if merged.iter().count() > MAX_TARGETS { Err(syntax(directives)) } else { Ok(merged) }
}

fn level(text: &str) -> Option<LevelFilter> {
    // Its parser also takes numbers and the empty text, which nobody means.
    if text.bytes().all(|b| b.is_ascii_alphabetic()) && !text.is_empty() {
        LevelFilter::from_str(text).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::sink::tests::Output;
    use super::*;

    /// What is written when `work` logs with `filter`, without the time at the start of each line.
    fn logged(format: LogFormat, filter: &str, work: impl FnOnce(&Telemetry)) -> Vec<String> {
        let output = Output::default();
        let (telemetry, subscriber) = detached(format, filter, Box::new(output.clone())).unwrap();
        tracing::subscriber::with_default(subscriber, || work(&telemetry));
        assert!(telemetry.sink().flush(Duration::from_secs(10)));
        let strip = |line: &str| match format {
            LogFormat::Plain => line.split_once('\t').unwrap().1.to_owned(),
            LogFormat::Json => line.to_owned(),
        };
        output.text().lines().map(strip).collect()
    }

    #[test]
    fn a_line_has_time_level_target_message_and_fields_between_tabs() {
        let output = Output::default();
        let (telemetry, subscriber) = detached(LogFormat::Plain, "", Box::new(output.clone())).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "pods", pod = "web-1", port = 15008, ok = true, addr = %"[::1]:80", "enrolled");
        });
        assert!(telemetry.sink().flush(Duration::from_secs(10)));
        let text = output.text();
        let fields: Vec<_> = text.trim_end().split('\t').collect();
        assert_eq!(fields[1..], ["info", "pods", "enrolled", "pod=\"web-1\" port=15008 ok=true addr=[::1]:80"]);
        let time: jiff::Timestamp = fields[0].parse().unwrap();
        assert!(fields[0].ends_with('Z') && fields[0].len() == "2026-01-01T00:00:00.000000Z".len(), "{time}");
    }

    #[test]
    fn fields_of_the_span_follow_those_of_the_event() {
        let lines = logged(LogFormat::Plain, "debug", |_| {
            let span = tracing::info_span!("connection", id = 7, peer = tracing::field::Empty);
            span.record("peer", "web");
            span.in_scope(|| tracing::debug!(target: "t", step = "dial", "x"));
        });
        assert_eq!(lines, ["debug\tt\tx\tstep=\"dial\" id=7 peer=\"web\""]);
    }

    #[test]
    fn a_message_cannot_forge_a_line() {
        let lines = logged(LogFormat::Plain, "", |_| {
            let hostile = "a\n2026\tinfo\taccess\tconnection complete\x1b[2J";
            tracing::info!(target: "t", value = hostile, shown = %hostile, "{hostile}");
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].split('\t').count(), 4);
        assert!(!lines[0].contains('\x1b'));
    }

    #[test]
    fn json_lines_are_json() {
        let lines = logged(LogFormat::Json, "", |_| {
            tracing::warn!(target: "t", text = "a\"b\n", number = -1, float = 0.5, shown = ?Some("x"), "not good");
        });
        let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(value["level"], "warn");
        assert_eq!(value["scope"], "t");
        assert_eq!(value["message"], "not good");
        assert_eq!(value["text"], "a\"b\n");
        assert_eq!(value["number"], -1);
        assert_eq!(value["float"], 0.5);
        assert_eq!(value["shown"], "Some(\"x\")");
        assert!(value["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }

    #[test]
    fn the_filter_changes_per_target_while_running_and_goes_back() {
        let lines = logged(LogFormat::Plain, "warn,a=info", |telemetry| {
            let say = |n: u32| {
                tracing::debug!(target: "a", n, "a");
                tracing::debug!(target: "b::c", n, "b");
            };
            say(1);
            telemetry.filter().change("a=debug").unwrap();
            say(2);
            telemetry.filter().change("a:info,b::c:debug").unwrap();
            say(3);
            telemetry.filter().reset().unwrap();
            say(4);
        });
        assert_eq!(lines, ["debug\ta\ta\tn=2", "debug\tb::c\tb\tn=3"]);
    }

    #[test]
    fn the_filter_says_what_is_in_force() {
        let (telemetry, _subscriber) = detached(LogFormat::Plain, "warn,a=debug", Box::new(io::sink())).unwrap();
        let mut parts: Vec<_> = telemetry.filter().to_string().split(',').map(str::to_owned).collect();
        parts.sort();
        assert_eq!(parts, ["a=debug", "warn"]);
    }

    #[test]
    fn a_filter_of_another_form_changes_nothing() {
        let (telemetry, _subscriber) = detached(LogFormat::Plain, "warn", Box::new(io::sink())).unwrap();
        for text in ["loud", "a=loud", "=info", "a=", "a b=info", "a=info,b=5", &"a".repeat(5000)] {
            assert!(telemetry.filter().change(text).is_err(), "{text:?} was accepted");
        }
        let many: Vec<_> = (0..200).map(|i| format!("t{i}=info")).collect();
        assert!(telemetry.filter().change(&many.join(",")).is_err());
        assert_eq!(telemetry.filter().to_string(), "warn");
    }
}
