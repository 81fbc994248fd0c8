//! An API server of tests, in memory: objects by path, with versions and conflicts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use loam_kube::Client;
use serde_json::{Value, json};

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    asked: Vec<String>,
    forbidden: Vec<String>,
    down: bool,
}

/// The server. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Mutex<State>>);

impl ApiServer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A client of it.
    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (head, body) = request.into_parts();
                let bytes = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
                // Others may come in between a question and its answer.
                tokio::task::yield_now().await;
                let mut state = server.state();
                if state.down {
                    return Err(std::io::ErrorKind::ConnectionRefused.into());
                }
                let (code, answer) = state.answer(&head.method, head.uri.path(), &bytes);
                let body = Body::from(answer.to_string().into_bytes());
                Response::builder().status(code).body(body).map_err(std::io::Error::other)
            }
        });
        Client::new(service, "default")
    }

    /// Has an object.
    pub(crate) fn put(&self, collection: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.state().store(format!("{collection}/{name}"), object);
    }

    /// Has an object no longer.
    pub(crate) fn remove(&self, path: &str) {
        self.state().objects.remove(path).unwrap();
    }

    /// An object, if it is there.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// How often something was asked for whose method and path have this in them.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.state().asked.iter().filter(|asked| asked.contains(part)).count()
    }

    /// Refuses whatever has this in its path.
    pub(crate) fn forbid(&self, part: &str) {
        self.state().forbidden.push(part.to_owned());
    }

    /// Whether nobody can reach it.
    pub(crate) fn set_down(&self, down: bool) {
        self.state().down = down;
    }
}

impl State {
    fn store(&mut self, path: String, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path, object.clone());
        object
    }

    fn answer(&mut self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        self.asked.push(format!("{method} {path}"));
        let status = |code: u16| {
            let reason = match code {
                403 => "Forbidden",
                404 => "NotFound",
                409 => "AlreadyExists",
                _ => "MethodNotAllowed",
            };
            (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": path}))
        };
        if self.forbidden.iter().any(|part| path.contains(part.as_str())) {
            return status(403);
        }
        let sent = || serde_json::from_slice::<Value>(body).unwrap();
        match *method {
            Method::GET => self.objects.get(path).map_or_else(|| status(404), |object| (200, object.clone())),
            Method::POST => {
                let object = sent();
                let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    return status(409);
                }
                (201, self.store(path, object))
            }
            Method::PUT => {
                let object = sent();
                match self.objects.get(path) {
                    None => status(404),
                    Some(old) if old["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] => {
                        status(409)
                    }
                    Some(_) => (200, self.store(path.to_owned(), object)),
                }
            }
            Method::PATCH => {
                let (sent, of_status) = (sent(), path.strip_suffix("/status"));
                let path = of_status.unwrap_or(path);
                let old = self.objects.get(path).cloned();
                let version = sent.pointer("/metadata/resourceVersion").filter(|version| !version.is_null());
                match (old, version) {
                    (None, _) if of_status.is_some() => status(404),
                    (Some(old), Some(version)) if old["metadata"]["resourceVersion"] != *version => status(409),
                    (old, _) => {
                        let mut object = old.unwrap_or_else(|| json!({}));
                        merge(&mut object, sent);
                        (200, self.store(path.to_owned(), object))
                    }
                }
            }
            Method::DELETE => match self.objects.remove(path) {
                None => status(404),
                Some(object) => (200, object),
            },
            _ => status(405),
        }
    }
}

/// RFC 7396.
fn merge(base: &mut Value, patch: Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (field, value) in patch {
                match value {
                    Value::Null => drop(base.remove(&field)),
                    value => merge(base.entry(field).or_insert(Value::Null), value),
                }
            }
        }
        (base, Value::Object(patch)) => {
            *base = json!({});
            merge(base, Value::Object(patch));
        }
        (base, patch) => *base = patch,
    }
}
