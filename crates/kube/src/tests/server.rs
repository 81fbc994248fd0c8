//! An API server in memory: lists in pages, watches, and whatever an answer may be instead.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

type Lines = mpsc::UnboundedSender<String>;
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What is answered.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// What is true.
    Honest,
    /// A status with a message.
    Status(u16, &'static str),
    /// No connection.
    Refused,
}

#[derive(Default)]
struct State {
    /// Objects by path and name.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    /// Paths that are there beside those of the core.
    known: BTreeSet<String>,
    watches: Vec<(String, Lines)>,
    /// Watches that nothing comes through any more.
    stalled: Vec<Lines>,
    /// By a part of what is asked, the last that fits.
    answers: Vec<(String, Reply)>,
    /// Versions below are forgotten.
    oldest: u64,
    asked: Vec<String>,
}

/// The server. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Server {
    state: Arc<Mutex<State>>,
    moved: watch::Sender<()>,
}

/// An object in its namespace.
pub(super) fn object(name: &str, version: u64) -> Value {
    let metadata = json!({"name": name, "namespace": "shop", "resourceVersion": version.to_string()});
    json!({"metadata": metadata, "spec": {}})
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A client of it.
    pub(super) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = server.serve(request.uri().path_and_query().unwrap().as_str());
            server.moved.send_replace(());
            std::future::ready(answer)
        });
        Client::new(service, "default")
    }

    /// Has a kind that not every cluster has.
    pub(super) fn know(&self, path: &str) {
        self.state().known.insert(path.to_owned());
    }

    /// Has an object, new or different.
    pub(super) fn put(&self, path: &str, object: Value) {
        let mut state = self.state();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let old = state.objects.entry(path.to_owned()).or_default().insert(name, object.clone());
        state.tell(path, if old.is_some() { "MODIFIED" } else { "ADDED" }, &object);
    }

    /// Has an object no longer.
    pub(super) fn remove(&self, path: &str, name: &str) {
        let mut state = self.state();
        let object = state.objects.get_mut(path).and_then(|all| all.remove(name)).unwrap();
        state.tell(path, "DELETED", &object);
    }

    /// Does something that no watch tells.
    pub(super) fn unheard(&self, work: impl FnOnce(&Self)) {
        let watches = std::mem::take(&mut self.state().watches);
        work(self);
        self.state().watches = watches;
    }

    /// Tells how far watches have come.
    pub(super) fn bookmark(&self, path: &str, version: u64) {
        let mark = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}});
        self.state().tell(path, "BOOKMARK", &mark);
    }

    /// Ends all watches, as when their time is over.
    pub(super) fn end_watches(&self) {
        self.state().watches.clear();
    }

    /// Nothing comes through the open watches any more, and they do not end.
    pub(super) fn stall(&self) {
        let mut state = self.state();
        let watches = std::mem::take(&mut state.watches);
        state.stalled.extend(watches.into_iter().map(|(_, lines)| lines));
    }

    /// Forgets every version so far, and tells the watches so.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.oldest = 100;
        let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"});
        for (_, lines) in state.watches.drain(..) {
            let _ = lines.send(json!({"type": "ERROR", "object": gone}).to_string() + "\n");
        }
    }

    /// Answers otherwise to what has `part` in it.
    pub(super) fn answer(&self, part: &str, reply: Reply) {
        self.state().answers.push((part.to_owned(), reply));
    }

    /// All that was asked.
    pub(super) fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    /// How many pages of lists were asked for.
    pub(super) fn lists(&self, path: &str) -> usize {
        self.state().asked.iter().filter(|uri| uri.starts_with(path) && !uri.contains("watch=")).count()
    }

    /// Waits until somebody watches.
    pub(super) async fn until_watched(&self, path: &str) {
        self.until(|state| state.watches.iter().any(|(p, _)| p == path)).await;
    }

    /// Waits until something was asked so often.
    pub(super) async fn until_asked(&self, part: &str, times: usize) {
        self.until(|state| state.asked.iter().filter(|uri| uri.contains(part)).count() >= times).await;
    }

    async fn until(&self, is: impl Fn(&State) -> bool) {
        let mut moved = self.moved.subscribe();
        while !is(&self.state()) {
            moved.changed().await.unwrap();
        }
    }

    fn serve(&self, uri: &str) -> Result<Answer, std::io::Error> {
        let mut state = self.state();
        state.asked.push(uri.to_owned());
        let told = state.answers.iter().rev().find(|(part, _)| uri.contains(part.as_str()));
        match told.map_or(Reply::Honest, |(_, reply)| reply.clone()) {
            Reply::Honest => Ok(state.honest(uri)),
            Reply::Status(code, message) => Ok(status(code, message)),
            Reply::Refused => Err(std::io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

impl State {
    fn tell(&mut self, path: &str, what: &str, object: &Value) {
        let line = json!({"type": what, "object": object}).to_string() + "\n";
        self.watches.retain(|(watched, lines)| watched != path || lines.send(line.clone()).is_ok());
    }

    fn honest(&mut self, uri: &str) -> Answer {
        let (path, query) = uri.split_once('?').unwrap();
        let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        if !path.starts_with("/api/") && !self.known.contains(path) {
            return status(404, "the server could not find the requested resource");
        }
        if query.contains_key("watch") {
            return self.watch(path, query["resourceVersion"].parse().unwrap());
        }
        let all: Vec<_> = self.objects.get(path).into_iter().flat_map(BTreeMap::values).cloned().collect();
        let newest = all.iter().filter_map(|o| o["metadata"]["resourceVersion"].as_str()?.parse().ok()).max();
        let version = newest.unwrap_or(1).max(self.oldest);
        let from = query.get("continue").map_or(0, |token| token.parse::<usize>().unwrap());
        let to = all.len().min(from + query["limit"].parse::<usize>().unwrap());
        let more = if to < all.len() { to.to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": version.to_string(), "continue": more});
        whole(200, &json!({"metadata": metadata, "items": all[from..to]}))
    }

    /// What is newer than `version` comes at once.
    fn watch(&mut self, path: &str, version: u64) -> Answer {
        if version < self.oldest {
            return status(410, "too old resource version");
        }
        let (lines, told) = mpsc::unbounded_channel::<String>();
        for object in self.objects.get(path).into_iter().flat_map(BTreeMap::values) {
            if object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > version {
                lines.send(json!({"type": "ADDED", "object": object}).to_string() + "\n").unwrap();
            }
        }
        self.watches.push((path.to_owned(), lines));
        let told = stream::unfold(told, async |mut told| told.recv().await.map(|line| (line, told)));
        let frames = told.map(|line| Ok(hyper::body::Frame::data(Bytes::from(line))));
        Response::new(UnsyncBoxBody::new(StreamBody::new(frames)))
    }
}

fn status(code: u16, message: &str) -> Answer {
    whole(code, &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}))
}

fn whole(code: u16, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string()));
    Response::builder().status(code).body(UnsyncBoxBody::new(body.boxed_unsync())).unwrap()
}
