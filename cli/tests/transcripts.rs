//! What people see: the real programs against an API server over HTTP, compared with transcripts in `tests/golden`.
//! `LOAM_BLESS=1 cargo test -p loam-cli` writes them anew; read what changed before you commit it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod server;

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::json;
use server::{Server, cluster, proxy};
use tokio::process::Command;

/// A person at a terminal: a home, a way to a cluster, and what was typed and answered so far.
struct Terminal {
    home: PathBuf,
    address: String,
    told: String,
}

impl Terminal {
    /// With `server` as the cluster.
    async fn at(name: &str, server: &Server) -> Self {
        let address = format!("http://{}", server.serve().await);
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(home.join(".kube")).unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": address}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "jane"}}],
            "users": [{"name": "jane", "user": {}}],
        });
        std::fs::write(home.join(".kube/config"), config.to_string()).unwrap();
        Self { home, address, told: String::new() }
    }

    /// Types a command, and notes what is answered.
    async fn types(&mut self, line: &str) {
        let output = self.run(line).await;
        let home = self.home.display().to_string();
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).replace(&self.address, "http://API").replace(&home, "~");
            settled(&text)
        };
        let _ = writeln!(self.told, "$ {line}");
        self.told.push_str(&text(&output.stdout));
        for line in text(&output.stderr).lines() {
            let _ = writeln!(self.told, "! {line}");
        }
        let _ = writeln!(self.told, "[{}]\n", output.status.code().unwrap());
    }

    async fn run(&self, line: &str) -> Output {
        let mut words = line.split(' ');
        let program = match words.next() {
            Some("loam") => env!("CARGO_BIN_EXE_loam"),
            Some("kubectl") if words.next() == Some("loam") => env!("CARGO_BIN_EXE_kubectl-loam"),
            _ => panic!("{line}"),
        };
        let mut command = Command::new(program);
        let command = command.args(words).env_clear().env("HOME", &self.home).stdin(Stdio::null());
        let command = command.env("PATH", self.home.join("bin")).current_dir(&self.home);
        command.output().await.unwrap()
    }

    /// Installs a `helm` that notes what it is told, fails if a word is `a=fails`, and finds the chart where it is told.
    fn has_helm(&self) {
        const HELM: &str = r#"#!/bin/sh
line=helm
for word in "$@"; do
  case $word in
    */loam-chart-*/*) [ -f "$word" ] || exit 9; word="CHART/${word##*/}" ;;
    */loam-chart-*) [ -f "$word/Chart.yaml" ] || exit 9; word=CHART ;;
    a=fails) echo "Error: a is no value of this chart" >&2; exit 1 ;;
    --dry-run=server) echo "kind: DaemonSet" ;;
  esac
  line="$line $word"
done
echo "$line" >> "$HOME/helm.log"
"#;
        let path = self.home.join("bin/helm");
        std::fs::create_dir_all(self.home.join("bin")).unwrap();
        std::fs::write(&path, HELM).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let _ = std::fs::remove_file(self.home.join("helm.log"));
    }

    /// Notes what `helm` was told.
    fn notes_helm(&mut self) {
        self.told.push_str(&std::fs::read_to_string(self.home.join("helm.log")).unwrap());
    }

    /// Compares all of it with the transcript of that name.
    fn is(self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
        let told = self.told.trim_end().to_owned() + "\n";
        if std::env::var_os("LOAM_BLESS").is_some() {
            std::fs::write(&path, told).unwrap();
            return;
        }
        let expected = std::fs::read_to_string(&path).unwrap();
        assert!(told == expected, "{} says\n\n{expected}\nand it was\n\n{told}", path.display());
    }
}

/// Text without the ages of connections, which are those of the test.
fn settled(text: &str) -> String {
    (1..60).fold(text.to_owned(), |text, age| text.replace(&format!("  {age}s"), "  0s"))
}

async fn follow(name: &str, server: &Server, lines: &[&str]) {
    let mut terminal = Terminal::at(name, server).await;
    for line in lines {
        terminal.types(line).await;
    }
    terminal.is(name);
}

#[tokio::test]
async fn status_shows_what_is_captured_and_why_others_are_not() {
    let lines =
        ["loam status", "loam status -o wide", "loam status shop", "loam status shop -o yaml", "loam status -o json"];
    follow("status", &cluster::shop(), &lines).await;
}

