use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response, StatusCode};
use k8s_openapi::api::authentication::v1::UserInfo;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

fn review(account: &str, claims: &[(&str, &str)]) -> TokenReviewStatus {
    let claim =
        |(name, value): &(&str, &str)| (format!("authentication.kubernetes.io/{name}"), vec![(*value).to_owned()]);
    let user = UserInfo {
        username: Some(account.to_owned()),
        extra: Some(claims.iter().map(claim).collect()),
        ..UserInfo::default()
    };
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![AUDIENCE.to_owned()]),
        user: Some(user),
        error: None,
    }
}

const ZTUNNEL: &str = "system:serviceaccount:istio-system:ztunnel";
const CLAIMS: [(&str, &str); 3] = [("pod-name", "ztunnel-x"), ("pod-uid", "u-1"), ("node-name", "node-a")];

fn trusted() -> Vec<Account> {
    vec!["istio-system/ztunnel".parse().unwrap()]
}

#[test]
fn a_proxy_speaks_for_the_node_of_its_pod() {
    let caller = decide(review(ZTUNNEL, &CLAIMS), &trusted());
    assert_eq!(caller, Ok(Caller::of_node("node-a")));
}

#[test]
fn an_account_that_is_not_trusted_with_a_node_speaks_for_itself_alone() {
    for (account, name) in [("shop:ztunnel", "shop/ztunnel"), ("istio-system:ztunnel:x", "istio-system/ztunnel:x")] {
        let caller = decide(review(&format!("system:serviceaccount:{account}"), &CLAIMS), &trusted()).unwrap();
        assert_eq!(caller.account.map(|account| account.to_string()), Some(name.to_owned()));
    }
}

#[test]
fn whatever_the_api_server_does_not_say_is_a_reason_to_refuse() {
    let good = || review(ZTUNNEL, &CLAIMS);
    let cases = [
        ("accept the token", TokenReviewStatus { authenticated: None, ..good() }),
        ("expired", TokenReviewStatus { authenticated: Some(false), error: Some("expired".into()), ..good() }),
        ("audience", TokenReviewStatus { audiences: None, ..good() }),
        ("audience", TokenReviewStatus { audiences: Some(vec!["api".into()]), ..good() }),
        ("not a service account", TokenReviewStatus { user: None, ..good() }),
        ("not a service account", review("system:node:node-a", &CLAIMS)),
        ("pod-name", review(ZTUNNEL, &CLAIMS[1..])),
        ("pod-uid", review(ZTUNNEL, &[CLAIMS[0], CLAIMS[2]])),
        ("node-name", review(ZTUNNEL, &CLAIMS[..2])),
        ("node-name", review(ZTUNNEL, &[CLAIMS[0], CLAIMS[1], ("node-name", "")])),
    ];
    for (why, status) in cases {
        let refused = decide(status, &trusted()).unwrap_err();
        assert!(refused.contains(why), "{refused} does not say {why}");
    }
}

#[test]
fn an_account_is_a_namespace_and_a_name() {
    assert_eq!(trusted()[0].to_string(), "istio-system/ztunnel");
    for wrong in ["", "ztunnel", "/ztunnel", "a/", "a/b/c", "A/b", "a:b/c"] {
        assert!(wrong.parse::<Account>().is_err(), "{wrong}");
    }
}

/// An API server that answers so to every review, and how often it was asked.
fn reviews(code: StatusCode, answer: Value) -> (Arc<Reviews>, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        assert_eq!(request.uri().path(), "/apis/authentication.k8s.io/v1/tokenreviews");
        count.fetch_add(1, Ordering::Relaxed);
        let body = Body::from(answer.to_string().into_bytes());
        std::future::ready(Response::builder().status(code).body(body))
    });
    (Arc::new(Reviews::new(Client::new(service, "default"), trusted())), asked)
}

fn whole(status: &TokenReviewStatus) -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status})
}

fn metadata(token: &str) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
    metadata
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_used_again_for_a_minute() {
    let (reviews, asked) = reviews(StatusCode::CREATED, whole(&review(ZTUNNEL, &CLAIMS)));
    let authenticate = Arc::clone(&reviews).authenticate();
    for _ in 0..3 {
        assert_eq!(authenticate(&metadata("a")).await, Ok(Caller::of_node("node-a")));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    authenticate(&metadata("b")).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 2, "another token is another question");
    tokio::time::advance(ACCEPTED_FOR).await;
    authenticate(&metadata("a")).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_fails_is_no_pass_and_no_refusal_for_good() {
    let error = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": "down"});
    let (reviews, asked) = reviews(StatusCode::INTERNAL_SERVER_ERROR, error);
    let authenticate = reviews.authenticate();
    for _ in 0..2 {
        let refused = authenticate(&metadata("a")).await.unwrap_err();
        assert!(matches!(&refused, Refused::Unavailable(why) if why.contains("down")), "{refused:?}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_is_waited_for_a_while() {
    let service = tower::service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, http::Error>>());
    let reviews = Reviews::new(Client::new(service, "default"), trusted());
    assert!(matches!(reviews.caller("a".into()).await, Err(Refused::Unavailable(_))));
}

#[tokio::test(start_paused = true)]
async fn refusals_are_remembered_for_a_short_time_and_make_room_for_nodes() {
    let status = TokenReviewStatus { authenticated: Some(false), ..TokenReviewStatus::default() };
    let (reviews, asked) = reviews(StatusCode::CREATED, whole(&status));
    for _ in 0..2 {
        assert!(matches!(reviews.caller("a".into()).await, Err(Refused::Stranger(_))));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    tokio::time::advance(REFUSED_FOR).await;
    assert!(reviews.caller("a".into()).await.is_err());
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    for i in 0..MAX_KEPT {
        reviews.keep(digest_of(&i.to_string()), Err(String::new()));
    }
    let node = digest_of("node");
    reviews.keep(node, Ok(Caller::of_node("node-a")));
    assert!(reviews.known(&node).is_some());
    assert!(reviews.kept.lock().unwrap().len() <= MAX_KEPT);
}

#[tokio::test]
async fn no_token_and_a_huge_one_do_not_reach_the_api_server() {
    let (reviews, asked) = reviews(StatusCode::CREATED, Value::Null);
    let authenticate = Arc::clone(&reviews).authenticate();
    assert!(matches!(authenticate(&MetadataMap::new()).await, Err(Refused::Stranger(_))));
    assert!(matches!(authenticate(&metadata(&"a".repeat(5_000))).await, Err(Refused::Stranger(_))));
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}
