//! Kinds of the Gateway API, as far as a mesh reads them. Words and numbers are as written; whoever gives them a meaning
//! checks them. What has a `type` that nobody knows keeps it, so that it can be refused and never be passed over.

mod class;
mod grant;
mod policy;
mod reference;
mod route;
mod rule;

pub use class::{
    AllowedRoutes, AttachedNamespaces, GatewayAddress, GatewayClassSpec, GatewaySpec, Infrastructure, LabelExpression,
    LabelSelector, Listener, ParametersRef,
};
pub use grant::{GrantFrom, GrantTo, ReferenceGrantSpec};
pub use policy::{
    AlternativeName, BackendTlsPolicySpec, BackendTrafficPolicySpec, RequestRate, RetryBudget, RetryConstraint,
    Validation,
};
pub use reference::{BackendRef, LocalRef, ObjectRef, ParentRef, PolicyRef};
pub use route::{GrpcRouteSpec, HttpRouteSpec, StreamRule, TcpRouteSpec, TlsRouteSpec};
pub use rule::{
    CookieConfig, Cors, Filter, Fraction, GrpcMatch, GrpcMethod, GrpcRule, Header, HeaderEdits, HttpMatch, HttpRule,
    Mirror, PathChange, Redirect, Retry, Rewrite, SessionPersistence, Timeouts, ValueMatch,
};
