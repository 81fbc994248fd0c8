//! The source against an API server of the test, in memory and on a paused clock.

mod server;

use std::time::Duration;

use loam_manifest::{Change, Kind, Problem, Update};
use serde_json::json;
use tokio::time::{Instant, timeout};

use k8s_openapi::api::core::v1::Pod;

use crate::{AskError, Cluster, Objects, Selection};
use server::{Reply, Server, object};

/// Longer than anything may take to recover.
const MINUTE: Duration = Duration::from_secs(60);

fn follow(server: &Server, kinds: &[Kind]) -> Objects {
    Objects::stream(&server.client(), kinds.iter().map(|kind| Selection::all(*kind)))
}

async fn next(objects: &mut Objects) -> Update {
    timeout(MINUTE, objects.next()).await.expect("something is told within a minute").expect("the source goes on")
}

/// Everything up to the end of the beginning.
async fn begin(objects: &mut Objects) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let update = next(objects).await;
        all.extend(words(&update));
        if update.complete {
            all.sort();
            return all;
        }
    }
}

/// `+name` and `-name` of what an update says.
fn words(update: &Update) -> Vec<String> {
    let word = |change: &Change| match change {
        Change::Applied(object) => format!("+{}", object.key().name),
        Change::Deleted(key) => format!("-{}", key.name),
    };
    update.changes.iter().map(word).collect()
}

/// The next changes, whatever is told about problems in between.
async fn changes(objects: &mut Objects) -> Vec<String> {
    loop {
        let words = words(&next(objects).await);
        if !words.is_empty() {
            return words;
        }
    }
}

