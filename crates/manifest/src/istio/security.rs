//! The group `security.istio.io`. Of a policy every field counts, also one that nobody knows: they are kept as written.

use crate::located::Located;

/// What an `AuthorizationPolicy` says.
pub type AuthorizationPolicySpec = Located;

/// What a `PeerAuthentication` says.
pub type PeerAuthenticationSpec = Located;
