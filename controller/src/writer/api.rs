//! The API server as the writer speaks to it.

use std::time::Duration;

use http::{Method, Request};
use loam_kube::Client;
use loam_manifest::Key;
use loam_rt::explain;
use serde_json::{Value, json};
use tokio::time::timeout;

/// How long one question may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Who we are among those who apply fields.
const MANAGER: &str = "loam-controller";

/// Why something was not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Somebody else wrote in between, or the object is newer than what we know of it.
    Outrun,
    /// It is not there.
    Absent,
    /// What was tried, and why it failed.
    Failed(String),
}

#[derive(Clone)]
pub(super) struct Api(Client);

impl Api {
    pub(super) fn new(client: Client) -> Self {
        Self(client)
    }

    /// An object, if it is there.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Value>, Trouble> {
        match self.ask(Method::GET, path, "", None).await {
            Ok(object) => Ok(Some(object)),
            Err(Trouble::Absent) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// Makes an object.
    pub(super) async fn create(&self, collection: &str, object: &Value) -> Result<Value, Trouble> {
        self.ask(Method::POST, collection, "application/json", Some(object)).await
    }

    /// Makes the fields of an object what they are here, whoever had them.
    pub(super) async fn apply(&self, path: &str, object: &Value) -> Result<Value, Trouble> {
        let path = format!("{path}?fieldManager={MANAGER}&force=true");
        self.ask(Method::PATCH, &path, "application/apply-patch+yaml", Some(object)).await
    }

    /// Deletes an object that is what it was.
    pub(super) async fn delete(&self, path: &str) -> Result<(), Trouble> {
        match self.ask(Method::DELETE, path, "", None).await {
            Ok(_) | Err(Trouble::Absent) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    /// Writes the fields of an object's status that `wished` gives, from the status that is there. Nothing is written if
    /// they are so already, and nothing about another version of the object than `generation`. Returns the object as it was
    /// if something was written.
    pub(super) async fn status(
        &self,
        key: &Key,
        generation: Option<i64>,
        wished: impl Fn(Option<&Value>, &str) -> Value,
    ) -> Result<Option<Value>, Trouble> {
        let Some((path, object)) = self.find(key).await? else { return Ok(None) };
        let version = object.pointer("/metadata/generation").and_then(Value::as_i64);
        if generation.is_some() && version > generation {
            return Err(Trouble::Outrun);
        }
        let current = object.get("status");
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let wished = wished(current, &now);
        let same = |(field, value): (&String, &Value)| {
            let nothing = value.as_array().is_some_and(Vec::is_empty);
            current.and_then(|current| current.get(field)).map_or(nothing, |current| current == value)
        };
        if wished.as_object().into_iter().flatten().all(same) {
            return Ok(None);
        }
        // The version goes along: whoever wrote in between wins.
        let patch = json!({
            "metadata": {"resourceVersion": object.pointer("/metadata/resourceVersion")},
            "status": wished,
        });
        let path = format!("{path}/status");
        match self.ask(Method::PATCH, &path, "application/merge-patch+json", Some(&patch)).await {
            Ok(_) => Ok(Some(object)),
            Err(Trouble::Absent) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// An object in the newest version of its kind that the server knows.
    async fn find(&self, key: &Key) -> Result<Option<(String, Value)>, Trouble> {
        for api_version in key.kind.api_versions() {
            let path = loam_kube::object_path(key, api_version);
            if let Some(object) = self.get(&path).await? {
                return Ok(Some((path, object)));
            }
        }
        Ok(None)
    }

    async fn ask(&self, method: Method, path: &str, content: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        let what = || format!("{method} {}", path.split('?').next().unwrap_or(path));
        let failed = |why: String| Trouble::Failed(format!("{}: {why}", what()));
        let mut request = Request::builder().method(method.clone()).uri(path);
        if body.is_some() {
            request = request.header("content-type", content);
        }
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = request.body(bytes).map_err(|e| failed(e.to_string()))?;
        match timeout(DEADLINE, self.0.request::<Value>(request)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Trouble::Absent),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Trouble::Outrun),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(failed(format!(
                "forbidden; a ClusterRole of this program's service account must allow it: {}",
                status.message
            ))),
            Ok(Err(error)) => Err(failed(explain(&error))),
            Err(_) => Err(failed(format!("no answer within {} s", DEADLINE.as_secs()))),
        }
    }
}
