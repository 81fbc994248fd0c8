//! A directory of Kubernetes manifests as a source of objects: the embedded stand-in for an API server.
//!
//! A file ends in `.yaml`, `.yml` or `.json` and holds any number of documents; a `List` is the objects in it. What
//! cannot be read is a [`Problem`] with file and line, and takes nothing else with it: the last good version of the
//! object stays in force, and when the broken part does not even say what it was, so does everything that is missing
//! from that file. An object that two files describe is taken from the first by name.
//!
//! Each object is handed out once, and only the parts of it that a mesh has a use for. [`Manifests::open`] gives the
//! state to begin with, [`Manifests::next`] what changes.

mod document;
pub mod enrol;
pub mod gateway;
pub mod istio;
mod located;
pub mod network_policy;
mod object;
mod parse;
mod problem;
mod prune;
mod settle;
mod source;
mod tree;
mod watch;

pub use located::{Located, Value};
pub use object::{DEFAULT_NAMESPACE, Key, Kind, Object};
pub use parse::{told, value};
pub use problem::{Problem, Severity};
pub use source::{Source, SourceError};
pub use tree::Change;
pub use watch::{Manifests, OpenError, State, Update};

/// The objects and problems of files that are at hand, as `(name, content)`, without a directory.
pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> State {
    let mut tree = tree::Tree::default();
    let files: std::collections::BTreeMap<_, _> = files.into_iter().collect();
    let contents = files.into_iter().map(|(name, bytes)| (name.into(), tree::Content::Bytes(bytes))).collect();
    let outcome = tree.update(contents);
    let applied = |change| match change {
        Change::Applied(object) => Some(object),
        Change::Deleted(_) => None,
    };
    State {
        objects: outcome.changes.into_iter().filter_map(applied).collect(),
        problems: outcome.problems.unwrap_or_default(),
    }
}
