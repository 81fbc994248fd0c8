//! An API server in memory: objects, merge patches, applied objects, reviews of rights, and ports forwarded to real
//! sockets.

pub(crate) mod cluster;
mod forward;
pub(crate) mod proxy;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub(crate) type Answer = Response<Full<Bytes>>;

/// Where an object is kept: what comes before the plural of its kind, the plural, its namespace, its name.
type Place = (String, String, Option<String>, String);

#[derive(Default)]
struct State {
    objects: BTreeMap<Place, Value>,
    /// Ports of pods, and where they really are.
    ports: BTreeMap<(String, u16), SocketAddr>,
    /// Verb and resource of what nobody may do.
    forbidden: Vec<(String, String)>,
    /// Whether nobody is known.
    closed: bool,
    /// Whether the nodes do what the labels of namespaces say.
    agents: bool,
    /// What the controller says about the latest version of each Gateway that is applied.
    told: Vec<Value>,
    version: (u32, u32),
}

/// The server. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) fn new() -> Self {
        let server = Self::default();
        server.state().version = (1, 34);
        server.state().agents = true;
        server
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an object.
    pub(crate) fn put(&self, object: Value) {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let version = text(&object["apiVersion"]).unwrap();
        let root = format!("/{}/{version}", if version.contains('/') { "apis" } else { "api" });
        let plural = match object["kind"].as_str().unwrap().to_lowercase() {
            kind if kind.ends_with('s') => kind + "es",
            kind if kind.ends_with("cy") => kind.trim_end_matches('y').to_owned() + "ies",
            kind => kind + "s",
        };
        let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]).unwrap());
        self.state().objects.insert((root, plural, namespace, name), object);
    }

    /// Answers on a port of a pod with what listens at an address.
    pub(crate) fn forward(&self, pod: &str, port: u16, to: SocketAddr) {
        self.state().ports.insert((pod.to_owned(), port), to);
    }

    /// Lets nobody do something.
    pub(crate) fn forbid(&self, verb: &str, resource: &str) {
        self.state().forbidden.push((verb.to_owned(), resource.to_owned()));
    }

    /// Knows nobody.
    pub(crate) fn close(&self) {
        self.state().closed = true;
    }

    /// Has a version.
    pub(crate) fn has_version(&self, major: u32, minor: u32) {
        self.state().version = (major, minor);
    }

    /// The nodes do nothing any more.
    pub(crate) fn stop_agents(&self) {
        self.state().agents = false;
    }

    /// Knows a kind, also while there are no objects of it.
    pub(crate) fn knows(&self, plural: &str, group: &str) {
        let names = json!({"kind": "Any", "plural": plural});
        let spec = json!({"group": group, "names": names, "scope": "Namespaced", "versions": []});
        self.put(json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")}, "spec": spec,
        }));
    }

    /// The controller says so about Gateways that are applied: type, status, reason and message of conditions.
    pub(crate) fn tells(&self, conditions: &[[&str; 4]]) {
        let condition = |[kind, status, reason, message]: &[&str; 4]| {
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                   "lastTransitionTime": "2026-01-02T03:04:05Z"})
        };
        self.state().told = conditions.iter().map(condition).collect();
    }

    /// The labels of a namespace.
    pub(crate) fn labels(&self, namespace: &str) -> Value {
        let place = ("/api/v1".to_owned(), "namespaces".to_owned(), None, namespace.to_owned());
        self.state().objects[&place]["metadata"]["labels"].clone()
    }

    /// Begins to serve; gives the address.
    pub(crate) async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                let service = service_fn(move |request| server.clone().answer(request));
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection.with_upgrades());
            }
        });
        address
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        if self.state().closed {
            return Ok(status(401, "Unauthorized", "Unauthorized"));
        }
        let path = request.uri().path().to_owned();
        if let Some(pod) = path.strip_suffix("/portforward").and_then(|path| path.rsplit('/').next()) {
            if self.is_forbidden("create", "pods/portforward") {
                return Ok(forbidden("create", "pods/portforward"));
            }
            return Ok(forward::upgrade(&self, pod, request));
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default();
        Ok(match (&parts.method, path.as_str()) {
            (_, "/version") => {
                let (major, minor) = self.state().version;
                let text = format!("v{major}.{minor}.1");
                whole(200, &json!({"major": major.to_string(), "minor": minor.to_string(), "gitVersion": text}))
            }
            (&Method::POST, path) if path.ends_with("/selfsubjectaccessreviews") => self.review(body),
            (method, path) => {
                let applied =
                    parts.headers.get("content-type").is_some_and(|kind| kind == "application/apply-patch+yaml");
                self.object(method, path, query, &body, applied)
            }
        })
    }

    fn is_forbidden(&self, verb: &str, resource: &str) -> bool {
        self.state().forbidden.iter().any(|(v, r)| v == verb && r == resource)
    }

    fn review(&self, mut review: Value) -> Answer {
        let asked = review["spec"]["resourceAttributes"].clone();
        let text = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
        let resource = match text("subresource").as_str() {
            "" => text("resource"),
            sub => format!("{}/{sub}", text("resource")),
        };
        review["status"] = json!({"allowed": !self.is_forbidden(&text("verb"), &resource)});
        whole(201, &review)
    }

    fn object(&self, method: &Method, path: &str, query: &str, body: &Value, applied: bool) -> Answer {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (root, rest) = parts.split_at(if parts[0] == "api" { 2 } else { 3 });
        let root = format!("/{}", root.join("/"));
        let (namespace, plural, name) = match rest {
            [plural] => (None, *plural, None),
            ["namespaces", name] => (None, "namespaces", Some(*name)),
            ["namespaces", namespace, plural] => (Some(*namespace), *plural, None),
            ["namespaces", namespace, plural, name] => (Some(*namespace), *plural, Some(*name)),
            [plural, name] => (None, *plural, Some(*name)),
            _ => return status(404, "NotFound", "the server could not find the requested resource"),
        };
        let verb = match (method, name) {
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, _) => "delete",
            (_, Some(_)) => "get",
            (_, None) => "list",
        };
        if self.is_forbidden(verb, plural) {
            return forbidden(verb, plural);
        }
        let Some(name) = name else { return self.list(&root, plural, namespace, query) };
        let place = (root, plural.to_owned(), namespace.map(str::to_owned), name.to_owned());
        let mut state = self.state();
        if applied {
            return state.apply(place, body);
        }
        let Some(object) = state.objects.get(&place).cloned() else {
            return status(404, "NotFound", &format!("{plural} \"{name}\" not found"));
        };
        match *method {
            Method::DELETE => {
                state.objects.remove(&place);
                return whole(200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}));
            }
            Method::PATCH => {}
            _ => return whole(200, &object),
        }
        let mut changed = object;
        merge(&mut changed, body);
        if !query.contains("dryRun=All") {
            state.objects.insert(place, changed.clone());
            if plural == "namespaces" && state.agents {
                state.capture(name, changed["metadata"]["labels"]["istio.io/dataplane-mode"] == "ambient");
            }
        }
        whole(200, &changed)
    }

    fn list(&self, root: &str, plural: &str, namespace: Option<&str>, query: &str) -> Answer {
        let state = self.state();
        if !state.knows(root, plural) {
            return status(404, "NotFound", "the server could not find the requested resource");
        }
        let selector = query.split('&').find_map(|pair| pair.strip_prefix("labelSelector="));
        let selector = selector.map(|text| text.replace("%3D", "=").replace("%2F", "/")).unwrap_or_default();
        let fits = |object: &Value| match selector.split_once('=') {
            _ if selector.is_empty() => true,
            Some((label, value)) => object["metadata"]["labels"][label] == value,
            None => object["metadata"]["labels"][selector.as_str()].is_string(),
        };
        let here = |place: &Place| {
            place.0 == root && place.1 == plural && namespace.is_none_or(|n| place.2.as_deref() == Some(n))
        };
        let items: Vec<_> = state.objects.iter().filter(|(p, o)| here(p) && fits(o)).map(|(_, o)| o).collect();
        whole(200, &json!({"metadata": {"resourceVersion": "1"}, "items": items}))
    }
}

