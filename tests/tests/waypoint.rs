//! Requests through a waypoint, from a pod's ztunnel to another pod's.

use anyhow::{Result, ensure};
use loam_tests::manifests::Service;
use loam_tests::mesh::Mesh;
use loam_tests::process::SIGTERM;
use loam_tests::scene::{SHORT, Scene};
use loam_tests::waypoint::Waypoint;
use loam_tests::{Pod, eventually, in_lab};

/// The port of the servers.
const WEB: u16 = 8000;

/// A service of HTTP servers on `pods`, behind `waypoint`.
fn web(mesh: &Mesh, pods: &[&Pod], waypoint: &Waypoint) -> Result<Service> {
    for pod in pods {
        pod.tool(&["web", &format!("[::]:{WEB}")])?.wait_for_output("serving", SHORT)?;
    }
    let service = mesh.manifests().service("demo", "web", &[(80, WEB)], pods)?;
    waypoint.bind(mesh, &service)?;
    Ok(service)
}

/// The status of the answer to a GET by `pod`.
fn get(pod: &Pod, service: &Service, path: &str) -> Result<String> {
    let url = format!("http://{}/{path}", service.at(80));
    pod.tool(&["get", &url])?.output(SHORT)?.success()
}

/// Whether a line of `metrics` has all these parts.
fn counted(metrics: &str, parts: &[&str]) -> bool {
    metrics.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn requests_pass_a_waypoint_with_every_identity_proven() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let waypoint = Waypoint::declare(lab, &scene.mesh, "demo", "wp")?;
        waypoint.start(&scene.mesh, 0)?;
        waypoint.start(&scene.mesh, 1)?;
        let service = web(&scene.mesh, &[&scene.near, &scene.far], &waypoint)?;
        let (client, server) = (scene.client.identity(), scene.far.identity());
        let (source, destination) =
            (format!("source_principal=\"{client}\""), format!("destination_principal=\"{server}\""));
        let parts = [
            "istio_requests_total{",
            "reporter=\"waypoint\"",
            &source,
            &destination,
            "destination_service=\"web.demo.svc.cluster.local\"",
            "response_code=\"200\"",
        ];
        eventually(SHORT, || {
            get(&scene.client, &service, "")?;
            let all = waypoint.metrics(0)? + &waypoint.metrics(1)?;
            ensure!(counted(&all, &parts), "no request was counted by the waypoint:\n{all}");
            Ok(())
        })
    })
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_route_of_the_service_decides_at_its_waypoint() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let waypoint = Waypoint::declare(lab, &scene.mesh, "demo", "wp")?;
        waypoint.start(&scene.mesh, 0)?;
        let service = web(&scene.mesh, &[&scene.far], &waypoint)?;
        eventually(SHORT, || get(&scene.client, &service, "elsewhere").map(drop))?;
        let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  namespace: demo\n  \
                     name: only\nspec:\n  parentRefs:\n  - {group: \"\", kind: Service, name: web, port: 80}\n  \
                     rules:\n  - matches:\n    - path: {type: Exact, value: /only}\n    backendRefs:\n    - \
                     {name: web, port: 80}\n";
        scene.mesh.manifests().write("route-only.yaml", route)?;
        eventually(SHORT, || {
            let answer = get(&scene.client, &service, "elsewhere");
            ensure!(answer.as_ref().is_err_and(|e| format!("{e:#}").contains("404")), "{answer:?} instead of 404");
            Ok(())
        })?;
        get(&scene.client, &service, "only")?;
        Ok(())
    })
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_waypoint_that_ends_loses_no_request() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let waypoint = Waypoint::declare(lab, &scene.mesh, "demo", "wp")?;
        let first = waypoint.start(&scene.mesh, 0)?;
        waypoint.start(&scene.mesh, 1)?;
        let service = web(&scene.mesh, &[&scene.near, &scene.far], &waypoint)?;
        eventually(SHORT, || {
            get(&scene.client, &service, "")?;
            ensure!(counted(&waypoint.metrics(0)?, &["istio_requests_total{"]), "the first one serves nothing yet");
            Ok(())
        })?;
        // Its peers learn of it after it has begun to leave.
        first.signal(SIGTERM)?;
        get(&scene.client, &service, "")?;
        scene.mesh.manifests().endpoints(&waypoint.service, &[&waypoint.pods[1]])?;
        let mut requests = 0;
        while first.is_running() {
            get(&scene.client, &service, "")?;
            requests += 1;
        }
        ensure!(requests > 0, "it ended at once");
        Ok(())
    })
}