#[tokio::test]
async fn status_says_what_to_do_where_nothing_is() {
    let server = cluster::bare();
    follow("status-bare", &server, &["loam status", "loam status nowhere", "kubectl loam status"]).await;
}

#[tokio::test]
async fn enrolling_says_what_follows_for_each_pod() {
    let server = cluster::shop();
    let mut terminal = Terminal::at("enroll", &server).await;
    terminal.types("loam enroll bank --dry-run").await;
    assert_eq!(server.labels("bank"), json!({}), "a dry run changes nothing");
    terminal.types("loam enroll bank --wait").await;
    assert_eq!(server.labels("bank"), json!({"istio.io/dataplane-mode": "ambient"}));
    terminal.types("loam enroll bank").await;
    terminal.types("loam unenroll bank -o json").await;
    assert_eq!(server.labels("bank"), json!({}));
    terminal.types("loam enroll kube-system").await;
    terminal.types("loam enroll nowhere").await;
    terminal.is("enroll");
}

#[tokio::test]
async fn a_wait_that_is_over_says_for_what() {
    let server = cluster::shop();
    server.stop_agents();
    follow(
        "enroll-late",
        &server,
        &["loam enroll bank --wait --timeout 0s", "kubectl loam enroll bank --wait --timeout 1d"],
    )
    .await;
}

#[tokio::test]
async fn a_good_cluster_passes_every_check() {
    follow("check", &cluster::bare(), &["loam check --pre", "loam check --pre -o json"]).await;
    let server = cluster::shop();
    server.put(cluster::pod("shop", "web-2", "node-b", &cluster::captured()));
    follow("check-installed", &server, &["loam check"]).await;
}

#[tokio::test]
async fn every_check_that_fails_has_a_remedy() {
    let server = cluster::bare();
    server.has_version(1, 27);
    server.put(cluster::node("node-b", "5.10.0-9-amd64"));
    server.forbid("create", "clusterroles");
    server.put(cluster::namespace("istio-system", json!({"pod-security.kubernetes.io/enforce": "baseline"})));
    let mut istio = cluster::part("Deployment", "istiod", json!({"selector": {}, "template": {}}), json!({}));
    istio["metadata"]["labels"] = json!({"app": "istiod"});
    server.put(istio);
    follow("check-bad", &server, &["loam check --pre"]).await;
}

#[tokio::test]
async fn an_installation_that_is_not_well_says_where() {
    let server = cluster::bare();
    cluster::install(&server);
    server.put(cluster::part("Deployment", "istiod", json!({"selector": {}, "template": {}}), json!({})));
    server.put(cluster::mesh_pod("ztunnel", "ztunnel-b1", "node-b", "localhost:5000/loam-ztunnel:0.0.9", false));
    server.put(cluster::node("node-c", "6.1.0"));
    server.put(cluster::namespace("shop", json!({"istio.io/dataplane-mode": "ambient"})));
    server.put(cluster::pod("shop", "web-1", "node-b", &json!({})));
    follow("check-unwell", &server, &["loam check", "loam version", "loam version --client", "loam version -o yaml"])
        .await;
}

#[tokio::test]
async fn helm_gets_the_chart_the_values_and_the_same_cluster() {
    let server = cluster::bare();
    let mut terminal = Terminal::at("install", &server).await;
    let _ = std::fs::remove_dir_all(terminal.home.join("bin"));
    terminal.types("loam install").await;
    terminal.has_helm();
    terminal.types("loam install --profile ha --values mine.yaml --set controller.replicas=2 --wait").await;
    terminal.types("loam --context test install --dry-run").await;
    terminal.types("loam install --set a=fails").await;
    terminal.types("loam upgrade").await;
    cluster::install(&server);
    server.put(cluster::namespace("shop", json!({"istio.io/dataplane-mode": "ambient"})));
    server.put(cluster::pod("shop", "web-1", "node-b", &cluster::captured()));
    terminal.types("loam install").await;
    terminal.types("kubectl loam upgrade --wait --timeout 2m").await;
    terminal.types("kubectl loam uninstall").await;
    terminal.types("loam uninstall --unenroll").await;
    assert_eq!(server.labels("shop"), json!({}));
    terminal.notes_helm();
    terminal.is("install");
}

#[tokio::test]
async fn a_cluster_that_fails_its_checks_is_left_alone() {
    let server = cluster::bare();
    server.has_version(1, 27);
    let mut terminal = Terminal::at("install-bad", &server).await;
    terminal.has_helm();
    terminal.types("loam install").await;
    terminal.types("loam install --skip-checks").await;
    terminal.notes_helm();
    terminal.is("install-bad");
}

