//! What a waypoint is made of on Kubernetes: pure, from its Gateway to the objects to be applied.
//!
//! The names and labels are Istio's, so that tools and dashboards find them.

mod overlay;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::resource::Name;
use crate::resource::gateway::{Gateway, HBONE_PORT};
use crate::resource::use_waypoint::GATEWAY_NAME;

pub use overlay::OverlayError;

/// Names the class on everything that is made.
const CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Says who made it.
pub const MANAGED: (&str, &str) = ("gateway.istio.io/managed", "istio.io-mesh-controller");

/// Seconds for which a waypoint that was asked to end may carry on what it carries.
const GRACE_SECONDS: u32 = 30;
/// So many of them it takes by itself, before it is killed.
const DRAIN_SECONDS: u32 = 25;

/// How waypoints are made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Image of the program.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// Secrets for the registry of the image.
    pub pull_secrets: Vec<String>,
    /// Where the controller serves, as `host:port`.
    pub control_plane: String,
    /// What all proxies are told: name and value of environment variables.
    pub env: Vec<(String, String)>,
}

/// An object to be applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its place in the API, without its name.
    pub collection: String,
    /// The object.
    pub object: Value,
}

/// The parts of a waypoint, in the order in which they are to be applied. `overlays` are the texts of the ConfigMap that
/// the Gateway names, by key.
pub fn parts(
    name: &Name,
    gateway: &Gateway,
    template: &Template,
    overlays: &BTreeMap<String, String>,
) -> Result<Vec<Part>, OverlayError> {
    let known = ["deployment", "horizontalPodAutoscaler", "podDisruptionBudget", "service", "serviceAccount"];
    if let Some(key) = overlays.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(OverlayError::Unknown(key.clone()));
    }
    let make = Maker { name, gateway, template };
    let overlay = |key: &'static str, object: Value| overlay::apply(key, object, overlays.get(key).map(String::as_str));
    let is_scaled = overlays.contains_key("horizontalPodAutoscaler");
    let deployment = overlay("deployment", make.deployment(is_scaled))?;
    let several = deployment.pointer("/spec/replicas").and_then(Value::as_u64).is_some_and(|replicas| replicas > 1);
    let mut parts = vec![
        make.part("/api/v1", "serviceaccounts", overlay("serviceAccount", make.account())?),
        make.part("/apis/apps/v1", "deployments", deployment),
        make.part("/api/v1", "services", overlay("service", make.service())?),
    ];
    if several || is_scaled || overlays.contains_key("podDisruptionBudget") {
        let budget = overlay("podDisruptionBudget", make.budget())?;
        parts.push(make.part("/apis/policy/v1", "poddisruptionbudgets", budget));
    }
    if is_scaled {
        let autoscaler = overlay("horizontalPodAutoscaler", make.autoscaler())?;
        parts.push(make.part("/apis/autoscaling/v2", "horizontalpodautoscalers", autoscaler));
    }
    Ok(parts)
}

/// The collections in which parts may be that are not there in every waypoint.
pub fn optional_collections(namespace: &str) -> [String; 2] {
    [
        format!("/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"),
        format!("/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"),
    ]
}

struct Maker<'a> {
    name: &'a Name,
    gateway: &'a Gateway,
    template: &'a Template,
}

