//! `GatewayClass` and `Gateway`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What a `GatewayClass` says.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassSpec {
    /// Whose gateways these are.
    pub controller_name: Option<String>,
    /// What they are made with.
    pub parameters_ref: Option<ParametersRef>,
}

/// What a `Gateway` says.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Name of its class.
    pub gateway_class_name: Option<String>,
    /// Where it listens.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// Addresses that are asked for.
    #[serde(default)]
    pub addresses: Vec<GatewayAddress>,
    /// What it is made with.
    pub infrastructure: Option<Infrastructure>,
}

/// Where a gateway listens, and who may attach there.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Port.
    #[serde(default)]
    pub port: i64,
    /// Such as `HBONE`.
    #[serde(default)]
    pub protocol: String,
    /// Who may attach.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// Who may attach to a listener.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AllowedRoutes {
    /// By namespace.
    pub namespaces: Option<AttachedNamespaces>,
}

/// Which namespaces may attach.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachedNamespaces {
    /// `All`, `Same`, `Selector` or `None`; `Same` where it is not said.
    pub from: Option<String>,
    /// With `Selector`, labels of the namespaces.
    pub selector: Option<LabelSelector>,
}

/// Labels that something must have.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// All of these.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// And all of these.
    #[serde(default)]
    pub match_expressions: Vec<LabelExpression>,
}

/// A condition on a label.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelExpression {
    /// The label.
    #[serde(default)]
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    #[serde(default)]
    pub operator: String,
    /// For the first two.
    #[serde(default)]
    pub values: Vec<String>,
}

/// An address that is asked for.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct GatewayAddress {
    /// `IPAddress`, `Hostname` or another.
    pub r#type: Option<String>,
    /// The address.
    pub value: Option<String>,
}

/// What a gateway is made with.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Infrastructure {
    /// Labels of what is made.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations of what is made.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// More about it.
    pub parameters_ref: Option<ParametersRef>,
}

/// The object that says what a gateway is made with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParametersRef {
    /// API group.
    #[serde(default)]
    pub group: String,
    /// Kind.
    #[serde(default)]
    pub kind: String,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Of a class only.
    pub namespace: Option<String>,
}
