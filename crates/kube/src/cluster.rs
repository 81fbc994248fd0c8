//! An API server as one who asks sees it: a question, its answer, a deadline.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Method, Request};
use k8s_openapi::Resource;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::Client;
use loam_rt::explain;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::client::{ClientError, Way, personal_client};
use crate::resource::{escaped, root};

/// How long one answer may take. An API server gives up after a minute itself; a person does earlier.
const DEADLINE: Duration = Duration::from_secs(30);

/// Objects on one page of a list.
const PAGE: usize = 500;

/// Why there is no answer. The text says what was asked and why it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody answered.
    #[error("{0}")]
    Unreachable(String),
    /// The server does not know who asks.
    #[error("{0}")]
    Unauthorized(String),
    /// Who asks may not.
    #[error("{message}")]
    Forbidden {
        /// What was to be done: a verb of Kubernetes and a resource.
        permission: Permission,
        /// What was asked and what the server says.
        message: String,
    },
    /// What was asked for is not there.
    #[error("{0}")]
    Missing(String),
    /// Somebody else says otherwise about the object.
    #[error("{0}")]
    Conflict(String),
    /// The server refuses, or its answer is none.
    #[error("{0}")]
    Refused(String),
}

/// The right to do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// What is done, as `list`.
    pub verb: &'static str,
    /// The API group; empty for the core.
    pub group: &'static str,
    /// What it is done to, as `pods` or `pods/portforward`.
    pub resource: &'static str,
    /// The namespace; all of them when left out.
    pub namespace: Option<String>,
}

/// The version of an API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// All of it, as `v1.33.2`.
    pub text: String,
}

/// An API server that is asked.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) client: Client,
    address: String,
}

impl Cluster {
    /// The cluster that a person means. Nothing is asked yet.
    pub async fn find(way: &Way) -> Result<Self, ClientError> {
        let (client, address) = personal_client(way).await?;
        Ok(Self::of(client, &address))
    }

    /// The cluster of a client, by the address that people know.
    pub fn of(client: Client, address: &str) -> Self {
        Self { client, address: address.to_owned() }
    }

