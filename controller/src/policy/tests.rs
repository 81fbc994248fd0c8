//! Policies through the front door: manifests in, and a proxy's verdict out.

mod broken;
mod layers;
mod rules;

use std::fmt::Write;
use std::sync::Arc;

use loam_core::authz::{Facts, Verdict, judge};
use loam_core::ids::{Identity, TrustDomain, WorkloadUid};
use loam_core::snapshot::Snapshot;
use loam_manifest::{Key, Kind};

use crate::index::{Index, Mesh};
use crate::publish::Published;
use crate::resource::Name;

/// Pods as `namespace/name ip labels`.
const PODS: [(&str, &str, &str); 5] = [
    ("shop/api", "10.0.0.1", "app: api, tier: front"),
    ("shop/db", "10.0.0.2", "app: db, tier: back"),
    ("other/api", "10.0.1.1", "app: api"),
    ("other/db", "10.0.1.2", "app: db"),
    ("istio-system/api", "10.0.2.1", "app: api"),
];

struct Cluster {
    index: Index,
    published: Published,
}

impl Cluster {
    fn new() -> Self {
        Self::with_aliases(&[])
    }

    fn with_aliases(aliases: &[&str]) -> Self {
        let mesh = Mesh {
            cluster: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: aliases.iter().map(|a| a.parse().unwrap()).collect(),
            root_namespace: "istio-system".into(),
            egress: Default::default(),
            network: "".into(),
        };
        let mut cluster = Self { index: Index::new(mesh), published: Published::default() };
        for (name, ip, labels) in PODS {
            cluster.pod(name, ip, labels);
        }
        cluster
    }

    fn pod(&mut self, name: &str, ip: &str, labels: &str) {
        let (namespace, name) = name.split_once('/').unwrap();
        self.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
             spec: {{nodeName: n1, containers: []}}\nstatus: {{podIP: {ip}}}\n"
        ));
    }

    /// Applies manifests. What the source itself finds wrong is told.
    fn apply(&mut self, yaml: &str) -> Vec<String> {
        let state = loam_manifest::read([("m.yaml", yaml.as_bytes())]);
        state.objects.into_iter().for_each(|object| self.index.apply(object));
        self.compile();
        state.problems.iter().map(ToString::to_string).collect()
    }

    /// Applies an AuthorizationPolicy `namespace/name` with a specification in one line.
    fn authorize(&mut self, name: &str, spec: &str) {
        assert_eq!(self.apply(&manifest("AuthorizationPolicy", name, "{}", spec)), [""; 0]);
    }

    /// Applies a PeerAuthentication in the same way.
    fn authenticate(&mut self, name: &str, spec: &str) {
        assert_eq!(self.apply(&manifest("PeerAuthentication", name, "{}", spec)), [""; 0]);
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        let (namespace, name) = name.split_once('/').unwrap();
        self.index.delete(&Key { kind, namespace: namespace.into(), name: name.into() });
        self.compile();
    }

    fn compile(&mut self) {
        let compiled = self.index.compile();
        self.published.publish(compiled);
    }

    /// The verdict on `shop/web@10.9.9.9 > shop/api:80`; who connects without identity is `-`, and one of another trust
    /// domain is `td!ns/sa`.
    fn ask(&self, question: &str) -> String {
        verdict(&self.published.snapshot(), question)
    }

    #[track_caller]
    fn check(&self, answers: &[(&str, &str)]) {
        let snapshot = self.published.snapshot();
        for (question, expected) in answers {
            assert_eq!(verdict(&snapshot, question), *expected, "{question}\n{}", self.told());
        }
    }

    /// What is told about a policy: its condition and its rules.
    fn status(&self, object: &str) -> String {
        let statuses = self.index.policies();
        let status = statuses.iter().find(|s| s.object.ends_with(object)).expect("every policy has a status");
        let mut text = String::new();
        for c in &status.conditions {
            let _ = write!(text, "{} {} {:?}: {}", c.kind, c.status, c.reason, c.message);
        }
        for rule in &status.rules {
            let _ = write!(text, "\n{}: {}", rule.rule, rule.message);
        }
        text
    }

    fn told(&self) -> String {
        let all: Vec<_> =
            self.index.policies().iter().map(|s| format!("{}: {}", s.object, self.status(&s.object))).collect();
        all.join("\n")
    }

    fn problems(&self) -> Vec<String> {
        let line = |p: &crate::index::Problem| {
            format!("{}:{}: {}: {}", p.file.as_deref().unwrap_or("?"), p.line.unwrap_or(0), p.object, p.message)
        };
        self.index.problems().iter().map(line).collect()
    }
}

fn manifest(kind: &str, name: &str, annotations: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}\nspec: {spec}\n"
    )
}

fn verdict(snapshot: &Snapshot, question: &str) -> String {
    let (source, destination) = question.split_once(" > ").unwrap();
    let (source, source_ip) = source.split_once('@').unwrap_or((source, "10.9.9.9"));
    let (domain, account) = source.split_once('!').unwrap_or((TrustDomain::DEFAULT, source));
    let source = account.split_once('/').map(|(ns, sa)| Identity::new(domain.parse().unwrap(), ns, sa).unwrap());
    let (pod, port) = destination.split_once(':').unwrap();
    let name = {
        let (ns, name) = pod.split_once('/').unwrap();
        Name::new(ns, name)
    };
    let workload = snapshot.workload(&WorkloadUid::of_pod("Kubernetes", &name.namespace, &name.name)).unwrap();
    let facts = Facts {
        source: source.as_ref(),
        source_ip: source_ip.parse().unwrap(),
        destination_ip: workload.addresses[0],
        destination_port: port.parse().unwrap(),
    };
    match judge(snapshot, workload, &facts) {
        Verdict::Allow => "allow".to_owned(),
        Verdict::Deny { reason, policy, .. } => {
            format!("{} {}", reason.as_str(), policy.as_ref().map_or("-", Arc::as_ref))
        }
    }
}
