//! Keys, certificates and who may speak with whom: the only crate that configures TLS.
//!
//! A [`Store`] holds one certificate per identity that runs here and renews it in time. Each certificate
//! becomes one [`Credentials`], from which every handshake takes its configuration; [`handshake::accept`] and
//! [`handshake::connect`] end with the peer's proven identity. A private key leaves this crate only inside a TLS
//! configuration.

pub mod ca;
pub mod cert;
pub mod channel;
pub mod credentials;
pub mod handshake;
pub mod key;
pub mod proof;
pub mod provider;
pub mod renew;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trust;
pub mod verify;

pub use ca::{CaClient, CaConfig, Issued, SignCsr, SignError};
pub use credentials::{Credentials, CredentialsError};
pub use handshake::{HandshakeError, Peer, accept, connect};
pub use proof::Proof;
pub use store::{CertError, Store};

pub use trust::{Trust, TrustError};
pub use verify::{PeerError, peer_identity};
