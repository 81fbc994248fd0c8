//! What a watch says, one event a line, and what other answers say as a whole.

use http_body_util::{BodyExt, Limited};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::client::Body;
use kube::core::WatchEvent;
use loam_manifest::Kind;
use loam_rt::explain;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::resource::plural;
use crate::trouble::Trouble;

/// Largest answer to a list: a page of objects of a size that nobody sees in practice.
const MAX_ANSWER_BYTES: usize = 128 << 20;

/// Longest event: several times the largest object that an API server keeps.
const MAX_EVENT_BYTES: usize = 8 << 20;

/// The events of one watch.
pub(crate) struct Events {
    kind: Kind,
    body: Body,
    read: Vec<u8>,
    /// How much of what was read has no end of a line.
    searched: usize,
}

impl Events {
    /// The events in an answer; a refusal is a trouble.
    pub(crate) async fn of(kind: Kind, answer: http::Response<Body>) -> Result<Self, Trouble> {
        let code = answer.status();
        let mut events = Self { kind, body: answer.into_body(), read: Vec::new(), searched: 0 };
        if code.is_success() {
            return Ok(events);
        }
        while events.more().await? {}
        Err(refused("watch", kind, code, &events.read))
    }

    /// The next event; `None` when the watch has ended. Nothing is lost when the wait is given up.
    pub(crate) async fn next(&mut self) -> Result<Option<WatchEvent<Value>>, Trouble> {
        loop {
            match self.read[self.searched..].iter().position(|byte| *byte == b'\n') {
                Some(at) => {
                    let line: Vec<u8> = self.read.drain(..=self.searched + at).collect();
                    self.searched = 0;
                    let event = serde_json::from_slice(&line);
                    return event.map(Some).map_err(|e| self.failed(&format!("an event cannot be read: {e}")));
                }
                None => self.searched = self.read.len(),
            }
            // Half a line at the end is a connection that broke off; the version before it is where to go on.
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// Reads on. False at the end.
    async fn more(&mut self) -> Result<bool, Trouble> {
        if self.read.len() > MAX_EVENT_BYTES {
            return Err(self.failed(&format!("an event is larger than {} MiB", MAX_EVENT_BYTES >> 20)));
        }
        match self.body.frame().await {
            None => Ok(false),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.read.extend_from_slice(data);
                }
                Ok(true)
            }
            Some(Err(e)) => Err(Trouble::of("watch", self.kind, &e)),
        }
    }

    fn failed(&self, why: &str) -> Trouble {
        Trouble::Failed(format!("watch {}: {why}", plural(self.kind)))
    }
}

/// What an answer to a list says; a refusal is a trouble.
pub(crate) async fn whole<T: DeserializeOwned>(kind: Kind, answer: http::Response<Body>) -> Result<T, Trouble> {
    let code = answer.status();
    let failed = |why: String| Trouble::Failed(format!("list {}: {why}", plural(kind)));
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|e| failed(explain(&*e)))?.to_bytes();
    match code.is_success() {
        true => serde_json::from_slice(&body).map_err(|e| failed(format!("the answer cannot be read: {e}"))),
        false => Err(refused("list", kind, code, &body)),
    }
}

fn refused(verb: &str, kind: Kind, code: http::StatusCode, body: &[u8]) -> Trouble {
    let message = serde_json::from_slice::<Status>(body).ok().and_then(|status| status.message);
    Trouble::of_status(verb, kind, code.as_u16(), message.as_deref().unwrap_or("it does not say why"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn events(text: &str) -> (usize, Result<(), Trouble>) {
        let answer = http::Response::new(Body::from(text.as_bytes().to_vec()));
        let Ok(mut events) = Events::of(Kind::Pod, answer).await else { panic!("it is no refusal") };
        let mut count = 0;
        loop {
            match events.next().await {
                Ok(Some(_)) => count += 1,
                Ok(None) => return (count, Ok(())),
                Err(trouble) => return (count, Err(trouble)),
            }
        }
    }

    #[tokio::test]
    async fn every_line_is_an_event_and_half_a_line_is_none() {
        let event = "{\"type\":\"ADDED\",\"object\":{}}\n";
        assert!(matches!(events(&event.repeat(3)).await, (3, Ok(()))));
        assert!(matches!(events(&format!("{event}{{\"type\":")).await, (1, Ok(()))));
        assert!(matches!(events(&format!("{event}nonsense\n{event}")).await, (1, Err(Trouble::Failed(_)))));
        let endless = " ".repeat(MAX_EVENT_BYTES + 1);
        assert!(matches!(events(&endless).await, (0, Err(Trouble::Failed(why))) if why.contains("larger than 8 MiB")));
    }
}
