use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use loam_manifest::Object;
use serde_json::{Value, json};

use super::*;

fn pod(more: &str, status: &str) -> Pod {
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: shop, uid: u-1, {more}}}, spec: {{nodeName: n1, \
         containers: []}}, status: {{{status}}}}}"
    );
    match loam_manifest::read([("pod.yaml", text.as_bytes())]).objects.remove(0) {
        Object::Pod(pod) => *pod,
        other => panic!("{other:?}"),
    }
}

fn condition(status: &str, reason: &str, message: &str) -> String {
    let message = message.replace('\'', "''");
    format!("conditions: [{{type: loam.dev/Enrolled, status: '{status}', reason: {reason}, message: '{message}'}}]")
}

/// The pod's object as it is after this was written.
fn after(notice: &Notice) -> Pod {
    let (more, status) = match notice.reason.is_captured() {
        true => ("annotations: {ambient.istio.io/redirection: enabled}", "True"),
        false => ("", "False"),
    };
    pod(more, &condition(status, notice.reason.as_str(), &notice.message))
}

const ENROLLED: Standing<'_> = Standing { outside: "", view: Some((State::Enrolled, "")), blocked: "" };
const WAITING: Standing<'_> =
    Standing { outside: "", view: Some((State::Pending, "waiting for the ztunnel")), blocked: "" };
const OUTSIDE: Standing<'_> = Standing { outside: "its label says none", view: None, blocked: "" };

fn next(notices: &mut Notices, pod: &Pod, standing: Standing<'_>, now: Instant) -> Option<Writing> {
    let mut all = notices.next([(pod, standing)], now);
    assert!(all.len() < 2);
    all.pop()
}

#[test]
fn a_captured_pod_says_so_at_once_and_once() {
    let (mut notices, now) = (Notices::default(), Instant::now());
    let writing = next(&mut notices, &pod("", ""), ENROLLED, now).unwrap();
    assert_eq!((writing.notice.reason, writing.turns, writing.tells), (Reason::Captured, true, true));
    assert_eq!(next(&mut notices, &pod("", ""), ENROLLED, now), None, "it is being written");
    let written = after(&writing.notice);
    notices.written(writing, true, now);
    // Its echo may take a while.
    assert_eq!(next(&mut notices, &pod("", ""), ENROLLED, now + PAUSE * 10), None);
    assert_eq!(next(&mut notices, &written, ENROLLED, now + PAUSE * 20), None);
    assert_eq!(notices.due_at(), None);
    assert!(notices.pods.is_empty(), "nothing is kept of a pod whose object is right");
    assert_eq!(next(&mut Notices::default(), &written, ENROLLED, now), None, "nor after a restart");
}

#[test]
fn a_pod_that_is_outside_says_so_when_that_lasts() {
    let (mut notices, now) = (Notices::default(), Instant::now());
    assert_eq!(next(&mut notices, &pod("", ""), WAITING, now), None);
    assert_eq!(notices.due_at(), Some(now + HESITATION));
    let writing = next(&mut notices, &pod("", ""), WAITING, now + HESITATION).unwrap();
    assert_eq!((writing.notice.reason, &*writing.notice.message), (Reason::Waiting, "waiting for the ztunnel"));
}

#[test]
fn what_is_not_true_any_more_is_taken_back_at_once() {
    let now = Instant::now();
    let captured = after(&Notice::new(Reason::Captured, ""));
    for (standing, reason) in [(WAITING, Reason::Waiting), (OUTSIDE, Reason::NotInMesh)] {
        let writing = next(&mut Notices::default(), &captured, standing, now).unwrap();
        assert_eq!((writing.notice.reason, writing.turns), (reason, true));
    }
    // The annotation alone came from elsewhere.
    let annotated = pod("annotations: {ambient.istio.io/redirection: enabled}", "");
    assert!(next(&mut Notices::default(), &annotated, OUTSIDE, now).is_some());
    for (what, pod, standing) in [
        ("never ours", pod("", ""), OUTSIDE),
        ("ended", pod("annotations: {ambient.istio.io/redirection: enabled}", "phase: Succeeded"), OUTSIDE),
        (
            "being deleted",
            pod("deletionTimestamp: '2025-01-01T00:00:00Z', annotations: {ambient.istio.io/redirection: enabled}", ""),
            OUTSIDE,
        ),
        ("on its way out", captured, Standing { view: Some((State::Removing, "")), ..OUTSIDE }),
    ] {
        assert_eq!(next(&mut Notices::default(), &pod, standing, now), None, "{what}");
    }
}

