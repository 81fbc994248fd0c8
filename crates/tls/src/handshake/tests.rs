use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::credentials::Credentials;
use crate::key::Key;
use crate::provider::provider;
use crate::testing::{Spec, TestCa};
use crate::trust::Trust;
use crate::verify::Purpose;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn ca() -> TestCa {
    TestCa::new("cluster.local")
}

fn web(ca: &TestCa) -> Arc<Credentials> {
    ca.credentials(&ca.identity("shop", "web"))
}

/// How our server judges a client that shows what `config` says.
async fn judge_client(server: &Credentials, config: Arc<ClientConfig>) -> Result<Identity, HandshakeError> {
    let (near, far) = duplex(64 * 1024);
    let dial = async {
        let mut stream = TlsConnector::from(config).connect(placeholder(), far).await?;
        // The refusal of a client certificate arrives after the client's handshake.
        stream.read_u8().await
    };
    let accept = async { accept(near, server).await.map(|(_, peer)| peer.identity) };
    let (judged, _) = tokio::join!(accept, dial);
    judged
}

/// How our client judges a server that shows what `config` says.
async fn judge_server(client: &Credentials, config: Arc<ServerConfig>) -> Result<Identity, HandshakeError> {
    let (near, far) = duplex(64 * 1024);
    let expect = [client.identity().clone()];
    let dial = async { connect(near, client, &expect).await.map(|(_, peer)| peer.identity) };
    let (judged, _) = tokio::join!(dial, TlsAcceptor::from(config).accept(far));
    judged
}

#[tokio::test]
async fn a_peer_is_lost_when_the_roots_that_explain_it_are_gone_and_not_before() {
    let (ca, other) = (ca(), ca());
    let web = web(&ca);
    let soon = SystemTime::now() + Duration::from_millis(1100);
    let uri = web.identity().to_string();
    let brief = ca.credentials_of(web.identity(), &Spec { not_after: soon, ..Spec::of(&uri) });
    let (near, far) = duplex(64 * 1024);
    let expect = [web.identity().clone()];
    let (dialled, accepted) = tokio::join!(connect(near, &web, &expect), accept(far, &brief));
    let peers = [dialled.unwrap().1, accepted.unwrap().1];
    let mut lost = peers.map(|peer| Box::pin(peer.proof.lost()));
    // One of the certificates expires, which is its owner's to mend.
    while SystemTime::now() <= soon {
        tokio::task::yield_now().await;
    }
    for trusted in [&[&ca, &other][..], &[&other, &ca], &[&ca], &[&ca]] {
        ca.trust_only(trusted);
        for lost in &mut lost {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(lost.as_mut().poll(&mut cx).is_pending());
        }
    }
    ca.trust_only(&[&other]);
    for lost in lost {
        assert_eq!(lost.await.label(), "unknown_issuer");
    }
}

/// A certificate that is wrong in one way is refused in both directions, for the same reason.
async fn refused_both_ways(spec: Spec, label: &str) {
    let ca = ca();
    let ours = web(&ca);
    let (server, client) = ca.unchecked(&spec);
    assert_eq!(judge_client(&ours, client).await.unwrap_err().label(), label, "as a client");
    assert_eq!(judge_server(&ours, server).await.unwrap_err().label(), label, "as a server");
}

