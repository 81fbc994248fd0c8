//! `loam config get`: what the proxy of a node knows.

use clap::ValueEnum;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{items, node};
use crate::args::{Get, What};
use crate::code::Code;
use crate::fault::Fault;
use crate::names::PROXY_PORT;
use crate::output::{Look, Report};
use crate::session::Session;

/// Items that a proxy knows. For programs they are the list as the proxy writes it.
#[derive(Debug)]
pub struct Known {
    what: What,
    items: Vec<Value>,
    /// How many there are, if the proxy lists only some.
    total: Option<u64>,
}

impl Serialize for Known {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.items.serialize(serializer)
    }
}

/// Asks the proxy of a node.
pub async fn run(session: &Session, args: &Get) -> Result<Known, Fault> {
    let mesh = session.installed().await?;
    let what = word(args.what);
    let name = args.name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
    let node = node(&mesh, args.node.as_deref(), &format!("loam config get {what}{name}"))?;
    let (path, key) = items::source(args.what);
    let mut answer: Value = session.ask(&node.pod, PROXY_PORT, &path).await?;
    let Some(Value::Array(mut found)) = answer.get_mut(key).map(Value::take) else {
        let read = format!("read {path} of pod {}/{}", session.system, node.pod);
        return Err(Fault::new(Code::Unreadable, read, format!("it has no list {key}"), "loam version"));
    };
    let total = answer["total"].as_u64().filter(|total| usize::try_from(*total).is_ok_and(|t| t > found.len()));
    if let Some(name) = &args.name {
        found.retain(|item| items::goes_by(args.what, item, name));
        if found.is_empty() {
            return Err(Fault::new(
                Code::NotKnown,
                format!("find {what} {name} on node {}", node.node),
                "the proxy of that node knows none by that name",
                format!("loam config get {what} --node {}", node.node),
            ));
        }
    }
    Ok(Known { what: args.what, items: found, total })
}

/// What is asked for, as it is typed.
fn word(what: What) -> String {
    what.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl Report for Known {
    fn text(&self, look: Look) -> String {
        if self.items.is_empty() {
            return format!("The proxy knows no {}.\n", word(self.what));
        }
        let mut text = items::table(self.what, &self.items, look.wide(), look.style);
        if let Some(total) = self.total {
            text.push_str(&format!("the oldest of {total}\n"));
        }
        text
    }
}
