use loam_tls::cert::certificates_in_pem;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::duplex;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::ca::scratch::Scratch;

const NAMES: [&str; 3] = ["controller.loam-system.svc", "127.0.0.1", "::1"];

fn client(authority: &Authority, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for root in certificates_in_pem(authority.roots_pem().as_bytes()).unwrap() {
        roots.add(root).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// The serial number of the certificate that a client was shown.
async fn serial(server: Arc<ServerConfig>, client: Arc<ClientConfig>, name: &str) -> std::io::Result<String> {
    let (near, far) = duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (dialled, accepted) =
        tokio::join!(TlsConnector::from(client).connect(name, near), TlsAcceptor::from(server).accept(far));
    let dialled = dialled?;
    accepted?;
    let state = dialled.get_ref().1;
    assert_eq!(state.alpn_protocol(), Some(&b"h2"[..]));
    let der = &state.peer_certificates().unwrap()[0];
    let (_, cert) = x509_parser::parse_x509_certificate(der).unwrap();
    Ok(cert.raw_serial_as_string())
}

fn names() -> Vec<String> {
    NAMES.iter().map(|&name| name.to_owned()).collect()
}

#[tokio::test]
async fn the_control_plane_is_known_by_its_names_and_addresses() {
    let scratch = Scratch::new();
    let authority = Arc::new(scratch.authority());
    let server = Arc::new(authority.serving_config(&names()).unwrap());
    let client = client(&authority, &rustls::version::TLS13);
    for name in NAMES {
        serial(server.clone(), client.clone(), name).await.unwrap();
    }
    let error = serial(server, client, "other.example").await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let scratch = Scratch::new();
    let authority = Arc::new(scratch.authority());
    let server = Arc::new(authority.serving_config(&names()).unwrap());
    assert!(serial(server, client(&authority, &rustls::version::TLS12), NAMES[0]).await.is_err());
}

#[tokio::test]
async fn its_certificate_is_renewed_at_half_its_life() {
    let scratch = Scratch::new();
    // The client's clock is real: only a short life fits into the minutes by which certificates are backdated.
    let authority = Arc::new(scratch.authority().with_max_ttl(Duration::from_secs(120)));
    let (base, passed) = (SystemTime::now(), Arc::new(Mutex::new(Duration::ZERO)));
    let clock = passed.clone();
    let server = authority.serving_config_at(&names(), Arc::new(move || base + *clock.lock().unwrap())).unwrap();
    let (server, client) = (Arc::new(server), client(&authority, &rustls::version::TLS13));
    let first = serial(server.clone(), client.clone(), NAMES[0]).await.unwrap();
    *passed.lock().unwrap() = Duration::from_secs(59);
    assert_eq!(serial(server.clone(), client.clone(), NAMES[0]).await.unwrap(), first);
    *passed.lock().unwrap() = Duration::from_secs(60);
    assert_ne!(serial(server, client, NAMES[0]).await.unwrap(), first);
}

#[test]
fn a_name_that_is_none_is_refused() {
    let scratch = Scratch::new();
    let authority = Arc::new(scratch.authority());
    assert!(authority.serving_config(&["not a name".to_owned()]).is_err());
}