#[tokio::test]
async fn what_a_proxy_knows_is_shown_as_tables_and_as_it_is() {
    let server = cluster::shop();
    let node = proxy::proxy(proxy::shop()).await;
    server.forward("ztunnel-a1", 15000, node.address);
    let lines = [
        "loam config get workload --node node-a",
        "loam config get workload shop/web -n node-a -o wide",
        "loam config get workload api -n node-a -o yaml",
        "loam config get service -n node-a -o wide",
        "loam config get policy -n node-a -o wide",
        "loam config get cert -n node-a",
        "loam config get cert shop/web -n node-a -o wide",
        "loam config get connections -n node-a -o wide",
        "loam config get workload nobody -n node-a",
        "loam config get workload",
        "loam config get workload -n node-x",
        "kubectl loam config get workload -n node-b",
    ];
    follow("config-get", &server, &lines).await;
}

#[tokio::test]
async fn a_node_that_knows_something_else_is_told() {
    let server = cluster::shop();
    let (a, b) = (proxy::proxy(proxy::shop()).await, proxy::proxy(proxy::earlier()).await);
    server.forward("ztunnel-a1", 15000, a.address);
    server.forward("ztunnel-b1", 15000, b.address);
    server.forward("istiod-5d8f-x2", 15014, proxy::controller(proxy::shop()).await);
    let lines = ["loam config diff --node node-a", "loam config diff", "loam config diff -n node-b -o json"];
    follow("config-diff", &server, &lines).await;
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_is_told_apart_from_one_that_refuses() {
    let server = cluster::shop();
    server.forbid("list", "pods");
    server.forbid("create", "pods/portforward");
    let lines =
        ["loam status", "loam check", "loam --kubeconfig /nowhere/config status", "loam --context other status"];
    let mut terminal = Terminal::at("refused", &server).await;
    for line in lines {
        terminal.types(line).await;
    }
    server.close();
    terminal.types("loam status").await;
    let config = terminal.home.join(".kube/config");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&terminal.address, "http://127.0.0.1:1")).unwrap();
    terminal.types("loam status").await;
    std::fs::remove_file(&config).unwrap();
    terminal.types("loam status").await;
    terminal.is("refused");
}

const GATEWAY_API: (&str, &str) = ("gateways", "gateway.networking.k8s.io");
const ACCEPTED: [&str; 4] = ["Accepted", "True", "Accepted", "the waypoint is accepted"];
const PROGRAMMED: [&str; 4] = ["Programmed", "True", "Programmed", "pods answer at waypoint.shop.svc.cluster.local"];
const PENDING: [&str; 4] =
    ["Programmed", "False", "Pending", "no pod of the waypoint is ready: see its Deployment and pods"];

#[tokio::test]
async fn a_waypoint_is_made_and_put_in_front_of_its_namespace() {
    let server = cluster::shop();
    server.tells(&[ACCEPTED, PROGRAMMED]);
    let mut terminal = Terminal::at("waypoint", &server).await;
    terminal.types("loam waypoint generate").await;
    terminal.types("loam waypoint generate --name w -n shop --for workload --revision v1").await;
    terminal.types("loam waypoint generate -o json").await;
    terminal.types("loam waypoint apply -n shop").await;
    terminal.types("loam waypoint list").await;
    server.knows(GATEWAY_API.0, GATEWAY_API.1);
    terminal.types("loam waypoint list").await;
    terminal.types("loam waypoint list -A").await;
    terminal.types("loam waypoint status -n shop").await;
    terminal.types("loam waypoint apply -n shop --for all -r v1").await;
    assert_eq!(server.labels("shop"), json!({"istio.io/dataplane-mode": "ambient"}), "nobody asked for more");
    terminal.types("loam waypoint apply -n shop --enroll-namespace --wait").await;
    let labels = json!({"istio.io/dataplane-mode": "ambient", "istio.io/use-waypoint": "waypoint"});
    assert_eq!(server.labels("shop"), labels);
    terminal.types("loam waypoint apply -n shop --enroll-namespace").await;
    terminal.types("loam waypoint apply -n shop --name two --for all --enroll-namespace").await;
    assert_eq!(server.labels("shop"), labels, "somebody else decided");
    terminal.types("kubectl loam waypoint apply -n shop --name two --enroll-namespace --overwrite -o json").await;
    assert_eq!(server.labels("shop")["istio.io/use-waypoint"], "two");
    terminal.types("loam waypoint apply -n bank --enroll-namespace").await;
    terminal.types("loam waypoint list -A").await;
    terminal.types("loam waypoint list -n shop").await;
    terminal.types("loam waypoint list -n shop -o json").await;
    terminal.types("loam waypoint status").await;
    terminal.types("loam waypoint apply -n nowhere").await;
    terminal.types("loam waypoint apply -n shop --name none").await;
    terminal.is("waypoint");
}

