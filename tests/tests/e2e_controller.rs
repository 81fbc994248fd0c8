//! Controllers beside a real API server, with the rights that their documentation lists and no others.
#![expect(clippy::print_stdout, reason = "a test's output is read by the runner")]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::cluster::{Kubectl, PAUSE_IMAGE};
use loam_tests::release::Release;
use loam_tests::report::Signed;
use loam_tests::testing::on_cluster;
use loam_tests::{bin, eventually};
use serde_json::{Value, json};

/// Where everything is that a test makes.
const NAMESPACE: &str = "controller-e2e";
/// One that comes when controllers run already.
const LATE: &str = "controller-e2e-late";
/// The ConfigMap with the roots.
const ROOTS: &str = "istio-ca-root-cert";
/// Longest start of a pod or a controller on a busy machine.
const START: Duration = Duration::from_secs(120);
/// Until a change has arrived, whatever happened in between.
const ARRIVAL: Duration = Duration::from_secs(60);

/// What `loam_controller`'s documentation says a service account needs in its own namespace.
const OWN_RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: controller, namespace: controller-e2e}
rules:
  - {apiGroups: [""], resources: [secrets], verbs: [create]}
  - {apiGroups: [""], resources: [secrets], resourceNames: [cacerts, istio-ca-secret], verbs: [get]}
  - {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
  - {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [loam-controller-leader], verbs: [get, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: controller, namespace: controller-e2e}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: controller}
subjects: [{kind: ServiceAccount, name: istiod, namespace: controller-e2e}]
"#;

/// The same in the whole cluster.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: controller-e2e}
rules:
  - {apiGroups: [""], resources: [namespaces, nodes, pods, services], verbs: [list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
  - {apiGroups: [security.istio.io], resources: [authorizationpolicies, peerauthentications], verbs: [list, watch]}
  - {apiGroups: [networking.istio.io], resources: [serviceentries, sidecars, workloadentries], verbs: [list, watch]}
  - {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
  - {apiGroups: [""], resources: [configmaps], verbs: [create]}
  - {apiGroups: [""], resources: [configmaps], resourceNames: [istio-ca-root-cert], verbs: [get, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: controller-e2e}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: controller-e2e}
subjects: [{kind: ServiceAccount, name: istiod, namespace: controller-e2e}]
"#;

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn nodes_are_known_by_the_tokens_of_their_pods() {
    on_cluster(|kubectl| {
        let bench = Bench::new(kubectl)?;
        kubectl.apply(OWN_RIGHTS)?;
        let controller = bench.controller("one", 0)?;
        eventually(START, || {
            let problems = controller.get("debug/problems")?;
            let rule = r#"{apiGroups: [\"\"], resources: [pods], verbs: [list, watch]}"#;
            ensure!(problems.contains("list pods: forbidden") && problems.contains(rule), "{problems}");
            Ok(())
        })?;
        ensure!(controller.get("ready").is_err(), "it is ready and knows nothing");
        kubectl.apply(RIGHTS)?;
        controller.until_ready()?;
        let problems = controller.get("debug/problems")?;
        // Other tests leave the definitions of policies behind, as an uninstall does.
        let definition = "authorizationpolicies.security.istio.io";
        let found = kubectl.run(&["get", "crd", definition, "--ignore-not-found", "--output", "name"])?;
        ensure!(problems.contains(&format!("no CRD {definition}")) == found.is_empty(), "{found:?}: {problems}");

        let nodes = bench.nodes()?;
        for (pod, account, node) in [("proxy", "ztunnel", 0), ("web", "web", 0), ("db", "db", 1)] {
            bench.pod(pod, account, &nodes[node])?;
        }
        let workload = |pod: &str| format!("Kubernetes//Pod/{NAMESPACE}/{pod}");
        eventually(ARRIVAL, || {
            let workloads = controller.get("debug/workloads")?;
            ensure!(["web", "db"].iter().all(|pod| workloads.contains(&workload(pod))), "{workloads}");
            Ok(())
        })?;

        let proxy = ["--audience=istio-ca", "--bound-object-kind=Pod", "--bound-object-name=proxy"];
        let good = bench.token("ztunnel", &proxy)?;
        let signed = controller.sign(&good, "web")?;
        ensure!(signed.certificates > 0, "{signed:?}");
        for (token, account, why) in [
            (good, "db", "PermissionDenied"),
            (
                bench.token("ztunnel", &["--bound-object-kind=Pod", "--bound-object-name=proxy"])?,
                "web",
                "Unauthenticated",
            ),
            (bench.token("ztunnel", &["--audience=istio-ca"])?, "web", "Unauthenticated"),
            (
                bench.token("web", &["--audience=istio-ca", "--bound-object-kind=Pod", "--bound-object-name=web"])?,
                "web",
                "Unauthenticated",
            ),
            ("nonsense".to_owned(), "web", "Unauthenticated"),
        ] {
            let refused = controller.sign(&token, account)?;
            let error = refused.error.unwrap_or_default();
            ensure!(error.contains(why), "a certificate of {account}: {error:?} does not say {why}");
        }
        bench.close()
    });
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn one_of_two_controllers_keeps_the_roots_in_every_namespace() {
    on_cluster(|kubectl| {
        let bench = Bench::new(kubectl)?;
        let mut poor = bench.controller("poor", 2)?;
        let end = eventually(START, || poor.child.try_wait()?.context("a controller without rights goes on"))?;
        ensure!(!end.success() && poor.log().contains("resources: [secrets], verbs: [get, create]"), "{}", poor.log());

        kubectl.apply(OWN_RIGHTS)?;
        kubectl.apply(RIGHTS)?;
        let (one, two) = (bench.controller("one", 0)?, bench.controller("two", 1)?);
        one.until_ready()?;
        two.until_ready()?;
        let root = bench.roots(NAMESPACE)?;
        ensure!(root.starts_with("-----BEGIN CERTIFICATE-----"), "{root}");
        eventually(ARRIVAL, || {
            for namespace in bench.names("namespaces")? {
                ensure!(bench.roots(&namespace)? == root, "{namespace} has other roots");
            }
            Ok(())
        })?;

        let within = |namespace: &'static str| ["--namespace", namespace];
        kubectl.run(&[&within("default")[..], &["delete", "configmap", ROOTS]].concat())?;
        let changed = json!({"data": {"root-cert.pem": "foreign"}}).to_string();
        let patch = ["patch", "configmap", ROOTS, "--type=merge", "--patch", &changed];
        kubectl.run(&[&within(NAMESPACE)[..], &patch].concat())?;
        eventually(ARRIVAL, || {
            for namespace in ["default", NAMESPACE] {
                ensure!(bench.roots(namespace)? == root, "{namespace} has other roots");
            }
            Ok(())
        })?;

        let leader = bench.leader()?;
        let (mut first, second) = if leader.starts_with("one_") { (one, two) } else { (two, one) };
        first.child.kill()?;
        first.child.wait()?;
        kubectl.run(&["create", "namespace", LATE])?;
        eventually(ARRIVAL, || {
            ensure!(bench.roots(LATE)? == root, "{LATE} has other roots");
            Ok(())
        })?;
        let other = bench.leader()?;
        ensure!(other != leader && other.starts_with(&format!("{}_", second.name)), "{leader} was followed by {other}");
        second.until_ready()?;
        bench.close()
    });
}

/// A namespace with the accounts of controllers and proxies, and a place for files.
struct Bench<'a> {
    kubectl: &'a Kubectl,
    dir: PathBuf,
}

impl<'a> Bench<'a> {
    fn new(kubectl: &'a Kubectl) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("loam-{NAMESPACE}-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        // Two meshes that keep their roots in every namespace take them from each other.
        Release::absent(kubectl)?;
        let bench = Self { kubectl, dir };
        bench.forget()?;
        let labels = json!({"istio.io/dataplane-mode": "ambient"});
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}});
        kubectl.apply(&namespace.to_string())?;
        for account in ["istiod", "ztunnel", "web", "db"] {
            kubectl.run(&["create", "serviceaccount", account, "--namespace", NAMESPACE])?;
        }
        Ok(bench)
    }

    /// Takes away what a test made.
    fn forget(&self) -> Result<()> {
        let gone = ["delete", "--ignore-not-found", "--timeout=120s"];
        self.kubectl.run(&[&gone[..], &["clusterrolebinding,clusterrole", NAMESPACE]].concat())?;
        self.kubectl.run(&[&gone[..], &["namespace", NAMESPACE, LATE]].concat())?;
        for namespace in self.names("namespaces")? {
            self.kubectl.run(&[&gone[..], &["configmap", ROOTS, "--namespace", &namespace]].concat())?;
        }
        Ok(())
    }

    fn close(self) -> Result<()> {
        self.forget()?;
        fs::remove_dir_all(&self.dir).context("remove the files of the test")
    }

    fn names(&self, kind: &str) -> Result<Vec<String>> {
        let path = r#"jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}"#;
        Ok(self.kubectl.run(&["get", kind, "--output", path])?.lines().map(str::to_owned).collect())
    }

    fn nodes(&self) -> Result<Vec<String>> {
        let nodes = self.names("nodes")?;
        ensure!(nodes.len() > 1, "this test needs two nodes, and there are {nodes:?}");
        Ok(nodes)
    }

    /// A pod that does nothing, running on a node.
    fn pod(&self, name: &str, account: &str, node: &str) -> Result<()> {
        let container = json!({"name": "pause", "image": PAUSE_IMAGE, "imagePullPolicy": "IfNotPresent"});
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "nodeName": node,
                "serviceAccountName": account,
                "terminationGracePeriodSeconds": 1,
                "containers": [container],
            },
        });
        self.kubectl.apply(&pod.to_string())?;
        let ready = format!("pod/{name}");
        let wait = ["wait", "--for=condition=Ready", "--timeout=0s", "--namespace", NAMESPACE, &ready];
        eventually(START, || self.kubectl.run(&wait).map(drop))
    }

    fn token(&self, account: &str, wish: &[&str]) -> Result<String> {
        let order = ["create", "token", account, "--namespace", NAMESPACE];
        Ok(self.kubectl.run(&[&order[..], wish].concat())?.trim().to_owned())
    }

    fn roots(&self, namespace: &str) -> Result<String> {
        let path = r"jsonpath={.data.root-cert\.pem}";
        eventually(ARRIVAL, || {
            self.kubectl.run(&["get", "configmap", ROOTS, "--namespace", namespace, "--output", path])
        })
    }

    fn leader(&self) -> Result<String> {
        let path = "jsonpath={.spec.holderIdentity}";
        self.kubectl.run(&["get", "lease", "loam-controller-leader", "--namespace", NAMESPACE, "--output", path])
    }

    /// A controller that calls the API server as the account `istiod`.
    fn controller(&self, name: &'static str, index: u16) -> Result<Controller> {
        let seen: Value = serde_json::from_str(&self.kubectl.run(&["config", "view", "--raw", "--output=json"])?)?;
        let cluster = &seen["clusters"][0];
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "users": [{"name": "istiod", "user": {"token": self.token("istiod", &[])?}}],
            "contexts": [{"name": "e2e", "context": {"cluster": cluster["name"], "user": "istiod"}}],
            "current-context": "e2e",
        });
        let kubeconfig = self.dir.join(format!("{name}.kubeconfig"));
        fs::write(&kubeconfig, config.to_string())?;
        let (port, log) = (25_000 + 100 * index, self.dir.join(format!("{name}.log")));
        let text = File::create(&log)?;
        let child = Command::new(bin::path("loam-controller")?)
            .args(["--source", "kubernetes", "--namespace", NAMESPACE, "--serving-name", "127.0.0.1"])
            .args(["--trusted-node-account", &format!("{NAMESPACE}/ztunnel")])
            .args(["--listen", &format!("127.0.0.1:{}", port + 12), "--admin", &format!("127.0.0.1:{}", port + 14)])
            .env("KUBECONFIG", kubeconfig)
            .env("HOSTNAME", name)
            .env_remove("POD_NAMESPACE")
            .stdin(Stdio::null())
            .stdout(text.try_clone()?)
            .stderr(text)
            .spawn()
            .context("start loam-controller")?;
        Ok(Controller { name, child, port, log, dir: self.dir.clone() })
    }
}

