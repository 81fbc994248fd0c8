//! Names, as an enrolled pod's programs and its C library resolve them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use loam_tests::lab::Lab;
use loam_tests::manifests::{PodFacts, Service};
use loam_tests::mesh::Mesh;
use loam_tests::process::Process;
use loam_tests::scene::{SERVICE, SHORT, TALK, serve};
use loam_tests::topology::Pod;
use loam_tests::{eventually, in_lab, metrics};
use serde::Deserialize;

/// What the pod's own name server answers to everything.
const NETWORK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The address under which programs know their server. Nobody routes to it.
const NOWHERE: &str = "10.96.0.53:53";

/// A name of the mesh in full, and one that is not.
const TALK_NAME: &str = "talk.demo.svc.cluster.local";
const OTHER_NAME: &str = "www.example.org";

const SERVER_FAILURE: u16 = 2;

/// What the C library waits for an answer.
const RESOLVER_MS: f64 = 5000.0;

#[derive(Debug, Deserialize)]
struct Asked {
    ms: f64,
    code: u16,
    addresses: Vec<Ipv4Addr>,
}

/// An enrolled client whose resolv.conf names a server outside of the mesh, and a service.
struct Stage {
    mesh: Mesh,
    client: Pod,
    service: Service,
    name_server: Process,
    resolv_conf: PathBuf,
}

impl Stage {
    fn new(lab: &Lab) -> Result<Self> {
        let client = lab.node(0).pod("client", "demo", "client")?;
        let database = lab.node(1).pod("db-0", "demo", "db")?;
        let names = lab.node(1).pod("names", "plain", "names")?;
        serve(&database)?;
        let name_server =
            names.tool(&["answer", "--with", &NETWORK.to_string(), "--listen", &names.at(53).to_string()])?;
        name_server.wait_for_output("serving", SHORT)?;
        let resolv_conf = lab.work().join("resolv.conf");
        let search = "demo.svc.cluster.local svc.cluster.local cluster.local";
        fs::write(&resolv_conf, format!("nameserver {}\nsearch {search}\noptions ndots:5\n", names.v4()))?;
        let mesh = Mesh::start(lab)?;
        let manifests = mesh.manifests();
        manifests.namespace("demo", true)?;
        manifests.pod(&client)?;
        let annotations = [("loam.dev/resolv-conf".to_owned(), resolv_conf.display().to_string())].into();
        manifests.pod_with(&client, &PodFacts { annotations, ..PodFacts::default() })?;
        manifests.pod(&database)?;
        let service = manifests.service("demo", "talk", &[(SERVICE, TALK)], &[&database])?;
        let headless = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: demo, name: db}}\nspec:\n  clusterIP: None\n  \
             clusterIPs: [None]\n  ports: [{{name: tcp, port: {TALK}}}]\n---\napiVersion: discovery.k8s.io/v1\n\
             kind: EndpointSlice\nmetadata: {{namespace: demo, name: db-1, labels: {{kubernetes.io/service-name: db}}}}\n\
             addressType: IPv4\nports: [{{name: tcp, port: {TALK}}}]\nendpoints:\n- addresses: [{}]\n  \
             conditions: {{ready: true}}\n  targetRef: {{kind: Pod, namespace: demo, name: db-0}}\n",
            database.v4()
        );
        manifests.write("service-demo-db.yaml", &headless)?;
        mesh.wait_for_state(&[&client, &database], "enrolled")?;
        let stage = Self { mesh, client, service, name_server, resolv_conf };
        eventually(SHORT, || stage.assert_resolves(TALK_NAME, stage.virtual_address(), "connected"))?;
        Ok(stage)
    }

    fn virtual_address(&self) -> Ipv4Addr {
        match self.service.vips[0] {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(v6) => panic!("{v6} is first"),
        }
    }

    fn ask(&self, name: &str, over: &str) -> Result<Asked> {
        let all: Vec<Asked> = self.client.report(&["ask", "--name", name, "--over", over, NOWHERE], SHORT)?;
        let mut all = all.into_iter();
        all.next().ok_or_else(|| anyhow::anyhow!("nothing was asked"))
    }

    fn assert_resolves(&self, name: &str, to: Ipv4Addr, over: &str) -> Result<()> {
        let asked = self.ask(name, over)?;
        ensure!(asked.code == 0 && asked.addresses == [to], "{name} over {over}: {asked:?}, not {to}");
        Ok(())
    }

    /// Asks the C library with the pod's own resolv.conf.
    fn getent(&self, name: &str) -> Result<String> {
        let conf = self.resolv_conf.display();
        let script = format!("mount --bind {conf} /etc/resolv.conf && exec getent -s dns ahostsv4 {name}");
        self.client.run(&["unshare", "-m", "sh", "-c", &script])?.success()
    }
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn names_of_the_mesh_are_answered_here_and_others_by_the_pods_own_server() {
    in_lab(|lab| {
        let stage = Stage::new(lab)?;
        let vip = stage.virtual_address();
        for over in ["connected", "unconnected", "tcp"] {
            stage.assert_resolves(TALK_NAME, vip, over)?;
            stage.assert_resolves(OTHER_NAME, NETWORK, over)?;
        }
        for name in ["talk", "talk.demo", "talk.demo.svc", TALK_NAME] {
            let found = stage.getent(name)?;
            ensure!(found.starts_with(&format!("{vip} ")), "{name}: {found}");
        }
        for name in ["db", "db-0.db", "db-0.db.demo.svc.cluster.local"] {
            let address: Ipv4Addr = stage.getent(name)?.split(' ').next().unwrap_or_default().parse()?;
            stage.client.assert_reaches((address, TALK).into(), &[(address, TALK).into()])?;
        }
        let text = stage.mesh.node(0).ztunnel().metrics()?;
        for (name, least) in [("istio_dns_requests_total", 6.0), ("istio_dns_upstream_requests_total", 3.0)] {
            let counted = metrics::sum(&text, name, &["request_query_type=\"a\""]).unwrap_or_default();
            ensure!(counted >= least, "{name} is {counted}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn names_of_the_mesh_resolve_while_the_pods_own_server_is_down() {
    in_lab(|lab| {
        let stage = Stage::new(lab)?;
        stage.name_server.kill()?;
        let vip = stage.virtual_address();
        for over in ["connected", "unconnected", "tcp"] {
            stage.assert_resolves(TALK_NAME, vip, over)?;
            let other = stage.ask(OTHER_NAME, over)?;
            ensure!(other.code == SERVER_FAILURE && other.ms < RESOLVER_MS, "{over}: {other:?}");
        }
        // What the library makes of a short name reaches beyond the mesh nowhere.
        for name in ["talk", "talk.demo", "talk.demo.svc", "db-0.db"] {
            let found = stage.getent(name)?;
            ensure!(!found.is_empty(), "{name} was not found");
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn names_resolve_while_the_ztunnel_is_replaced() {
    in_lab(|lab| {
        let stage = Stage::new(lab)?;
        let count = "150";
        let arguments =
            ["ask", "--name", TALK_NAME, "--over", "unconnected", "--count", count, "--every-ms", "20", NOWHERE];
        let asking = stage.client.tool(&arguments)?;
        stage.mesh.node(0).replace_ztunnel()?;
        let all: Vec<Asked> = asking.report(SHORT + Duration::from_secs(10))?;
        let lost: Vec<_> = all.iter().filter(|asked| asked.addresses != [stage.virtual_address()]).collect();
        ensure!(all.len() == 150 && lost.is_empty(), "{} of {}: {lost:?}", lost.len(), all.len());
        Ok(())
    });
}