#[tokio::test]
async fn a_waypoint_that_is_not_programmed_says_why() {
    let server = cluster::shop();
    server.knows(GATEWAY_API.0, GATEWAY_API.1);
    let mut terminal = Terminal::at("waypoint-unwell", &server).await;
    terminal.types("loam waypoint apply -n shop --wait --timeout 0s").await;
    server.tells(&[ACCEPTED, PENDING]);
    terminal.types("loam waypoint apply -n shop --wait --waypoint-timeout 0s --enroll-namespace").await;
    assert_eq!(server.labels("shop"), json!({"istio.io/dataplane-mode": "ambient"}), "what is not there is not named");
    let taken =
        "Service shop/taken exists and is somebody else's: give the Gateway another name, or delete the Service";
    server.tells(&[ACCEPTED, ["Programmed", "False", "Invalid", taken]]);
    terminal.types("loam waypoint apply -n shop --name taken --wait").await;
    server.tells(&[
        ["Accepted", "False", "InvalidParameters", "ConfigMap shop/options does not exist"],
        ["Programmed", "False", "Invalid", "the Gateway is not accepted"],
    ]);
    terminal.types("loam waypoint apply -n shop --name wrong --wait --enroll-namespace").await;
    server.tells(&[ACCEPTED, PROGRAMMED]);
    terminal.types("loam waypoint apply -n shop --name good").await;
    terminal.types("loam waypoint status -n shop").await;
    terminal.types("loam waypoint status -n shop good").await;
    terminal.types("loam waypoint status -n shop waypoint -o json").await;
    terminal.types("kubectl loam waypoint status -n shop good lost gone").await;
    server.put(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"namespace": "shop", "name": "door"}, "spec": {"gatewayClassName": "other"},
    }));
    terminal.types("loam waypoint apply -n shop --name door").await;
    server.forbid("list", "gateways");
    server.forbid("patch", "gateways");
    terminal.types("loam waypoint status -n shop").await;
    terminal.types("loam waypoint apply -n shop").await;
    terminal.is("waypoint-unwell");
}

#[tokio::test]
async fn who_still_names_a_deleted_waypoint_is_told() {
    let server = cluster::shop();
    server.knows(GATEWAY_API.0, GATEWAY_API.1);
    let mut terminal = Terminal::at("waypoint-delete", &server).await;
    server.put(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": "web", "labels": {"istio.io/use-waypoint": "two"}},
    }));
    terminal.types("loam waypoint delete -n shop").await;
    terminal.types("loam waypoint delete -n shop --all").await;
    for line in [
        "loam waypoint apply -n shop --enroll-namespace",
        "loam waypoint apply -n shop --name two",
        "loam waypoint apply -n shop --name three --revision v1",
        "loam waypoint apply -n shop --name four",
        "loam waypoint delete -n shop --revision v1",
        "loam waypoint delete -n shop four lost",
        "loam waypoint delete -n shop four --all",
        "loam waypoint delete -n shop --all",
        "loam waypoint list -A",
    ] {
        terminal.types(line).await;
    }
    server.forbid("list", "services");
    server.forbid("get", "namespaces");
    terminal.types("loam waypoint delete -n shop waypoint -o json").await;
    terminal.is("waypoint-delete");
}

#[tokio::test]
async fn the_command_line_explains_itself() {
    let server = Server::new();
    let lines = ["loam --help", "kubectl loam enroll --help", "loam stauts", "kubectl loam enroll", "loam --version"];
    follow("help", &server, &lines).await;
    let terminal = Terminal::at("completion", &server).await;
    for shell in ["bash", "zsh", "fish"] {
        let script = terminal.run(&format!("loam completion {shell}")).await;
        assert!(script.status.success() && String::from_utf8_lossy(&script.stdout).contains("unenroll"), "{shell}");
    }
}
