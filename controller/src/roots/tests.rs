use serde_json::json;

use super::*;
use crate::apiserver::ApiServer;

fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

fn map(namespace: &str) -> String {
    format!("{}/{NAME}", path(namespace))
}

fn namespace(text: &str) -> Change {
    let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {text}\n");
    Change::Applied(loam_manifest::read([("n.yaml", text.as_bytes())]).objects.remove(0))
}

#[tokio::test]
async fn the_roots_are_made_and_repaired_and_what_is_beside_them_stays() {
    let server = ApiServer::default();
    let client = server.client();
    repair(&client, "shop", "ROOTS").await.unwrap();
    assert_eq!(server.get(&map("shop")).unwrap()["data"], json!({KEY: "ROOTS"}));
    repair(&client, "shop", "ROOTS").await.unwrap();
    assert_eq!((server.count("POST"), server.count("PUT")), (1, 0), "what is right is left alone");
    server.put(&path("shop"), json!({"metadata": {"name": NAME}, "data": {KEY: "FOREIGN", "more": "text"}}));
    repair(&client, "shop", "ROOTS").await.unwrap();
    assert_eq!(server.get(&map("shop")).unwrap()["data"], json!({KEY: "ROOTS", "more": "text"}));
    server.remove(&map("shop"));
    repair(&client, "shop", "ROOTS").await.unwrap();
    assert!(server.get(&map("shop")).is_some());
}

#[tokio::test]
async fn a_refusal_names_the_missing_rule() {
    let server = ApiServer::default();
    server.forbid("configmaps");
    let error = repair(&server.client(), "shop", "ROOTS").await.unwrap_err();
    assert!(error.contains("resources: [configmaps], verbs: [get, create, update]"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn new_namespaces_come_first_and_each_is_looked_at_again_after_a_while() {
    let (mut due, now) = (Due::default(), Instant::now());
    for name in ["b", "a"] {
        due.change(namespace(&format!("{{name: {name}}}")));
    }
    due.change(namespace("{name: old, deletionTimestamp: \"2030-01-01T00:00:00Z\"}"));
    let next = |due: &mut Due, at| due.next(at).map(|name| name.to_string());
    assert_eq!(
        [next(&mut due, now), next(&mut due, now), next(&mut due, now)],
        [Some("a".into()), Some("b".into()), None]
    );
    // A change of a namespace is no reason to hurry.
    due.change(namespace("{name: a, labels: {x: y}}"));
    assert_eq!(next(&mut due, now), None);
    due.change(namespace("{name: c}"));
    assert_eq!(next(&mut due, now + AGAIN).as_deref(), Some("c"));
    due.change(namespace("{name: a, deletionTimestamp: \"2030-01-01T00:00:00Z\"}"));
    assert_eq!(next(&mut due, now + AGAIN).as_deref(), Some("b"));
    assert_eq!(next(&mut due, now + AGAIN), None);
}