/// A controller of this test. It ends with this value, and what it said is shown when the test fails.
struct Controller {
    name: &'static str,
    child: Child,
    port: u16,
    log: PathBuf,
    dir: PathBuf,
}

impl Controller {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What its admin server answers, if that is a success.
    fn get(&self, path: &str) -> Result<String> {
        tool(&["get", &format!("http://127.0.0.1:{}/{path}", self.port + 14)])
    }

    fn until_ready(&self) -> Result<()> {
        eventually(START, || self.get("ready").map(drop))
    }

    /// Asks it for a certificate of an account, with a token.
    fn sign(&self, token: &str, account: &str) -> Result<Signed> {
        let (token_file, root_file) = (self.dir.join("token"), self.dir.join("root-cert.pem"));
        fs::write(&token_file, token)?;
        let kubectl = Kubectl::from_environment()?;
        let path = r"jsonpath={.data.root-cert\.pem}";
        let roots = ["get", "configmap", ROOTS, "--namespace", NAMESPACE, "--output", path];
        fs::write(&root_file, eventually(ARRIVAL, || kubectl.run(&roots))?)?;
        let identity = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{account}");
        let address = format!("127.0.0.1:{}", self.port + 12);
        let (token, root) = (token_file.display().to_string(), root_file.display().to_string());
        let text =
            tool(&["sign", "--address", &address, "--ca-root", &root, "--token", &token, "--identity", &identity])?;
        serde_json::from_str(&text).with_context(|| format!("read {text:?}"))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        println!("--- controller {}\n{}", self.name, self.log());
    }
}

/// Runs the lab's tool and gives its standard output.
fn tool(arguments: &[&str]) -> Result<String> {
    let output = Command::new(bin::path("loam-lab")?).args(arguments).output().context("start loam-lab")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "loam-lab {}: {}", arguments.join(" "), error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
