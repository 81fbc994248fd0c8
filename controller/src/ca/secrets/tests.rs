use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::*;
use crate::apiserver::ApiServer;

const PATH: &str = "/api/v1/namespaces/istio-system/secrets";

fn domain() -> TrustDomain {
    TrustDomain::default()
}

async fn opened(server: &ApiServer) -> Result<Authority, SecretError> {
    open(&server.client(), "istio-system", &domain(), SystemTime::now()).await
}

fn secret(name: &str, parts: &[(&str, &str)]) -> serde_json::Value {
    let data = parts.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()))).collect();
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    serde_json::to_value(Secret { data: Some(data), metadata, ..Secret::default() }).unwrap()
}

/// Certificates in PEM and a key: a root, and an authority below it.
struct Given {
    root: String,
    cert: String,
    key: String,
}

fn given(life: Duration) -> Given {
    let ca = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = (SystemTime::now() - Duration::from_secs(1000)).into();
        params
    };
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = ca("root").self_signed(&root_key).unwrap();
    let mut params = ca("below");
    params.not_after = (SystemTime::now() - Duration::from_secs(500) + life).into();
    let cert = params.signed_by(&key, &Issuer::from_params(&ca("root"), &root_key)).unwrap();
    Given { root: root.pem(), cert: cert.pem(), key: key.serialize_pem() }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

#[tokio::test]
async fn two_controllers_that_start_together_have_one_root() {
    let server = ApiServer::default();
    // Both look before either makes one.
    let (one, other) = tokio::join!(opened(&server), opened(&server));
    let roots = one.unwrap().roots_pem();
    assert_eq!(other.unwrap().roots_pem(), roots);
    assert_eq!(opened(&server).await.unwrap().roots_pem(), roots, "a later start takes the same");
    assert_eq!(server.count("POST"), 2, "both tried");
    let made = server.get(&format!("{PATH}/istio-ca-secret")).unwrap();
    assert_eq!(made["type"], "istio.io/ca-root");
}

#[tokio::test]
async fn an_authority_of_the_user_wins() {
    let given = given(YEAR);
    for parts in [
        &[("ca-cert.pem", &given.cert), ("ca-key.pem", &given.key), ("root-cert.pem", &given.root)][..],
        &[("tls.crt", &given.cert), ("tls.key", &given.key), ("ca.crt", &given.root)],
        &[
            ("ca-cert.pem", &given.cert),
            ("ca-key.pem", &given.key),
            ("cert-chain.pem", &format!("{}{}", given.cert, given.root)),
            ("root-cert.pem", &given.root),
        ],
    ] {
        let server = ApiServer::default();
        opened(&server).await.unwrap();
        let parts: Vec<_> = parts.iter().map(|(key, text)| (*key, text.as_str())).collect();
        server.put(PATH, secret("cacerts", &parts));
        let roots = opened(&server).await.unwrap().roots_pem();
        assert_eq!(certificates_in_pem(roots.as_bytes()), certificates_in_pem(given.root.as_bytes()));
    }
}

#[tokio::test]
async fn an_authority_that_is_no_good_is_refused_and_no_other_is_made() {
    let (good, other, old) = (given(YEAR), given(YEAR), given(Duration::from_secs(400)));
    let all = |cert: &str, key: &str, root: &str| {
        secret("cacerts", &[("ca-cert.pem", cert), ("ca-key.pem", key), ("root-cert.pem", root)])
    };
    let cases = [
        ("valid only from", all(&old.cert, &old.key, &old.root)),
        ("is not for the key", all(&good.cert, &other.key, &good.root)),
        ("is not signed by the one after it", all(&good.cert, &good.key, &other.root)),
        ("is not a private key", all(&good.cert, "none", &good.root)),
        ("has no ca-key.pem", secret("cacerts", &[("ca-cert.pem", &good.cert)])),
        ("has no ca-cert.pem", secret("cacerts", &[])),
        ("does not end in a root", secret("cacerts", &[("ca-cert.pem", &good.cert), ("ca-key.pem", &good.key)])),
    ];
    for (why, secret) in cases {
        let server = ApiServer::default();
        server.put(PATH, secret);
        let refused = opened(&server).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains(why) && refused.contains("istio-system/cacerts"), "{refused} does not say {why}");
        assert_eq!(server.count("POST"), 0);
    }
}

#[tokio::test]
async fn a_secret_that_may_not_be_read_is_no_reason_to_make_another() {
    let server = ApiServer::default();
    server.forbid("secrets");
    let refused = opened(&server).await.map(drop).unwrap_err().to_string();
    assert!(refused.contains("resources: [secrets], verbs: [get, create]"), "{refused}");
    assert_eq!(server.count("POST"), 0);
}