impl State {
    fn knows(&self, root: &str, plural: &str) -> bool {
        let built_in = ["/api/v1", "/apis/apps/v1", "/apis/apiextensions.k8s.io/v1"].contains(&root);
        let group = root.split('/').nth(2).unwrap_or_default();
        let defined = |(place, object): (&Place, &Value)| {
            (place.0 == root && place.1 == plural)
                || (object["spec"]["names"]["plural"] == plural && object["spec"]["group"] == group)
        };
        built_in || self.objects.iter().any(defined)
    }

    /// Makes an object what its only manager says of it, and what the controller says of that.
    fn apply(&mut self, place: Place, body: &Value) -> Answer {
        if !self.knows(&place.0, &place.1) {
            return status(404, "NotFound", "the server could not find the requested resource");
        }
        let generation =
            self.objects.get(&place).map_or(0, |object| object["metadata"]["generation"].as_i64().unwrap());
        let mut object = body.clone();
        object["metadata"]["generation"] = json!(generation + 1);
        let mut conditions = json!(self.told);
        for condition in conditions.as_array_mut().unwrap() {
            condition["observedGeneration"] = json!(generation + 1);
        }
        object["status"] = json!({"conditions": conditions});
        self.objects.insert(place, object.clone());
        whole(200, &object)
    }

    /// What the agents of the nodes do when a namespace is enrolled or leaves.
    fn capture(&mut self, namespace: &str, enrolled: bool) {
        for ((_, plural, of, _), pod) in &mut self.objects {
            let may =
                pod["spec"]["hostNetwork"] != true && pod["metadata"]["labels"]["istio.io/dataplane-mode"].is_null();
            if plural == "pods" && of.as_deref() == Some(namespace) && may {
                let value = if enrolled { json!("enabled") } else { json!(null) };
                merge(pod, &json!({"metadata": {"annotations": {"ambient.istio.io/redirection": value}}}));
                pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
            }
        }
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        match value.is_null() {
            true => drop(target.remove(key)),
            false => merge(target.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

fn forbidden(verb: &str, resource: &str) -> Answer {
    let message = format!("{resource} is forbidden: User \"jane\" cannot {verb} resource \"{resource}\"");
    status(403, "Forbidden", &message)
}

pub(crate) fn status(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
    });
    whole(code, &status)
}

fn whole(code: u16, value: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap();
    answer
}
