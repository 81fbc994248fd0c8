//! What the plugin asks the agent: one line of JSON each way on a unix socket.
//!
//! Either side may be the older one, since the agent installs the plugin while pods are made: fields may be added, whoever
//! does not know them passes them over, and where they are absent their default means what was so before. A question that
//! the agent does not know is answered with an error, so a plugin must be able to do without any but those there are.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Largest line of either side.
pub const MAX_LINE_BYTES: u64 = 64 * 1024;

/// How long the agent may take to bring a pod into the mesh.
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the plugin waits for an answer; the agent's own bound comes first, since it knows what it waited for.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub enum Ask {
    /// Bring this pod into the mesh if it belongs there, and answer when it is.
    Add(Sandbox),
    /// Is this pod as it should be?
    Check(Sandbox),
    /// This pod's sandbox goes.
    Delete(Sandbox),
}

/// The sandbox of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's Kubernetes UID; empty where the runtime does not tell.
    #[serde(default)]
    pub uid: String,
    /// Path of its network namespace, as the node sees it.
    pub netns: PathBuf,
    /// Inode number of that, by which the agent knows it under another path; 0 if it is gone.
    #[serde(default)]
    pub inode: u64,
    /// The pod's addresses, as the plugins before gave them.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// An answer: empty, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Why the pod is not as it should be; empty if nothing is wrong.
    #[serde(default)]
    pub error: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("ask the agent at {socket} whether the pod is in the mesh: {why}; see that the Loam agent runs on this node")]
pub struct AskError {
    /// Where the agent should listen.
    pub socket: PathBuf,
    /// What happened.
    pub why: io::Error,
}

/// Asks the agent that listens at `socket`.
pub fn ask(socket: &Path, question: &Ask, wait: Duration) -> Result<Answer, AskError> {
    exchange(socket, question, wait).map_err(|why| AskError { socket: socket.to_owned(), why })
}

fn exchange(socket: &Path, question: &Ask, wait: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE_BYTES)).read_line(&mut answer)?;
    match answer.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection without an answer")),
        false => Ok(serde_json::from_str(&answer)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of the version before.
    const ADD: &str = r#"{"ask":"add","namespace":"shop","name":"web","uid":"u-1","netns":"/run/netns/web","inode":4026532,"addresses":["10.0.0.7","fd00::7"]}"#;
    const SHORT: &str = r#"{"ask":"delete","namespace":"shop","name":"web","netns":""}"#;

    fn sandbox() -> Sandbox {
        Sandbox {
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u-1".into(),
            netns: "/run/netns/web".into(),
            inode: 4026532,
            addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        }
    }

    #[test]
    fn a_question_is_on_the_wire_what_it_was_in_the_version_before() {
        assert_eq!(serde_json::to_string(&Ask::Add(sandbox())).unwrap(), ADD);
        for (line, expected) in [
            (ADD, Ask::Add(sandbox())),
            (&ADD.replace("add\"", "check\""), Ask::Check(sandbox())),
            (&ADD.replace("{", r#"{"interface":"eth0","#), Ask::Add(sandbox())),
        ] {
            assert_eq!(serde_json::from_str::<Ask>(line).unwrap(), expected, "{line}");
        }
        let Ask::Delete(short) = serde_json::from_str(SHORT).unwrap() else { panic!("another question") };
        assert_eq!((&*short.uid, short.inode, short.addresses.len()), ("", 0, 0));
    }

    #[test]
    fn an_answer_of_any_version_is_understood() {
        for (line, expected) in [
            (r#"{"error":""}"#, ""),
            (r#"{"error":"not yet"}"#, "not yet"),
            (r#"{"error":"not yet","retryAfter":1}"#, "not yet"),
            ("{}", ""),
        ] {
            assert_eq!(serde_json::from_str::<Answer>(line).unwrap().error, expected, "{line}");
        }
        assert_eq!(serde_json::to_string(&Answer::default()).unwrap(), r#"{"error":""}"#);
    }
}
