use super::*;
use crate::message::{Goodbye, Pods, Removed, Stored, VERSION};
use prost::Message as _;
use std::os::fd::AsFd;

/// A greeted client and the keeper's end of its connection.
async fn connected() -> (AgentClient, Socket) {
    let (ours, theirs) = Socket::pair().unwrap();
    let welcome = Welcome { version: VERSION, keeper: 5, error: String::new() };
    let (client, ()) = tokio::join!(AgentClient::hello(ours), async {
        let (hello, _) = theirs.recv_message::<Hello>().await.unwrap().unwrap();
        assert_eq!(hello.agree(), Ok(VERSION));
        theirs.send_message(&welcome, &[]).await.unwrap();
    });
    (client.unwrap(), theirs)
}

async fn asked(keeper: &Socket) -> (u64, Asked) {
    let (message, _) = keeper.recv_message::<FromAgent>().await.unwrap().unwrap();
    (message.id, message.asked.unwrap())
}

async fn answer(keeper: &Socket, id: u64, answer: Answer) {
    keeper.send_message(&ToAgent { id, answer: Some(answer) }, &[]).await.unwrap();
}

fn info(uid: &str) -> PodInfo {
    PodInfo {
        uid: uid.into(),
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        node: "n1".into(),
        addresses: vec![],
        dns: false,
        resolv: None,
        starting: false,
    }
}

#[tokio::test]
async fn answers_find_their_requests_in_any_order() {
    let (client, keeper) = connected().await;
    let (a, b, ()) = tokio::join!(client.remove_pod("a"), client.remove_pod("b"), async {
        let (first, second) = (asked(&keeper).await, asked(&keeper).await);
        for (id, what) in [second, first] {
            let Asked::RemovePod(ReleasePod { uid }) = what else { panic!("{what:?}") };
            let found = uid == "a";
            answer(&keeper, id, Answer::Removed(Removed { uid, found })).await;
        }
    });
    assert_eq!((a.unwrap(), b.unwrap()), (true, false));
}

#[tokio::test]
async fn a_list_is_put_together_from_its_parts() {
    let (client, keeper) = connected().await;
    let kept = |uid: &str| KeptPod { info: Some(info(uid)), index: 0, netns_cookie: 1, serving: true };
    let (pods, ()) = tokio::join!(client.list(), async {
        let (id, _) = asked(&keeper).await;
        answer(&keeper, id, Answer::Pods(Pods { pods: vec![kept("a")], more: true })).await;
        answer(&keeper, id, Answer::Pods(Pods { pods: vec![kept("b")], more: false })).await;
    });
    let uids: Vec<String> = pods.unwrap().into_iter().map(|pod| pod.info.unwrap().uid).collect();
    assert_eq!(uids, ["a", "b"]);
}

#[tokio::test]
async fn a_refusal_is_the_keepers_text() {
    let (client, keeper) = connected().await;
    let null = std::fs::File::open("/dev/null").unwrap();
    let (stored, ()) = tokio::join!(client.stores(null.as_fd(), null.as_fd()), async {
        let (id, _) = asked(&keeper).await;
        answer(&keeper, id, Answer::Stored(Stored { error: "not a map".into() })).await;
    });
    assert_eq!(stored.unwrap_err().to_string(), "keeper: not a map");
}

#[tokio::test]
async fn a_lost_keeper_fails_open_and_later_requests_with_its_reason() {
    let (client, keeper) = connected().await;
    let (listed, ()) = tokio::join!(client.list(), async {
        let (_, _) = asked(&keeper).await;
        answer(&keeper, 0, Answer::Goodbye(Goodbye { reason: "shutting down".into() })).await;
    });
    assert_eq!(listed.unwrap_err().to_string(), "the connection to the keeper ended: shutting down");
    client.ended().await;
    assert!(matches!(client.check("a").await, Err(ClientError::Lost(_))));
}

#[tokio::test(start_paused = true)]
async fn a_silent_keeper_is_a_timeout_and_leaves_no_request_open() {
    let (client, _keeper) = connected().await;
    assert!(matches!(client.check("a").await, Err(ClientError::Timeout { request: "check", .. })));
    assert!(client.shared.open().waiting.is_empty());
}

#[tokio::test]
async fn a_keeper_that_refuses_the_hello_is_an_error_with_its_text() {
    let (ours, theirs) = Socket::pair().unwrap();
    let (client, ()) = tokio::join!(AgentClient::hello(ours), async {
        theirs.recv_message::<Hello>().await.unwrap();
        let refusal = Welcome { version: 3, keeper: 1, error: "another agent is connected".into() };
        theirs.send_message(&refusal, &[]).await.unwrap();
    });
    assert_eq!(client.unwrap_err().to_string(), "keeper: another agent is connected");
}

#[tokio::test]
async fn a_keeper_of_the_version_before_is_spoken_with_in_its_own() {
    let (ours, theirs) = Socket::pair().unwrap();
    let (client, ()) = tokio::join!(AgentClient::hello(ours), async {
        theirs.recv_message::<Hello>().await.unwrap();
        let welcome = Welcome { version: VERSION - 1, keeper: 5, error: String::new() };
        theirs.send_message(&welcome, &[]).await.unwrap();
    });
    assert_eq!(client.unwrap().version(), VERSION - 1);
}

#[tokio::test]
async fn a_question_that_the_keeper_does_not_know_fails_alone() {
    let (client, keeper) = connected().await;
    let (checked, removed, ()) = tokio::join!(client.check("a"), client.remove_pod("b"), async {
        let (first, second) = (asked(&keeper).await, asked(&keeper).await);
        answer(&keeper, first.0, Answer::Unknown(Unknown {})).await;
        // An answer of a kind that is not known here: field 200, empty.
        let mut unknown = ToAgent { id: second.0, answer: None }.encode_to_vec();
        unknown.extend([0xc2, 0x0c, 0x00]);
        keeper.send(&unknown, &[]).await.unwrap();
    });
    assert!(matches!(checked, Err(ClientError::Unknown { request: "check" })), "{checked:?}");
    assert!(matches!(removed, Err(ClientError::Unknown { request: "remove pod" })), "{removed:?}");
    let (listed, ()) = tokio::join!(client.list(), async {
        let (id, _) = asked(&keeper).await;
        answer(&keeper, id, Answer::Pods(Pods::default())).await;
    });
    assert_eq!(listed.unwrap(), []);
}
