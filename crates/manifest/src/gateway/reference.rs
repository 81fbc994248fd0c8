//! Where one object names another.

use serde::Deserialize;

/// What a route is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// API group; the Gateway API's where it is not said.
    pub group: Option<String>,
    /// `Gateway` where it is not said.
    pub kind: Option<String>,
    /// The route's where it is not said.
    pub namespace: Option<String>,
    /// Name of the object.
    pub name: String,
    /// Name of a listener or of a port.
    pub section_name: Option<String>,
    /// Number of a port.
    pub port: Option<i64>,
}

/// An object, in the namespace of who says so where it names none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// API group; the core's where it is not said.
    pub group: Option<String>,
    /// `Service` where it is not said.
    pub kind: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Number of a port.
    pub port: Option<i64>,
}

/// Where a rule sends requests.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// What it names.
    #[serde(flatten)]
    pub object: ObjectRef,
    /// Its share beside others; 1 where it is not said.
    pub weight: Option<i64>,
    /// What happens to requests on the way to this one.
    #[serde(default)]
    pub filters: Vec<super::Filter>,
}

/// An object of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalRef {
    /// API group.
    #[serde(default)]
    pub group: String,
    /// Kind.
    #[serde(default)]
    pub kind: String,
    /// Name.
    #[serde(default)]
    pub name: String,
}

/// What a policy is about, in its own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRef {
    /// API group.
    #[serde(default)]
    pub group: String,
    /// Kind.
    #[serde(default)]
    pub kind: String,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Name of a port.
    pub section_name: Option<String>,
}