impl Maker<'_> {
    fn part(&self, root: &str, plural: &str, object: Value) -> Part {
        Part { collection: format!("{root}/namespaces/{}/{plural}", self.name.namespace), object }
    }

    /// Labels of what is made; those of the Gateway's infrastructure beside ours.
    fn labels(&self) -> BTreeMap<&str, &str> {
        let infrastructure = self.gateway.infrastructure.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        infrastructure.chain([(GATEWAY_NAME, &*self.name.name), (CLASS_NAME, &*self.gateway.class), MANAGED]).collect()
    }

    fn selector(&self) -> Value {
        json!({ GATEWAY_NAME: &*self.name.name })
    }

    fn object(&self, api_version: &str, kind: &str, spec: Option<Value>) -> Value {
        let mut object = json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {
                "name": &*self.name.name,
                "namespace": &*self.name.namespace,
                "labels": self.labels(),
                "annotations": self.gateway.infrastructure.annotations,
                "ownerReferences": [{
                    "apiVersion": "gateway.networking.k8s.io/v1",
                    "kind": "Gateway",
                    "name": &*self.name.name,
                    "uid": &*self.gateway.uid,
                }],
            },
        });
        if let Some(spec) = spec {
            object["spec"] = spec;
        }
        object
    }

    fn account(&self) -> Value {
        self.object("v1", "ServiceAccount", None)
    }

    fn service(&self) -> Value {
        let ports = json!([
            {"name": "status-port", "port": 15021, "protocol": "TCP", "appProtocol": "http"},
            {"name": "mesh", "port": HBONE_PORT, "protocol": "TCP", "appProtocol": "hbone"},
        ]);
        let spec = json!({
            "type": "ClusterIP",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": self.selector(),
            "ports": ports,
        });
        let mut service = self.object("v1", "Service", Some(spec));
        let distribution = "networking.istio.io/traffic-distribution";
        if let Some(annotations) = service.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            annotations.entry(distribution).or_insert_with(|| json!("PreferClose"));
        }
        service
    }

    fn budget(&self) -> Value {
        let spec = json!({"minAvailable": 1, "selector": {"matchLabels": self.selector()}});
        self.object("policy/v1", "PodDisruptionBudget", Some(spec))
    }

    fn autoscaler(&self) -> Value {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": &*self.name.name});
        let spec = json!({"scaleTargetRef": target, "maxReplicas": 5});
        self.object("autoscaling/v2", "HorizontalPodAutoscaler", Some(spec))
    }

    fn deployment(&self, is_scaled: bool) -> Value {
        let mut labels = self.labels();
        labels.extend([
            ("istio.io/dataplane-mode", "none"),
            ("sidecar.istio.io/inject", "false"),
            // It answers to tunnels by itself.
            ("networking.istio.io/tunnel", "http"),
            ("service.istio.io/canonical-name", &*self.name.name),
            ("service.istio.io/canonical-revision", "latest"),
        ]);
        let mut annotations: Map<String, Value> =
            self.gateway.infrastructure.annotations.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        for (key, value) in [
            ("prometheus.io/scrape", "true"),
            ("prometheus.io/port", "15020"),
            ("prometheus.io/path", "/stats/prometheus"),
        ] {
            annotations.entry(key).or_insert_with(|| json!(value));
        }
        let mut spec = json!({
            "selector": {"matchLabels": self.selector()},
            // Connections find another pod before theirs is asked to end.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": self.pod()},
        });
        if !is_scaled {
            spec["replicas"] = json!(1);
        }
        self.object("apps/v1", "Deployment", Some(spec))
    }

    fn pod(&self) -> Value {
        let secrets: Vec<Value> = self.template.pull_secrets.iter().map(|name| json!({"name": name})).collect();
        let spread = |key: &str| {
            json!({
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": self.selector()},
            })
        };
        let token = json!({"path": "istio-token", "audience": "istio-ca", "expirationSeconds": 43200});
        let mut pod = json!({
            "serviceAccountName": &*self.name.name,
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "topologySpreadConstraints": [spread("topology.kubernetes.io/zone"), spread("kubernetes.io/hostname")],
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 1337,
                "runAsGroup": 1337,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [self.container()],
            "volumes": [
                {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
                {"name": "istio-ca-root-cert", "configMap": {"name": "istio-ca-root-cert"}},
            ],
        });
        if !secrets.is_empty() {
            pod["imagePullSecrets"] = Value::Array(secrets);
        }
        pod
    }

    fn container(&self) -> Value {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let text = |name: &str, value: &str| json!({"name": name, "value": value});
        let mut env = vec![
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("NODE_NAME", "spec.nodeName"),
            field("INSTANCE_IP", "status.podIP"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            text("GATEWAY_NAME", &self.name.name),
            text("XDS_ADDRESS", &self.template.control_plane),
            text("CA_ROOT_CA", "/var/run/secrets/istio/root-cert.pem"),
            text("TOKEN_PATH", "/var/run/secrets/tokens/istio-token"),
            text("DRAIN_LIMIT_SECONDS", &DRAIN_SECONDS.to_string()),
        ];
        env.extend(self.template.env.iter().map(|(name, value)| text(name, value)));
        let probe = |period: u32, failures: u32| {
            json!({
                "httpGet": {"path": "/healthz/ready", "port": 15021},
                "periodSeconds": period,
                "timeoutSeconds": 2,
                "failureThreshold": failures,
            })
        };
        json!({
            "name": "istio-proxy",
            "image": self.template.image,
            "imagePullPolicy": self.template.pull_policy,
            "env": env,
            "ports": [
                {"name": "mesh", "containerPort": HBONE_PORT, "protocol": "TCP"},
                {"name": "http-metrics", "containerPort": 15020, "protocol": "TCP"},
                {"name": "ready", "containerPort": 15021, "protocol": "TCP"},
            ],
            "startupProbe": probe(1, 30),
            "readinessProbe": probe(2, 3),
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "istio-token", "mountPath": "/var/run/secrets/tokens", "readOnly": true},
                {"name": "istio-ca-root-cert", "mountPath": "/var/run/secrets/istio", "readOnly": true},
            ],
        })
    }
}

/// Whether an object that is there may be taken for a waypoint's: it is one, or was one under another control plane.
pub fn is_part_of(object: &Value, gateway: &Gateway) -> bool {
    let labels = object.pointer("/metadata/labels");
    let managed = labels.and_then(|labels| labels.get(MANAGED.0)).and_then(Value::as_str) == Some(MANAGED.1);
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let owned =
        owners.into_iter().flatten().any(|owner| owner.get("uid").and_then(Value::as_str) == Some(&*gateway.uid));
    managed || owned
}

/// The name of a waypoint's service in the cluster.
pub fn hostname(name: &Name, cluster_domain: &str) -> Arc<str> {
    format!("{}.{}.svc.{cluster_domain}", name.name, name.namespace).into()
}