/// The problems as soon as there are others.
async fn problems(objects: &mut Objects) -> Vec<String> {
    loop {
        if let Some(problems) = next(objects).await.problems {
            return problems.iter().map(Problem::to_string).collect();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn all_pages_are_the_beginning_and_then_come_changes() {
    let server = Server::default();
    for i in 0..1_200 {
        server.put("/api/v1/pods", object(&format!("p{i}"), 1));
    }
    let mut objects = follow(&server, &[Kind::Pod]);
    assert_eq!(begin(&mut objects).await.len(), 1_200);
    server.put("/api/v1/pods", object("late", 2));
    assert_eq!(changes(&mut objects).await, ["+late"]);
    server.remove("/api/v1/pods", "p7");
    assert_eq!(changes(&mut objects).await, ["-p7"]);
    assert_eq!(server.lists("/api/v1/pods"), 3, "three pages, once");
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_node_are_asked_for_by_their_node() {
    let server = Server::default();
    let mut objects = Objects::stream(&server.client(), [Selection::pods_on("node-a")]);
    begin(&mut objects).await;
    server.until_watched("/api/v1/pods").await;
    let asked = server.asked();
    assert!(asked.iter().all(|uri| uri.contains("fieldSelector=spec.nodeName%3Dnode-a")), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_where_the_one_before_ended() {
    let server = Server::default();
    server.put("/api/v1/pods", object("a", 3));
    let mut objects = follow(&server, &[Kind::Pod]);
    begin(&mut objects).await;
    server.until_watched("/api/v1/pods").await;
    server.bookmark("/api/v1/pods", 17);
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.end_watches();
    server.until_watched("/api/v1/pods").await;
    let last = server.asked().pop().unwrap();
    assert!(last.contains("resourceVersion=17") && last.contains("allowWatchBookmarks=1"), "{last}");
    server.put("/api/v1/pods", object("b", 18));
    assert_eq!(changes(&mut objects).await, ["+b"]);
    assert_eq!(server.lists("/api/v1/pods"), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_forgotten_version_only_differences_are_told() {
    let server = Server::default();
    for name in ["same", "changed", "gone"] {
        server.put("/api/v1/pods", object(name, 1));
    }
    let mut objects = follow(&server, &[Kind::Pod]);
    begin(&mut objects).await;
    server.until_watched("/api/v1/pods").await;
    server.unheard(|s| {
        s.put("/api/v1/pods", object("changed", 2));
        s.put("/api/v1/pods", object("new", 3));
        s.remove("/api/v1/pods", "gone");
    });
    server.forget();
    let mut told = Vec::new();
    while told.len() < 3 {
        told.extend(changes(&mut objects).await);
    }
    told.sort();
    assert_eq!(told, ["+changed", "+new", "-gone"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_removes_nothing() {
    let server = Server::default();
    for i in 0..600 {
        server.put("/api/v1/pods", object(&format!("p{i:03}"), 1));
    }
    let mut objects = follow(&server, &[Kind::Pod]);
    begin(&mut objects).await;
    server.until_watched("/api/v1/pods").await;
    server.answer("continue=", Reply::Status(410, "the continue token is too old"));
    server.forget();
    server.until_asked("continue=", 3).await;
    server.answer("continue=", Reply::Honest);
    server.until_watched("/api/v1/pods").await;
    server.put("/api/v1/pods", object("late", 9));
    assert_eq!(changes(&mut objects).await, ["+late"]);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_watch_is_replaced_within_a_minute() {
    let server = Server::default();
    let mut objects = follow(&server, &[Kind::Pod]);
    begin(&mut objects).await;
    server.until_watched("/api/v1/pods").await;
    let stalled = Instant::now();
    server.stall();
    server.unheard(|s| s.put("/api/v1/pods", object("late", 5)));
    assert_eq!(changes(&mut objects).await, ["+late"]);
    assert!(stalled.elapsed() < MINUTE, "{:?}", stalled.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_was_read_stays_while_the_server_is_down() {
    let server = Server::default();
    server.put("/api/v1/pods", object("a", 1));
    let mut objects = follow(&server, &[Kind::Pod]);
    begin(&mut objects).await;
    server.until_watched("/api/v1/pods").await;
    let asked = server.asked().len();
    server.answer("", Reply::Refused);
    server.end_watches();
    let told = problems(&mut objects).await;
    assert!(told[0].contains("stays in force"), "{told:?}");
    let more = timeout(Duration::from_secs(600), async {
        loop {
            let update = objects.next().await.unwrap();
            assert!(update.changes.is_empty(), "{:?}", update.changes);
        }
    });
    assert!(more.await.is_err(), "the source goes on");
    let tries = server.asked().len() - asked;
    assert!((40..120).contains(&tries), "{tries} attempts in ten minutes");
    server.unheard(|s| s.put("/api/v1/pods", object("b", 2)));
    server.answer("", Reply::Honest);
    let back = Instant::now();
    assert_eq!(changes(&mut objects).await, ["+b"]);
    assert!(back.elapsed() < Duration::from_secs(16), "{:?}", back.elapsed());
    server.until_watched("/api/v1/pods").await;
}

#[tokio::test(start_paused = true)]
async fn the_beginning_waits_for_a_kind_that_may_not_be_listed() {
    let server = Server::default();
    server.answer("/api/v1/services", Reply::Status(403, "services is forbidden"));
    let mut objects = follow(&server, &[Kind::Pod, Kind::Service]);
    let mut told = Vec::new();
    let half = timeout(Duration::from_secs(300), async {
        loop {
            let update = objects.next().await.unwrap();
            assert!(!update.complete, "half a mesh is no beginning");
            told.extend(update.problems.into_iter().flatten().map(|problem| problem.message));
        }
    });
    assert!(half.await.is_err(), "the source goes on");
    assert!(told[0].starts_with("the API server is waited for: list services: forbidden"), "{told:?}");
    server.answer("/api/v1/services", Reply::Honest);
    begin(&mut objects).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_the_verb_the_resource_and_the_missing_rule() {
    let server = Server::default();
    let mut objects = follow(&server, &[Kind::AuthorizationPolicy]);
    server.know("/apis/security.istio.io/v1/authorizationpolicies");
    begin(&mut objects).await;
    server.answer("/apis/security", Reply::Status(403, "no access"));
    server.end_watches();
    let told = problems(&mut objects).await;
    let rule = "{apiGroups: [\"security.istio.io\"], resources: [authorizationpolicies], verbs: [list, watch]}";
    assert!(told[0].contains(rule) && told[0].contains("authorizationpolicies: forbidden"), "{told:?}");
    server.answer("/apis/security", Reply::Honest);
    assert!(problems(&mut objects).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_comes_later_is_picked_up_in_the_version_that_there_is() {
    let server = Server::default();
    let mut objects = follow(&server, &[Kind::ServiceEntry]);
    let begun = next(&mut objects).await;
    assert!(begun.complete && begun.changes.is_empty(), "{begun:?}");
    let told = begun.problems.unwrap();
    assert!(told[0].message.contains("has no CRD serviceentries.networking.istio.io"), "{told:?}");
    let path = "/apis/networking.istio.io/v1beta1/serviceentries";
    server.know(path);
    server.put(path, object("db", 4));
    assert_eq!(changes(&mut objects).await, ["+db"]);
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_goes_takes_its_objects_along_only_when_that_is_sure() {
    let server = Server::default();
    let path = "/apis/security.istio.io/v1/peerauthentications";
    server.know(path);
    server.put(path, object("strict", 4));
    let mut objects = follow(&server, &[Kind::PeerAuthentication]);
    begin(&mut objects).await;
    server.until_watched(path).await;
    let gone = Instant::now();
    server.answer(path, Reply::Status(404, "not found"));
    server.end_watches();
    assert_eq!(changes(&mut objects).await, ["-strict"]);
    assert!(gone.elapsed() >= Duration::from_secs(10), "{:?}", gone.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_keeps_its_last_good_version_and_is_told() {
    let server = Server::default();
    server.put("/api/v1/pods", object("a", 1));
    let mut objects = follow(&server, &[Kind::Pod]);
    begin(&mut objects).await;
    server.until_watched("/api/v1/pods").await;
    let mut wrong = object("a", 2);
    wrong["spec"] = json!(7);
    server.put("/api/v1/pods", wrong);
    let update = next(&mut objects).await;
    assert!(update.changes.is_empty());
    let told = update.problems.unwrap();
    assert!(told[0].to_string().starts_with("Pod shop/a: cannot be read"), "{told:?}");
    server.put("/api/v1/pods", object("a", 3));
    let update = next(&mut objects).await;
    assert_eq!((words(&update), update.problems), (vec!["+a".to_owned()], Some(Vec::new())));
}

#[tokio::test(start_paused = true)]
async fn objects_are_pruned_like_those_of_a_file() {
    let server = Server::default();
    let mut pod = object("a", 1);
    pod["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
    pod["spec"]["volumes"] = json!([{"name": "data"}]);
    server.put("/api/v1/pods", pod);
    let (state, _objects) = Objects::open(&server.client(), [Selection::all(Kind::Pod)]).await.unwrap();
    let [loam_manifest::Object::Pod(pod)] = &state.objects[..] else { panic!("{:?}", state.objects) };
    assert!(pod.metadata.managed_fields.is_none());
    assert!(pod.spec.as_ref().unwrap().volumes.is_none());
}

#[tokio::test(start_paused = true)]
async fn who_asks_once_gets_every_page_or_the_reason() {
    let server = Server::default();
    for i in 0..1_200 {
        server.put("/api/v1/pods", object(&format!("p{i}"), 1));
    }
    let cluster = Cluster::of(server.client(), "memory");
    let pods: Vec<Pod> = cluster.list(None, None).await.expect("it answers");
    assert_eq!((pods.len(), server.lists("/api/v1/pods")), (1_200, 3));
    server.answer("/pods", Reply::Status(403, "pods is forbidden"));
    let Err(AskError::Forbidden { permission, message }) = cluster.list::<Pod>(Some("shop"), None).await else {
        panic!("it is forbidden")
    };
    assert_eq!((permission.verb, permission.resource, permission.namespace.as_deref()), ("list", "pods", Some("shop")));
    assert_eq!(message, "list /api/v1/namespaces/shop/pods: pods is forbidden");
    server.answer("/pods", Reply::Status(401, "Unauthorized"));
    assert!(matches!(cluster.list::<Pod>(None, None).await, Err(AskError::Unauthorized(_))));
    server.answer("/pods", Reply::Refused);
    assert!(matches!(cluster.list::<Pod>(None, None).await, Err(AskError::Unreachable(_))));
    server.answer("/pods", Reply::Status(404, "not found"));
    assert!(matches!(cluster.get::<Pod>(Some("shop"), "p1").await, Ok(None)));
}

#[tokio::test(start_paused = true)]
async fn who_changes_something_is_told_apart_from_who_wants_it_otherwise() {
    let server = Server::default();
    let cluster = Cluster::of(server.client(), "memory");
    server.answer("/pods", Reply::Status(200, ""));
    assert!(cluster.delete::<Pod>(Some("shop"), "p").await.expect("it answers"));
    server.answer("/pods", Reply::Status(404, "not found"));
    assert!(!cluster.delete::<Pod>(Some("shop"), "p").await.expect("it answers"), "it is gone already");
    server.answer("/pods", Reply::Status(409, "conflict with \"kubectl\""));
    let conflict = AskError::Conflict("apply /api/v1/namespaces/shop/pods/p: conflict with \"kubectl\"".into());
    assert_eq!(cluster.apply::<Pod>(Some("shop"), "p", &json!({})).await, Err(conflict));
    server.answer("/pods", Reply::Status(403, "pods is forbidden"));
    let Err(AskError::Forbidden { permission, .. }) = cluster.delete::<Pod>(Some("shop"), "p").await else {
        panic!("it is forbidden")
    };
    assert_eq!((permission.verb, permission.resource), ("delete", "pods"));
}
