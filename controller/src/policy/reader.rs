//! Reads what was written, field by field. Whatever is not understood is a flaw with its line: a field that is
//! passed over in a policy is a hole.

use std::fmt;

use loam_manifest::{Located, Value};

/// Flaws of one object that are worth telling apart.
const MAX_FLAWS: usize = 20;

/// Longest piece of a manifest that is quoted.
const MAX_QUOTED_CHARS: usize = 64;

/// Something that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Line of the file; 0 where only the object's own is known.
    pub line: u32,
    /// Which field, what is wrong with it, and what to do.
    pub message: String,
}

/// All that is wrong with an object.
#[derive(Debug, Default)]
pub struct Flaws {
    first: Vec<Flaw>,
    count: usize,
}

impl Flaws {
    /// Adds one.
    pub fn add(&mut self, line: u32, message: impl fmt::Display) {
        self.count += 1;
        if self.first.len() < MAX_FLAWS {
            self.first.push(Flaw { line, message: message.to_string() });
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first of them, and how many more there are.
    pub fn into_list(mut self) -> Vec<Flaw> {
        let more = self.count - self.first.len();
        if more > 0 {
            self.first.push(Flaw { line: 0, message: format!("has {more} more flaws") });
        }
        self.first
    }
}

/// A value and how it was reached.
#[derive(Debug, Clone)]
pub struct At<'a> {
    /// The value.
    pub value: &'a Located,
    /// As in `spec.rules[0].from[1]`.
    pub path: String,
}

/// The fields of a map, of which each has to be asked for.
#[derive(Debug)]
pub struct Fields<'a> {
    at: At<'a>,
    left: Vec<(&'a str, &'a Located)>,
    known: Vec<&'static str>,
}

impl<'a> At<'a> {
    /// The value of an object's field `name`.
    pub fn of(value: &'a Located, name: &str) -> Self {
        Self { value, path: name.to_owned() }
    }

    /// Adds a flaw of this value.
    pub fn flaw(&self, flaws: &mut Flaws, message: impl fmt::Display) {
        flaws.add(self.value.line, format_args!("{}: {message}", self.path));
    }

    /// Its fields; none if it is no map.
    pub fn fields(&self, flaws: &mut Flaws) -> Fields<'a> {
        let left = match &self.value.value {
            Value::Map(fields) => fields.iter().map(|(name, value)| (name.as_str(), value)).collect(),
            other => {
                self.flaw(flaws, format_args!("is {}, and should be a map of fields", other.word()));
                Vec::new()
            }
        };
        Fields { at: self.clone(), left, known: Vec::new() }
    }

    /// Its items; none if it is no list. An empty list says nothing, which is never what was meant.
    pub fn items(&self, flaws: &mut Flaws) -> Vec<At<'a>> {
        match &self.value.value {
            Value::List(items) if items.is_empty() => {
                self.flaw(flaws, "is empty: leave the field out, or write at least one item");
                Vec::new()
            }
            Value::List(items) => {
                let item = |(i, value)| At { value, path: format!("{}[{i}]", self.path) };
                items.iter().enumerate().map(item).collect()
            }
            other => {
                self.flaw(flaws, format_args!("is {}, and should be a list", other.word()));
                Vec::new()
            }
        }
    }

    /// Its text.
    pub fn text(&self, flaws: &mut Flaws) -> Option<&'a str> {
        match &self.value.value {
            Value::Text(text) => return Some(text),
            Value::Number(number) => self.flaw(flaws, format_args!("is a number: write it in quotes, \"{number}\"")),
            other => self.flaw(flaws, format_args!("is {}, and should be text", other.word())),
        }
        None
    }

    /// Its text as what `read` makes of it.
    pub fn parse<T, E: fmt::Display>(
        &self,
        flaws: &mut Flaws,
        read: impl FnOnce(&'a str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(flaws)?;
        read(text).map_err(|error| self.flaw(flaws, format_args!("{} {error}", quoted(text)))).ok()
    }
}

impl<'a> Fields<'a> {
    /// A field, if it is there.
    pub fn take(&mut self, name: &'static str) -> Option<At<'a>> {
        self.known.push(name);
        let at = self.left.iter().position(|(n, _)| *n == name)?;
        let (_, value) = self.left.remove(at);
        Some(At { value, path: format!("{}.{name}", self.at.path) })
    }

    /// Tells of the fields that nobody asked for.
    pub fn finish(self, flaws: &mut Flaws) {
        for (name, value) in self.left {
            let known = self.known.join(", ");
            let at = At { value, path: self.at.path.clone() };
            at.flaw(flaws, format_args!("{} is not a field: write one of {known}", quoted(name)));
        }
    }
}

/// A bounded piece of what somebody wrote.
pub fn quoted(text: &str) -> String {
    let piece: String = text.chars().take(MAX_QUOTED_CHARS).collect();
    format!("{piece:?}")
}
