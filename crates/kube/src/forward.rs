//! A question to a program inside a pod, through the API server and the pod's node.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use loam_rt::explain;

use crate::cluster::{AskError, Cluster, Permission, failure};

/// How long a program may take, with all that lies between.
const DEADLINE: Duration = Duration::from_secs(60);

/// Largest answer: the mesh of some hundred thousand workloads.
pub const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Why a program in a pod did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The API server did not carry the question there.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It did, and nobody listens or what came back is no HTTP.
    #[error("{0}")]
    Silent(String),
    /// The program answers that it will not.
    #[error("{what}: the answer is {status}: {text}")]
    Status {
        /// What was asked.
        what: String,
        /// The status of the answer.
        status: StatusCode,
        /// Its text.
        text: String,
    },
}

impl Cluster {
    /// Asks a program on `port` of a pod's loopback for `path` (HTTP GET), as `kubectl port-forward` would.
    pub async fn fetch(&self, namespace: &str, pod: &str, port: u16, path: &str) -> Result<Bytes, ForwardError> {
        let what = format!("get {path} from port {port} of pod {namespace}/{pod}");
        match tokio::time::timeout(DEADLINE, self.carried(&what, namespace, pod, port, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(ForwardError::Silent(format!("{what}: no answer within {} s", DEADLINE.as_secs()))),
        }
    }

    async fn carried(
        &self,
        what: &str,
        namespace: &str,
        pod: &str,
        port: u16,
        path: &str,
    ) -> Result<Bytes, ForwardError> {
        let permission = Permission {
            verb: "create",
            group: "",
            resource: "pods/portforward",
            namespace: Some(namespace.to_owned()),
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut forward = match pods.portforward(pod, &[port]).await {
            Ok(forward) => forward,
            Err(error) => return Err(refusal(what, permission, &error).into()),
        };
        let silent = |why: &str| ForwardError::Silent(format!("{what}: {why}"));
        let (Some(stream), Some(trouble)) = (forward.take_stream(port), forward.take_error(port)) else {
            return Err(silent("the API server forwards no port"));
        };
        tokio::select! {
            // What the node says about the port explains a broken answer.
            biased;
            Some(why) = trouble => Err(silent(&why)),
            answer = exchange(what, TokioIo::new(stream), path) => answer,
        }
    }
}

/// A server that refuses to switch protocols gives no more than a status.
fn refusal(what: &str, permission: Permission, error: &kube::Error) -> AskError {
    let kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(status)) = error else {
        return failure(what, Some(permission), error);
    };
    match *status {
        StatusCode::UNAUTHORIZED => AskError::Unauthorized(format!("{what}: the API server does not know who asks")),
        StatusCode::FORBIDDEN => AskError::Forbidden { permission, message: format!("{what}: forbidden") },
        StatusCode::NOT_FOUND => AskError::Missing(format!("{what}: there is no such pod")),
        status => AskError::Refused(format!("{what}: the API server answers {status}")),
    }
}

async fn exchange<S>(what: &str, stream: S, path: &str) -> Result<Bytes, ForwardError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let silent = |error: &dyn std::error::Error| ForwardError::Silent(format!("{what}: {}", explain(error)));
    let (mut sender, connection) = http1::handshake(stream).await.map_err(|e| silent(&e))?;
    // The name that a server on loopback accepts.
    let request = Request::get(path).header(http::header::HOST, "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|e| silent(&e))?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|e| silent(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| silent(&*error))?.to_bytes();
        match status.is_success() {
            true => Ok(body),
            false => Err(ForwardError::Status {
                what: what.to_owned(),
                status,
                text: String::from_utf8_lossy(&body).trim_end().to_owned(),
            }),
        }
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => match ended {
            // What has arrived is still there to be read.
            Ok(()) => answer.await,
            Err(error) => Err(silent(&error)),
        },
    }
}
