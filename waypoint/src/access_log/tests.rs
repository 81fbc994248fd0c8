use http::HeaderMap;
use loam_rt::metrics::Exposition;
use loam_rt::telemetry;

use super::*;

fn facts() -> Facts {
    let source = Peer { identity: Some("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()), ..Peer::default() };
    let origin = Origin {
        labels: Arc::new(PeerLabels::of(&source)),
        source,
        downstream: DownstreamAddr::new("10.0.0.1:4000".parse().unwrap()),
        asked: OrigDst::new("10.1.0.1:80".parse().unwrap()),
    };
    let mut headers = HeaderMap::new();
    headers.insert("user-agent", HeaderValue::from_static("curl/8 \"x\""));
    Facts {
        origin: Arc::new(origin),
        method: Method::GET,
        path: "/a?b=c".into(),
        version: Version::HTTP_11,
        authority: "api.shop".into(),
        user_agent: headers.get("user-agent").cloned(),
        forwarded_for: None,
        request_id: Some(HeaderValue::from_static("id")),
        is_grpc: false,
        route: Some("shop/api".into()),
        service: None,
        destination: Peer::default(),
        upstream: Some("10.0.0.2:8080".parse().unwrap()),
        transport_failure: None,
        upstream_took: Some(Duration::from_millis(7)),
        status: Some(StatusCode::OK),
        grpc: None,
        failure: None,
        received: Arc::new(AtomicU64::new(3)),
        sent: 12,
    }
}

#[test]
fn a_line_is_as_istio_writes_it() {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let text = line::request(&facts(), wall, Duration::from_millis(8), LogFormat::Plain);
    assert_eq!(
        text,
        "[2023-11-14T22:13:20.123Z] \"GET /a?b=c HTTP/1.1\" 200 - via_upstream - \"-\" 3 12 8 7 \"-\" \
         \"curl/8 \\\"x\\\"\" \"id\" \"api.shop\" \"10.0.0.2:8080\" - - 10.1.0.1:80 10.0.0.1:4000 - shop/api\n"
    );
}

#[test]
fn a_json_line_has_istios_24_keys() {
    let mut facts = facts();
    facts.failure = Some(Failure::NoEndpoint);
    facts.status = Some(StatusCode::SERVICE_UNAVAILABLE);
    let text = line::request(&facts, SystemTime::UNIX_EPOCH, Duration::ZERO, LogFormat::Json);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value.as_object().unwrap().len(), 24);
    assert_eq!((&value["response_code"], &value["response_flags"]), (&503.into(), &"UH".into()));
    assert_eq!((&value["path"], &value["x_forwarded_for"]), (&"/a?b=c".into(), &serde_json::Value::Null));
}

#[test]
fn a_record_that_is_dropped_is_counted_as_a_client_that_went() {
    let registry = Registry::default();
    let (telemetry, _subscriber) = telemetry::detached(LogFormat::Plain, "info", Box::new(std::io::sink())).unwrap();
    let (_trigger, drain) = loam_rt::drain::channel();
    let log = AccessLog::new(&telemetry, Metrics::new(&registry), &registry, drain);
    let mut given_up = facts();
    given_up.status = None;
    drop(log.begin(given_up));
    log.begin(facts()).finish();
    let text = registry.encode(Exposition::Text, std::time::Instant::now());
    let count = |wanted: &[&str]| {
        let lines = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
        lines.filter(|line| wanted.iter().all(|part| line.contains(part))).count()
    };
    assert_eq!(count(&["response_code=\"0\"", "response_flags=\"DC\"", "} 1"]), 1, "{text}");
    assert_eq!(count(&["response_code=\"200\"", "response_flags=\"-\"", "reporter=\"waypoint\""]), 1, "{text}");
    assert!(text.contains("source_principal=\"spiffe://cluster.local/ns/shop/sa/web\""), "{text}");
    let buckets = text.lines().filter(|line| line.starts_with("istio_request_duration_milliseconds_bucket{"));
    assert_eq!(buckets.filter(|line| line.contains("response_code=\"200\"")).count(), 20, "{text}");
}
