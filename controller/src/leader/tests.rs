use super::*;
use crate::apiserver::ApiServer;

fn stands(server: &ApiServer, name: &str) -> (watch::Receiver<bool>, tokio::task::JoinHandle<()>) {
    let (leads, led) = watch::channel(false);
    let (client, name) = (server.client(), name.to_owned());
    let task = tokio::spawn(async move { stand(client, "istio-system", name, leads).await });
    (led, task)
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_another_takes_over_when_it_is_gone() {
    let server = ApiServer::default();
    let (mut first, task) = stands(&server, "a");
    first.wait_for(|leads| *leads).await.unwrap();
    let (mut second, _other) = stands(&server, "b");
    sleep(Duration::from_secs(120)).await;
    assert!(*first.borrow() && !*second.borrow());
    task.abort();
    let gone = Instant::now();
    second.wait_for(|leads| *leads).await.unwrap();
    let took = gone.elapsed();
    assert!(took > Duration::from_secs(12) && took < Duration::from_secs(21), "{took:?}");
    let lease = server.get(&format!("/apis/coordination.k8s.io/v1/namespaces/istio-system/leases/{LEASE}")).unwrap();
    assert_eq!((&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]), (&"b".into(), &1.into()));
}

#[tokio::test(start_paused = true)]
async fn of_many_that_start_together_one_leads() {
    let server = ApiServer::default();
    let all: Vec<_> = (0..5).map(|i| stands(&server, &i.to_string())).collect();
    for _ in 0..60 {
        sleep(Duration::from_millis(700)).await;
        assert!(all.iter().filter(|(leads, _)| *leads.borrow()).count() <= 1);
    }
    assert_eq!(all.iter().filter(|(leads, _)| *leads.borrow()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_others_begin() {
    let server = ApiServer::default();
    let (mut leads, _task) = stands(&server, "a");
    leads.wait_for(|leads| *leads).await.unwrap();
    server.set_down(true);
    let down = Instant::now();
    leads.wait_for(|leads| !*leads).await.unwrap();
    assert!(down.elapsed() < Duration::from_secs(15), "{:?}", down.elapsed());
    server.set_down(false);
    leads.wait_for(|leads| *leads).await.unwrap();
}