#[test]
fn a_captured_pod_that_tunnels_cannot_reach_says_so_with_a_warning_until_they_can() {
    let now = Instant::now();
    let blocked = Standing { blocked: "NetworkPolicy shop/web keeps tunnels away", ..ENROLLED };
    let writing = next(&mut Notices::default(), &pod("", ""), blocked, now).unwrap();
    let Notice { reason, message } = &writing.notice;
    assert_eq!((*reason, reason.is_captured(), reason.is_good()), (Reason::TunnelsBlocked, true, false));
    assert_eq!((&**message, writing.tells), (blocked.blocked, true));
    let object = after(&writing.notice);
    assert_eq!(next(&mut Notices::default(), &object, blocked, now), None);
    let mut notices = Notices::default();
    assert_eq!(next(&mut notices, &object, ENROLLED, now), None);
    let writing = next(&mut notices, &object, ENROLLED, now + WORDS_DELAY).unwrap();
    assert_eq!((writing.notice.reason, writing.turns, writing.tells), (Reason::Captured, false, true));
    // What else is wrong is not hidden by it, and a pod that is outside has no tunnels.
    let both = Standing { view: Some((State::Enrolled, "no route")), ..blocked };
    let message = next(&mut Notices::default(), &pod("", ""), both, now).unwrap().notice.message;
    assert_eq!(message, "NetworkPolicy shop/web keeps tunnels away; no route");
    let outside = Standing { blocked: blocked.blocked, ..WAITING };
    let writing = next(&mut Notices::default(), &object, outside, now).unwrap();
    assert_eq!(writing.notice.reason, Reason::Waiting);
}

#[test]
fn other_words_wait_and_make_no_event() {
    let (mut notices, now) = (Notices::default(), Instant::now());
    let waiting = pod("", &condition("False", "Waiting", "waiting for the keeper"));
    assert_eq!(next(&mut notices, &waiting, WAITING, now), None);
    let writing = next(&mut notices, &waiting, WAITING, now + WORDS_DELAY).unwrap();
    assert_eq!((writing.turns, writing.tells), (false, false));
}

#[test]
fn an_object_is_not_written_again_and_again() {
    let (mut notices, mut now) = (Notices::default(), Instant::now());
    let mut object = pod("", "");
    let mut count = 0;
    // A pod that comes and goes, looked at every ten milliseconds of a minute.
    for step in 0..6_000_u32 {
        let standing = if step % 2 == 0 { ENROLLED } else { WAITING };
        if let Some(writing) = next(&mut notices, &object, standing, now) {
            object = after(&writing.notice);
            notices.written(writing, true, now);
            count += 1;
        }
        now += Duration::from_millis(10);
    }
    assert!((2..=60).contains(&count), "{count}");
}

