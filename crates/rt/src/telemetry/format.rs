//! How a line looks: tabs between time, level, target, message and fields, or one JSON object.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::sink::Sink;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `time⇥level⇥target⇥message⇥key=value key="text"`.
    #[default]
    Plain,
    /// One object per line, with `time`, `level`, `scope`, `message` and the fields.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    /// The values of `LOG_FORMAT`.
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "" | "plain" | "text" => Ok(Self::Plain),
            "json" => Ok(Self::Json),
            _ => Err(format!("log format {s:?} is neither plain nor json")),
        }
    }
}

/// Longest value of one field. A peer chooses some of them.
const MAX_VALUE_BYTES: usize = 4096;

/// Capacity that a thread keeps for its next line.
const KEPT_BYTES: usize = 8192;

/// One line in the making. The same calls give either format.
#[derive(Debug)]
pub struct Line<'a> {
    text: &'a mut String,
    format: LogFormat,
    first: bool,
}

thread_local! {
    static BUFFER: RefCell<String> = const { RefCell::new(String::new()) };
}

impl Line<'_> {
    /// Makes a line in a buffer of this thread and gives it to `sink`. `fields` adds its fields.
    pub fn write(
        sink: &Sink,
        format: LogFormat,
        level: Level,
        target: &str,
        message: &dyn fmt::Display,
        fields: impl FnOnce(&mut Line<'_>),
    ) {
        BUFFER.with(|buffer| {
            // A field whose Display logs would find the buffer taken.
            let mut own = String::new();
            let mut borrowed = buffer.try_borrow_mut().ok();
            let text = borrowed.as_deref_mut().unwrap_or(&mut own);
            text.clear();
            let mut line = Line { text, format, first: true };
            line.head(level, target, message);
            fields(&mut line);
            line.tail();
            sink.write(text.as_bytes());
            text.clear();
            text.shrink_to(KEPT_BYTES);
        });
    }

    /// A field whose value is text; quoted.
    pub fn text(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        display(self.text, &value, true);
    }

    /// A field whose value is shown as it is, such as an address. In JSON it is a string.
    pub fn shown(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        display(self.text, &value, self.format == LogFormat::Json);
    }

    /// A field whose value is a number or a truth value.
    pub fn number(&mut self, key: &str, value: impl fmt::Display) {
        self.key(key);
        write(self.text, &value);
    }

    fn head(&mut self, level: Level, target: &str, message: &dyn fmt::Display) {
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        match self.format {
            LogFormat::Plain => {
                write(self.text, &format_args!("{:.6}\t{level}\t{target}\t", Timestamp::now()));
                display(self.text, message, false);
            }
            LogFormat::Json => {
                write(self.text, &format_args!("{{\"level\":\"{level}\",\"time\":\"{:.6}\"", Timestamp::now()));
                self.first = false;
                self.text("scope", target);
                self.key("message");
                display(self.text, message, true);
            }
        }
    }

    fn tail(&mut self) {
        self.text.push_str(match self.format {
            LogFormat::Plain => "\n",
            LogFormat::Json => "}\n",
        });
    }

    fn key(&mut self, key: &str) {
        match self.format {
            LogFormat::Plain => {
                self.text.push(if self.first { '\t' } else { ' ' });
                self.text.push_str(key);
                self.text.push('=');
            }
            LogFormat::Json => {
                self.text.push(',');
                display(self.text, &key, true);
                self.text.push(':');
            }
        }
        self.first = false;
    }

    /// Fields formatted before by [`SpanFields`].
    fn ready_made(&mut self, fields: &str) {
        let skip = match self.format {
            // Their first separator was written as that of a line's first field.
            LogFormat::Plain if !self.first && !fields.is_empty() => {
                self.text.push(' ');
                1
            }
            LogFormat::Plain | LogFormat::Json => 0,
        };
        self.text.push_str(&fields[skip..]);
        self.first &= fields.is_empty();
    }
}

/// Writes what cannot fail: a string takes everything. A `Display` that fails leaves its value cut short.
fn write(text: &mut String, value: &impl fmt::Display) {
    let _ = write!(text, "{value}");
}

fn display(text: &mut String, value: &dyn fmt::Display, quote: bool) {
    if quote {
        text.push('"');
    }
    let _ = write!(Escape { text, quotes: quote, left: MAX_VALUE_BYTES }, "{value}");
    if quote {
        text.push('"');
    }
}

/// Keeps a value on its line and in its column, whatever it contains; the escapes are those of JSON.
struct Escape<'a> {
    text: &'a mut String,
    quotes: bool,
    left: usize,
}

impl fmt::Write for Escape<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let special = |c: char| c.is_control() || (self.quotes && matches!(c, '"' | '\\'));
        if s.len() <= self.left && !s.contains(special) {
            self.left -= s.len();
            self.text.push_str(s);
            return Ok(());
        }
        for c in s.chars() {
            if self.left < c.len_utf8() {
                return Err(fmt::Error);
            }
            self.left -= c.len_utf8();
            match c {
                '"' | '\\' if self.quotes => self.text.extend(['\\', c]),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                c if c.is_control() => write(self.text, &format_args!("\\u{:04x}", u32::from(c))),
                c => self.text.push(c),
            }
        }
        Ok(())
    }
}

/// Formats events of tracing into a sink.
pub(super) struct Layer {
    format: LogFormat,
    sink: Sink,
}

impl Layer {
    pub(super) fn new(format: LogFormat, sink: Sink) -> Self {
        Self { format, sink }
    }
}

/// The fields of a span, formatted once.
struct SpanFields(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Layer {
    fn on_new_span(&self, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let mut fields = String::new();
        attrs.record(&mut Fields(Line { text: &mut fields, format: self.format, first: true }));
        span.extensions_mut().replace(SpanFields(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        if let Some(SpanFields(fields)) = span.extensions_mut().get_mut() {
            let first = fields.is_empty();
            values.record(&mut Fields(Line { text: fields, format: self.format, first }));
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut facts = Facts::default();
        event.record(&mut facts);
        let target = facts.log_target.as_deref().unwrap_or(event.metadata().target());
        Line::write(&self.sink, self.format, *event.metadata().level(), target, &facts.message, |line| {
            let mut fields = Fields(Line { text: &mut *line.text, format: line.format, first: line.first });
            event.record(&mut fields);
            line.first = fields.0.first;
            for span in ctx.event_scope(event).into_iter().flatten() {
                if let Some(SpanFields(fields)) = span.extensions().get() {
                    line.ready_made(fields);
                }
            }
        });
    }
}

/// What stands in front of the fields.
#[derive(Default)]
struct Facts {
    message: String,
    /// Events of the `log` crate carry their target as a field.
    log_target: Option<String>,
}

impl Visit for Facts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            "log.target" => self.log_target = Some(value.to_owned()),
            _ => {}
        }
    }
}

/// Adds every other field to the line.
struct Fields<'a>(Line<'a>);

impl Fields<'_> {
    fn skipped(field: &Field) -> bool {
        field.name() == "message" || field.name().starts_with("log.")
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !Self::skipped(field) {
            self.0.shown(field.name(), format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if !Self::skipped(field) {
            self.0.text(field.name(), value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if !Self::skipped(field) {
            self.0.number(field.name(), value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !Self::skipped(field) {
            self.0.number(field.name(), value);
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.number(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.0.number(field.name(), value);
        } else {
            // JSON has no such number.
            self.0.shown(field.name(), value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.0.text(field.name(), causes(value));
    }
}

/// An error and what lies beneath it, in one line.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        write(&mut text, &format_args!(": {cause}"));
        source = cause.source();
    }
    text
}