#[tokio::test]
async fn two_workloads_prove_themselves_to_each_other_with_a_post_quantum_key_exchange() {
    let ca = ca();
    let (web, db) = (web(&ca), ca.credentials(&ca.identity("shop", "db")));
    let (near, far) = duplex(64 * 1024);
    let expect = [ca.identity("shop", "cache"), db.identity().clone()];
    let (dialled, accepted) = tokio::join!(connect(near, &web, &expect), accept(far, &db));
    let ((mut client, server_identity), (mut server, client_identity)) = (dialled.unwrap(), accepted.unwrap());
    assert_eq!(&server_identity.identity, db.identity());
    assert_eq!(&client_identity.identity, web.identity());
    client.write_all(b"hello").await.unwrap();
    let mut text = [0; 5];
    server.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"hello");

    let state = server.get_ref().1;
    assert_eq!(state.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(state.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(state.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
    assert_eq!(state.server_name(), None, "the destination is named in the clear");
}

#[tokio::test]
async fn a_hello_of_one_byte_at_a_time_is_accepted() {
    let ca = ca();
    let web = web(&ca);
    let (near, far) = duplex(64 * 1024);
    let expect = [web.identity().clone()];
    let (dialled, accepted) = tokio::join!(connect(Dripping(near), &web, &expect), accept(Dripping(far), &web));
    dialled.unwrap();
    accepted.unwrap();
}

#[tokio::test]
async fn whatever_name_a_client_asks_for_it_is_its_certificate_that_counts() {
    let ca = ca();
    let ours = web(&ca);
    let long = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
    for name in [long.as_str(), "db.shop.svc.cluster.local", "10.0.0.1", "::1"] {
        let (near, far) = duplex(64 * 1024);
        let (_, client) = ca.unchecked(&Spec::of(WEB));
        let dial = TlsConnector::from(client).connect(name.to_owned().try_into().unwrap(), far);
        let (accepted, _) = tokio::join!(accept(near, &ours), dial);
        assert_eq!(accepted.unwrap().1.identity.to_string(), WEB, "{name}");
    }
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_refused_before_a_byte_is_sent() {
    let ca = ca();
    let (web, db) = (web(&ca), ca.credentials(&ca.identity("shop", "db")));
    let (near, far) = duplex(64 * 1024);
    let expect = [ca.identity("shop", "cache")];
    let (dialled, accepted) = tokio::join!(connect(near, &web, &expect), accept(far, &db));
    assert_eq!(
        dialled.unwrap_err().to_string(),
        format!("refuse the peer: {}", PeerError::Unexpected(db.identity().clone()))
    );
    let mut bytes = Vec::new();
    let _ = accepted.unwrap().0.read_to_end(&mut bytes).await;
    assert!(bytes.is_empty());
}

#[tokio::test]
async fn a_foreign_root_is_refused_even_for_the_right_name() {
    let ours = ca();
    let web = web(&ours);
    let namesake = TestCa::named("cluster.local", ours.name());
    for (theirs, label) in [(ca(), "unknown_issuer"), (namesake, "bad_signature")] {
        let (server, client) = theirs.unchecked(&Spec::of(WEB));
        theirs.trust().replace_roots(vec![ours.root().clone()], SystemTime::now()).unwrap();
        assert_eq!(judge_client(&web, client).await.unwrap_err().label(), label, "as a client");
        assert_eq!(judge_server(&web, server).await.unwrap_err().label(), label, "as a server");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_refused() {
    let ca = ca();
    let key = Key::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(WEB.try_into().unwrap())];
    params.extended_key_usages = Spec::of(WEB).purposes;
    let cert = params.self_signed(key.pair()).unwrap().into();
    let (_, client) = ca.unchecked_chain(key, vec![cert]);
    assert_eq!(judge_client(&web(&ca), client).await.unwrap_err().label(), "unknown_issuer");
}

#[tokio::test]
async fn a_foreign_trust_domain_is_refused_unless_it_is_an_alias() {
    let spec = Spec::of("spiffe://other.example/ns/shop/sa/web");
    refused_both_ways(spec.clone(), "foreign_trust_domain").await;

    let ca = ca();
    let own = ca.identity("shop", "web");
    let trust = Trust::new("cluster.local".parse().unwrap(), ["other.example".parse().unwrap()]);
    let key = Key::generate().unwrap();
    let issued = ca.issue(key.pair(), &Spec::of(WEB));
    let ours = Credentials::new(&own, key, issued, &trust, SystemTime::now()).unwrap();
    let (_, client) = ca.unchecked(&spec);
    assert_eq!(judge_client(&ours, client).await.unwrap().to_string(), spec.uris[0]);
}

#[tokio::test]
async fn exactly_one_uri_must_name_the_peer() {
    let none = Spec { uris: vec![], ..Spec::of(WEB) };
    refused_both_ways(none.clone(), "no_uri_san").await;
    refused_both_ways(Spec { names: vec!["web.shop.svc".into()], ..none }, "no_uri_san").await;
    let two = Spec { uris: vec![WEB.into(), "spiffe://cluster.local/ns/shop/sa/db".into()], ..Spec::of(WEB) };
    refused_both_ways(two, "several_uri_sans").await;
    let twice = Spec { uris: vec![WEB.into(), WEB.into()], ..Spec::of(WEB) };
    refused_both_ways(twice, "several_uri_sans").await;
}

#[tokio::test]
async fn a_name_that_is_nearly_right_is_refused() {
    for uri in [
        "spiffe://cluster.local/ns/shop/sa/web\0",
        "spiffe://cluster.local\0.evil.example/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/web/..",
        "SPIFFE://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local:443/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/w%65b",
        "https://cluster.local/ns/shop/sa/web",
        "",
    ] {
        refused_both_ways(Spec { uris: vec![uri.into()], ..Spec::of(WEB) }, "not_spiffe").await;
    }
}

#[tokio::test]
async fn validity_is_judged_at_the_moment_of_the_handshake() {
    let now = SystemTime::now();
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    refused_both_ways(Spec { not_before: now - hour, not_after: now - minute, ..Spec::of(WEB) }, "expired").await;
    refused_both_ways(Spec { not_before: now + minute, not_after: now + hour, ..Spec::of(WEB) }, "not_yet_valid").await;
}

#[tokio::test]
async fn a_certificate_must_name_the_purpose_it_is_used_for() {
    let ca = ca();
    let ours = web(&ca);
    let with = |purposes| ca.unchecked(&Spec { purposes, ..Spec::of(WEB) });
    for purposes in [
        vec![],
        vec![ExtendedKeyUsagePurpose::Any],
        vec![ExtendedKeyUsagePurpose::CodeSigning],
        vec![ExtendedKeyUsagePurpose::ServerAuth],
    ] {
        let refusal = judge_client(&ours, with(purposes).1).await.unwrap_err();
        assert!(matches!(refusal, HandshakeError::Peer(PeerError::WrongPurpose(Purpose::Client))), "{refusal}");
    }
    for purposes in [vec![], vec![ExtendedKeyUsagePurpose::ClientAuth]] {
        let refusal = judge_server(&ours, with(purposes).0).await.unwrap_err();
        assert!(matches!(refusal, HandshakeError::Peer(PeerError::WrongPurpose(Purpose::Server))), "{refusal}");
    }
}

#[tokio::test]
async fn a_ca_certificate_does_not_prove_a_workload() {
    refused_both_ways(Spec { ca: true, ..Spec::of(WEB) }, "ca_certificate").await;
}

#[tokio::test]
async fn chains_are_followed_to_a_bound() {
    let ca = ca();
    let ours = web(&ca);
    let deep = |depth| {
        let key = Key::generate().unwrap();
        let chain = ca.issue_deep(key.pair(), &Spec::of(WEB), depth).chain;
        ca.unchecked_chain(key, chain).1
    };
    for depth in [1, 3] {
        assert!(judge_client(&ours, deep(depth)).await.is_ok(), "{depth} intermediates");
    }
    assert_eq!(judge_client(&ours, deep(10)).await.unwrap_err().label(), "chain_too_long");

    // What does not lead from the leaf to the root is passed over.
    let key = Key::generate().unwrap();
    let mut chain = ca.issue_deep(key.pair(), &Spec::of(WEB), 1).chain;
    let strangers = super::tests::ca().issue_deep(Key::generate().unwrap().pair(), &Spec::of(WEB), 1).chain;
    chain.splice(1..1, strangers.into_iter().skip(1));
    assert!(judge_client(&ours, ca.unchecked_chain(key, chain).1).await.is_ok(), "a stranger's intermediate");

    let key = Key::generate().unwrap();
    let mut chain = ca.issue_deep(key.pair(), &Spec::of(WEB), 2).chain;
    chain.remove(1);
    let (_, gap) = ca.unchecked_chain(key, chain);
    assert_eq!(judge_client(&ours, gap).await.unwrap_err().label(), "unknown_issuer");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = ca();
    let mut config = anonymous(&rustls::version::TLS13);
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert_eq!(judge_client(&web(&ca), Arc::new(config)).await.unwrap_err().label(), "no_certificate");
}

#[tokio::test]
async fn tls_1_2_is_refused_in_both_directions() {
    let ca = ca();
    let ours = web(&ca);
    let refusal = judge_client(&ours, Arc::new(anonymous(&rustls::version::TLS12))).await.unwrap_err();
    assert!(matches!(refusal, HandshakeError::OldVersion), "{refusal}");

    let key = Key::generate().unwrap();
    let chain = ca.issue(key.pair(), &Spec::of(WEB)).chain;
    let old = rustls::crypto::aws_lc_rs::default_provider();
    let server = ServerConfig::builder_with_provider(old.into())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, rustls::pki_types::PrivatePkcs8KeyDer::from(key.pair().serialize_der()).into())
        .unwrap();
    let refusal = judge_server(&ours, Arc::new(server)).await.unwrap_err();
    // An old server ends the handshake by itself.
    assert!(matches!(refusal, HandshakeError::Refused(AlertDescription::ProtocolVersion)), "{refusal}");
}

#[tokio::test]
async fn a_peer_that_does_not_agree_on_http2_is_refused() {
    let ca = ca();
    let ours = web(&ca);
    for protocols in [vec![], vec![b"http/1.1".to_vec()], vec![b"h3".to_vec(), b"http/1.1".to_vec()]] {
        let (server, client) = ca.unchecked(&Spec::of(WEB));
        let (mut server, mut client) = ((*server).clone(), (*client).clone());
        server.alpn_protocols = protocols.clone();
        client.alpn_protocols = protocols.clone();
        assert_eq!(judge_client(&ours, Arc::new(client)).await.unwrap_err().label(), "not_http2", "{protocols:?}");
        let as_server = judge_server(&ours, Arc::new(server)).await.unwrap_err();
        let silent = protocols.is_empty() && as_server.label() == "not_http2";
        let alert = matches!(as_server, HandshakeError::Refused(AlertDescription::NoApplicationProtocol));
        assert!(silent || alert, "{protocols:?}: {as_server}");
    }
}

#[tokio::test]
async fn a_refused_client_learns_nothing_but_the_refusal() {
    let ca = ca();
    let ours = web(&ca);
    let (_, client) = ca.unchecked(&Spec { uris: vec![], ..Spec::of(WEB) });
    let (near, far) = duplex(64 * 1024);
    let dial = async {
        let mut stream = TlsConnector::from(client).connect(placeholder(), far).await.unwrap();
        HandshakeError::of(&stream.read_u8().await.unwrap_err())
    };
    let (seen, accepted) = tokio::join!(dial, accept(near, &ours));
    assert!(accepted.is_err());
    assert!(matches!(seen, HandshakeError::Refused(AlertDescription::CertificateUnknown)), "{seen}");
}

#[tokio::test]
async fn no_session_is_resumed() {
    let ca = ca();
    let ours = web(&ca);
    let (_, client) = ca.unchecked(&Spec::of(WEB));
    let mut client = (*client).clone();
    client.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let client = Arc::new(client);
    for _ in 0..2 {
        let (near, far) = duplex(64 * 1024);
        let dial = async {
            let mut stream = TlsConnector::from(client.clone()).connect(placeholder(), far).await.unwrap();
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
            stream.get_ref().1.handshake_kind()
        };
        let accept = async { accept(near, &ours).await.unwrap().0.shutdown().await };
        let (kind, _) = tokio::join!(dial, accept);
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn bytes_that_are_not_tls_and_hasty_ends_have_their_own_words() {
    let ca = ca();
    let ours = web(&ca);
    for (bytes, label) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], "protocol"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "protocol"),
        (b"\x16\x03\x01\xff\xff", "protocol"),
        // A message of 16 MiB is announced, an alert comes first, or nothing but a farewell.
        (b"\x16\x03\x01\x00\x06\x01\xff\xff\xff\x03\x03", "protocol"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "refused_by_peer"),
        (b"\x15\x03\x03\x00\x02\x01\x00", "closed"),
        (b"\x14\x03\x03\x00\x01\x01", "protocol"),
        (b"\x17\x03\x03\x00\x01\x00", "protocol"),
        (b"\x16\x03", "closed"),
        (b"", "closed"),
    ] {
        let (near, mut far) = duplex(64 * 1024);
        far.write_all(bytes).await.unwrap();
        far.shutdown().await.unwrap();
        assert_eq!(accept(near, &ours).await.unwrap_err().label(), label, "{bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_left_after_the_bound() {
    let ca = ca();
    let ours = web(&ca);
    let (near, _far) = duplex(64);
    let began = tokio::time::Instant::now();
    assert!(matches!(accept(near, &ours).await, Err(HandshakeError::Timeout)));
    assert_eq!(began.elapsed(), HANDSHAKE_TIMEOUT);
}

#[tokio::test]
async fn a_root_that_is_dropped_counts_no_more_for_the_next_handshake() {
    let ca = ca();
    let trust = Trust::new("cluster.local".parse().unwrap(), []);
    let key = Key::generate().unwrap();
    let issued = ca.issue(key.pair(), &Spec::of(WEB));
    let ours = Credentials::new(&ca.identity("shop", "web"), key, issued, &trust, SystemTime::now()).unwrap();
    let (_, client) = ca.unchecked(&Spec::of(WEB));
    assert!(judge_client(&ours, client.clone()).await.is_ok());
    trust.replace_roots(vec![super::tests::ca().root().clone()], SystemTime::now()).unwrap();
    assert_eq!(judge_client(&ours, client).await.unwrap_err().label(), "unknown_issuer");
}

/// Reads one byte at a time.
struct Dripping(DuplexStream);

impl AsyncRead for Dripping {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        std::task::ready!(Pin::new(&mut self.0).poll_read(cx, &mut one))?;
        buf.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Dripping {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A client that shows no certificate and accepts any server.
fn anonymous(version: &'static rustls::SupportedProtocolVersion) -> ClientConfig {
    #[derive(Debug)]
    struct Anyone;
    impl rustls::client::danger::ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    }
    ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth()
}