#[test]
fn a_write_that_fails_is_tried_again_ever_more_rarely() {
    let (mut notices, mut now) = (Notices::default(), Instant::now());
    let mut waits = Vec::new();
    for _ in 0..10 {
        let writing = next(&mut notices, &pod("", ""), ENROLLED, now).unwrap();
        notices.written(writing, false, now);
        assert_eq!(next(&mut notices, &pod("", ""), ENROLLED, now), None);
        let due = notices.due_at().unwrap();
        waits.push((due - now).as_secs());
        now = due;
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
}

#[test]
fn few_are_written_at_a_time() {
    let mut notices = Notices::default();
    let mut pods = vec![pod("", ""); 20];
    for (number, pod) in pods.iter_mut().enumerate() {
        pod.metadata.uid = Some(format!("u-{number}"));
    }
    let all = || pods.iter().map(|pod| (pod, ENROLLED));
    let now = Instant::now();
    let mut writings = notices.next(all(), now);
    assert_eq!(writings.len(), MAX_BUSY);
    assert_eq!(notices.next(all(), now), []);
    notices.written(writings.pop().unwrap(), true, now);
    assert_eq!(notices.next(all(), now).len(), 1);
}

#[test]
fn words_without_end_are_cut_between_letters() {
    let notice = Notice::new(Reason::Failed, &"ö".repeat(1_000));
    assert_eq!(notice.message, "ö".repeat(256));
}

/// What was asked of an API server: method, path, content type and body.
type Asked = Arc<Mutex<Vec<(Method, String, String, Value)>>>;

/// A client of an API server that answers everything with this code.
fn server(code: u16) -> (kube::Client, Asked) {
    let asked = Asked::default();
    let heard = asked.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let heard = heard.clone();
        async move {
            let (head, body) = request.into_parts();
            let bytes = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            let sent: Value = serde_json::from_slice(&bytes)?;
            let content_type = head.headers["content-type"].to_str().unwrap_or_default().to_owned();
            let answer = match code {
                200 => json!({"metadata": {"name": "web"}}),
                _ => json!({"kind": "Status", "status": "Failure", "code": code, "message": "no"}),
            };
            heard.lock().unwrap().push((head.method, head.uri.path().to_owned(), content_type, sent));
            Response::builder()
                .status(code)
                .body(Body::from(answer.to_string().into_bytes()))
                .map_err(std::io::Error::other)
        }
    });
    (kube::Client::new(service, "default"), asked)
}

#[tokio::test]
async fn a_notice_is_a_patch_of_the_status_and_an_event() {
    let (client, asked) = server(200);
    let writing = Writing::new(&pod("", ""), Notice::new(Reason::Captured, ""));
    writing.write(&client, "n1").await.unwrap();
    let (mut patch, event) = {
        let mut asked = asked.lock().unwrap();
        let event = asked.pop().unwrap();
        (asked.pop().unwrap(), event)
    };
    assert_eq!((patch.0.as_str(), &*patch.1), ("PATCH", "/api/v1/namespaces/shop/pods/web/status"));
    assert_eq!(patch.2, "application/strategic-merge-patch+json");
    let condition = &mut patch.3["status"]["conditions"][0];
    assert!(condition["lastTransitionTime"].take().as_str().is_some_and(|time| time.ends_with('Z')));
    let message = "the pod's traffic goes through the mesh";
    let expected = json!({
        "metadata": {"uid": "u-1", "annotations": {"ambient.istio.io/redirection": "enabled"}},
        "status": {"conditions": [{
            "type": "loam.dev/Enrolled", "status": "True", "reason": "Captured", "message": message,
            "lastTransitionTime": null,
        }]},
    });
    assert_eq!(patch.3, expected);
    assert_eq!((event.0.as_str(), &*event.1), ("POST", "/api/v1/namespaces/shop/events"));
    assert_eq!(event.3["involvedObject"]["uid"], "u-1");
    assert_eq!([&event.3["type"], &event.3["reason"], &event.3["message"]], ["Normal", "Captured", message]);
}

#[tokio::test]
async fn taking_it_back_removes_the_annotation_and_keeps_the_time_if_the_status_stays() {
    let (client, asked) = server(200);
    let waiting = pod("annotations: {ambient.istio.io/redirection: enabled}", &condition("False", "Waiting", "x"));
    Writing::new(&waiting, Notice::new(Reason::Waiting, "y")).write(&client, "n1").await.unwrap();
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 1, "the reason is the same, so there is no event");
    let sent = &asked[0].3;
    assert_eq!(sent["metadata"]["annotations"], json!({"ambient.istio.io/redirection": null}));
    assert_eq!(sent["status"]["conditions"][0].get("lastTransitionTime"), None);
}

#[tokio::test]
async fn a_refusal_names_the_missing_rule_and_a_pod_that_is_gone_is_no_failure() {
    let writing = Writing::new(&pod("", ""), Notice::new(Reason::Captured, ""));
    let error = writing.write(&server(403).0, "n1").await.unwrap_err();
    assert!(error.contains("{apiGroups: [\"\"], resources: [pods/status], verbs: [patch]}"), "{error}");
    assert_eq!(writing.write(&server(404).0, "n1").await, Ok(()));
    assert!(writing.write(&server(500).0, "n1").await.is_err());
}