    /// The address of the API server.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The namespace of those who name none.
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// The version of the API server.
    pub async fn version(&self) -> Result<Version, AskError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Info {
            major: String,
            minor: String,
            git_version: String,
        }
        let info: Info = self.ask("get", None, Method::GET, "/version", None).await?;
        // Some clouds add a plus.
        let number = |text: &str| text.trim_end_matches('+').parse().unwrap_or(0);
        Ok(Version { major: number(&info.major), minor: number(&info.minor), text: info.git_version })
    }

    /// One object, or `None` where there is none. A namespace is given for a kind that has one.
    pub async fn get<K>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, AskError>
    where
        K: Resource + DeserializeOwned,
    {
        let path = format!("{}/{}", path::<K>(namespace), escaped(name));
        match self.ask("get", Some(of::<K>("get", namespace)), Method::GET, &path, None).await {
            Ok(object) => Ok(Some(object)),
            Err(AskError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a kind in a namespace, or in all; with `labels` only those that a selector fits.
    pub async fn list<K>(&self, namespace: Option<&str>, labels: Option<&str>) -> Result<Vec<K>, AskError>
    where
        K: Resource + DeserializeOwned,
    {
        self.pages(&path::<K>(namespace), labels, &of::<K>("list", namespace)).await
    }

    /// All objects at a path, as they are written; `None` where the server knows no such path.
    pub async fn list_at(&self, path: &str, permission: &Permission) -> Result<Option<Vec<Value>>, AskError> {
        match self.pages(path, None, permission).await {
            Ok(objects) => Ok(Some(objects)),
            Err(AskError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn pages<T>(&self, path: &str, labels: Option<&str>, permission: &Permission) -> Result<Vec<T>, AskError>
    where
        T: DeserializeOwned,
    {
        #[derive(Deserialize)]
        #[serde(bound(deserialize = "T: DeserializeOwned"))]
        struct Page<T> {
            metadata: ListMeta,
            items: Vec<T>,
        }
        let selector = labels.map(|labels| format!("&labelSelector={}", escaped(labels))).unwrap_or_default();
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let uri = format!("{path}?limit={PAGE}{selector}{next}");
            let page: Page<T> = self.ask("list", Some(permission.clone()), Method::GET, &uri, None).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => next = format!("&continue={}", escaped(&token)),
                None => return Ok(all),
            }
        }
    }

    /// Changes a part of an object, as a merge patch says. With `dry_run` the server only checks it.
    pub async fn patch<K>(
        &self,
        namespace: Option<&str>,
        name: &str,
        change: &Value,
        dry_run: bool,
    ) -> Result<K, AskError>
    where
        K: Resource + DeserializeOwned,
    {
        let dry = if dry_run { "&dryRun=All" } else { "" };
        let uri = format!("{}/{}?fieldManager=loam{dry}", path::<K>(namespace), escaped(name));
        let body = Some(("application/merge-patch+json", change));
        self.ask("patch", Some(of::<K>("patch", namespace)), Method::PATCH, &uri, body).await
    }

    /// Makes an object, or makes it what `object` says. Fields that nobody names any more are taken away, and those that
    /// others want otherwise are a conflict.
    pub async fn apply<K>(&self, namespace: Option<&str>, name: &str, object: &Value) -> Result<K, AskError>
    where
        K: Resource + DeserializeOwned,
    {
        let uri = format!("{}/{}?fieldManager=loam", path::<K>(namespace), escaped(name));
        // JSON is YAML.
        let body = Some(("application/apply-patch+yaml", object));
        self.ask("apply", Some(of::<K>("patch", namespace)), Method::PATCH, &uri, body).await
    }

    /// Removes an object; false where there is none.
    pub async fn delete<K: Resource>(&self, namespace: Option<&str>, name: &str) -> Result<bool, AskError> {
        let path = format!("{}/{}", path::<K>(namespace), escaped(name));
        let right = Some(of::<K>("delete", namespace));
        match self.ask::<Value>("delete", right, Method::DELETE, &path, None).await {
            Ok(_) => Ok(true),
            Err(AskError::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the one who asks has a right.
    pub async fn may(&self, permission: &Permission) -> Result<bool, AskError> {
        let (resource, subresource) = permission.resource.split_once('/').unwrap_or((permission.resource, ""));
        let review = json!({
            "apiVersion": SelfSubjectAccessReview::API_VERSION,
            "kind": SelfSubjectAccessReview::KIND,
            "spec": {"resourceAttributes": {
                "verb": permission.verb,
                "group": permission.group,
                "resource": resource,
                "subresource": subresource,
                "namespace": permission.namespace.as_deref().unwrap_or_default(),
            }},
        });
        let path = path::<SelfSubjectAccessReview>(None);
        let right = of::<SelfSubjectAccessReview>("create", None);
        let body = Some(("application/json", &review));
        let review: SelfSubjectAccessReview = self.ask("create", Some(right), Method::POST, &path, body).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        verb: &str,
        permission: Option<Permission>,
        method: Method,
        uri: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<T, AskError> {
        let what = format!("{verb} {}", uri.split_once('?').map_or(uri, |(path, _)| path));
        let request = Request::builder().method(method).uri(uri);
        let request = match body {
            None => request.body(Vec::new()),
            Some((kind, value)) => request.header(CONTENT_TYPE, kind).body(value.to_string().into_bytes()),
        };
        let request = request.map_err(|error| AskError::Refused(format!("{what}: {error}")))?;
        match tokio::time::timeout(DEADLINE, self.client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failure(&what, permission, &error)),
            Err(_) => Err(AskError::Unreachable(format!("{what}: no answer within {} s", DEADLINE.as_secs()))),
        }
    }
}

/// What a failed question means for the one who asked.
pub(crate) fn failure(what: &str, permission: Option<Permission>, error: &kube::Error) -> AskError {
    let told = |message: &str| format!("{what}: {message}");
    match error {
        kube::Error::Api(status) => match (status.code, permission) {
            (401, _) => AskError::Unauthorized(told(&status.message)),
            (403, Some(permission)) => AskError::Forbidden { permission, message: told(&status.message) },
            (404, _) => AskError::Missing(told(&status.message)),
            (409, _) => AskError::Conflict(told(&status.message)),
            (code, _) => AskError::Refused(told(&format!("the API server answers {code}: {}", status.message))),
        },
        kube::Error::Auth(error) => AskError::Unauthorized(told(&explain(error))),
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
            AskError::Refused(told(&format!("the answer cannot be read: {}", explain(error))))
        }
        kube::Error::Service(error) => AskError::Unreachable(told(&explain(&**error))),
        other => AskError::Unreachable(told(&explain(other))),
    }
}

fn path<K: Resource>(namespace: Option<&str>) -> String {
    let (root, segment) = (root(K::API_VERSION), K::URL_PATH_SEGMENT);
    match namespace {
        Some(namespace) => format!("{root}/namespaces/{}/{segment}", escaped(namespace)),
        None => format!("{root}/{segment}"),
    }
}

fn of<K: Resource>(verb: &'static str, namespace: Option<&str>) -> Permission {
    Permission { verb, group: K::GROUP, resource: K::URL_PATH_SEGMENT, namespace: namespace.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DaemonSet;
    use k8s_openapi::api::core::v1::{Namespace, Pod};

    use super::*;

    #[test]
    fn objects_have_their_paths() {
        assert_eq!(path::<Pod>(None), "/api/v1/pods");
        assert_eq!(path::<Namespace>(None), "/api/v1/namespaces");
        assert_eq!(path::<DaemonSet>(Some("istio-system")), "/apis/apps/v1/namespaces/istio-system/daemonsets");
    }
}
