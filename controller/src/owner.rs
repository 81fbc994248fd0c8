//! The one owner of the index: takes in what the source says, and puts the result in force.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loam_kube::Updates;
use loam_manifest::{Severity, Update};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::index::{self, Compiled, Index, Mesh, Residents, Wishes};
use crate::policy::status::Status;
use crate::publish::Published;

/// Problems that are logged at one moment; all of them are shown by `/debug/problems`.
const MAX_LOGGED: usize = 100;

/// Pause between two steps: a proxy that keeps up has taken the first long before. One that does not may be told both
/// at once.
const STEP: Duration = Duration::from_millis(500);

/// Pause before what is to be written to an API server is put together: much of what changes, changes together.
const WRITE: Duration = Duration::from_millis(50);

/// One thing that somebody should look at, wherever it was found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// The file, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The object, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What is wrong and what was done about it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{file}:{line}: ")?,
            (Some(file), None) => write!(f, "{file}: ")?,
            (None, _) => {}
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// What others may see of the owner's work.
#[derive(Debug, Clone)]
pub struct View {
    /// All problems there are.
    pub problems: watch::Receiver<Arc<[Problem]>>,
    /// What is told about each policy.
    pub policies: watch::Receiver<Arc<[Status]>>,
    /// How many objects are indexed.
    pub counts: Arc<Counts>,
}

/// How many objects are indexed, for metrics.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the names of Kubernetes kinds say it")]
pub struct Counts {
    pub pods: AtomicUsize,
    pub services: AtomicUsize,
    pub slices: AtomicUsize,
}

/// Owns the index.
#[derive(Debug)]
pub struct Owner {
    index: Index,
    published: Published,
    /// What is to be told later, and when.
    steps: VecDeque<Compiled>,
    due: Option<Instant>,
    of_source: Vec<loam_manifest::Problem>,
    problems: watch::Sender<Arc<[Problem]>>,
    policies: watch::Sender<Arc<[Status]>>,
    counts: Arc<Counts>,
    writing: Option<Writing>,
}

/// What is to be written to an API server, while this controller leads.
#[derive(Debug)]
struct Writing {
    leads: watch::Receiver<bool>,
    wishes: watch::Sender<Arc<Wishes>>,
    due: Option<Instant>,
}

impl Owner {
    /// An owner that publishes to `published`.
    pub fn new(mesh: Mesh, published: Published) -> Self {
        let (problems, policies) = (watch::Sender::new(Arc::default()), watch::Sender::new(Arc::default()));
        let index = Index::new(mesh);
        let (steps, due) = (VecDeque::new(), None);
        Self {
            index,
            published,
            steps,
            due,
            of_source: Vec::new(),
            problems,
            policies,
            counts: Arc::default(),
            writing: None,
        }
    }

    /// Who runs where.
    pub fn residents(&self) -> Arc<Residents> {
        self.index.residents()
    }

    /// What others may see.
    pub fn view(&self) -> View {
        let (problems, policies) = (self.problems.subscribe(), self.policies.subscribe());
        View { problems, policies, counts: Arc::clone(&self.counts) }
    }

    /// What is to be written to an API server, while `leads` says so.
    pub fn wishes(&mut self, leads: watch::Receiver<bool>) -> watch::Receiver<Arc<Wishes>> {
        let (wishes, wished) = watch::channel(Arc::default());
        self.writing = Some(Writing { leads, wishes, due: None });
        wished
    }

    /// Takes in all that there is to begin with. Nothing is published before it is complete: half a mesh would look
    /// like one in which the other half is gone. Returns false when the source has ended.
    pub async fn begin(&mut self, updates: &mut Updates) -> bool {
        let (started, mut objects) = (Instant::now(), 0);
        while let Some(update) = updates.next().await {
            objects += update.changes.len();
            let (complete, told) = (update.complete, update.problems.is_some());
            self.take(update);
            if complete {
                self.finish(started, objects);
                return true;
            }
            if told {
                // Whoever waits may see for what. What is wrong with half a mesh nobody knows.
                self.tell_problems(Vec::new());
            }
        }
        false
    }

    /// Takes in what changed and puts it in force.
    pub fn update(&mut self, update: Update) {
        let started = Instant::now();
        let objects = update.changes.len();
        self.take(update);
        self.finish(started, objects);
    }

    fn take(&mut self, update: Update) {
        update.changes.into_iter().for_each(|change| self.index.change(change));
        if let Some(problems) = update.problems {
            self.of_source = problems;
        }
    }

    /// Follows the source until it ends.
    pub async fn follow(mut self, mut updates: Updates) {
        let mut leads = self.writing.as_ref().map(|writing| writing.leads.clone());
        loop {
            let due = self.due;
            let pause = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await };
            let write = self.writing.as_ref().and_then(|writing| writing.due);
            let wished = async { tokio::time::sleep_until(write.unwrap_or_else(Instant::now)).await };
            let turned = async {
                let turned = match &mut leads {
                    Some(leads) => leads.changed().await.is_ok(),
                    None => false,
                };
                if !turned {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = turned => self.write_soon(),
                () = wished, if write.is_some() => self.wish(),
                update = updates.next() => match update {
                    Some(update) => self.update(update),
                    None => return,
                },
                () = pause, if due.is_some() => drop(self.step()),
            }
        }
    }

    /// What is to be written may be something else.
    fn write_soon(&mut self) {
        if let Some(writing) = &mut self.writing {
            let leads = *writing.leads.borrow();
            // A time that is set stays: what changes all the time is written too.
            writing.due = leads.then(|| writing.due.unwrap_or_else(|| Instant::now() + WRITE));
        }
    }

    fn wish(&mut self) {
        if let Some(writing) = &mut self.writing {
            writing.due = None;
            let wishes = self.index.wishes();
            writing.wishes.send_if_modified(|before| {
                let moved = **before != wishes;
                *before = Arc::new(wishes);
                moved
            });
        }
    }

    /// Tells the next step, if one is left. Returns how many resources really are different.
    fn step(&mut self) -> Option<usize> {
        let step = self.steps.pop_front();
        self.due = (!self.steps.is_empty()).then(|| Instant::now() + STEP);
        step.map(|step| self.published.publish(step))
    }

    fn finish(&mut self, started: Instant, objects: usize) {
        let compiled = self.index.compile();
        let resources = compiled.changes.len()
            + compiled.policies.len()
            + compiled.last.len()
            + compiled.routes.len()
            + compiled.traffic.len();
        // What is left of the last change comes before this one.
        while self.step().is_some() {}
        self.steps.extend(compiled.steps());
        let changed = self.step().unwrap_or_default();
        let [pods, services, slices] = self.index.counts();
        let Counts { pods: all_pods, services: all_services, slices: all_slices } = &*self.counts;
        for (count, value) in [(all_pods, pods), (all_services, services), (all_slices, slices)] {
            count.store(value, Ordering::Relaxed);
        }
        let millis = started.elapsed().as_millis();
        if changed > 0 {
            tracing::info!(objects, resources, changed, pods, services, slices, millis, "manifests applied");
        } else if objects > 0 {
            // A cluster tells much that is of no consequence here.
            tracing::debug!(objects, resources, "manifests changed nothing");
        }
        self.policies.send_replace(self.index.policies());
        self.write_soon();
        let of_index = self.index.problems();
        self.tell_problems(of_index);
    }

    fn tell_problems(&mut self, of_index: Vec<index::Problem>) {
        let of_source = self.of_source.iter().map(|p| Problem {
            severity: p.severity,
            file: Some(p.file.to_string()).filter(|f| !f.is_empty()),
            line: p.line,
            object: p.object.as_ref().map(ToString::to_string),
            message: p.message.clone(),
        });
        let of_index = of_index.into_iter().map(|p| Problem {
            severity: p.severity,
            file: p.file.map(|file| file.to_string()).filter(|f| !f.is_empty()),
            line: p.line.filter(|line| *line > 0),
            object: Some(p.object.to_string()),
            message: p.message,
        });
        let problems: Arc<[Problem]> = of_source.chain(of_index).collect();
        let before = self.problems.borrow().clone();
        if before == problems {
            return;
        }
        let told: HashSet<&Problem> = before.iter().collect();
        let fresh: Vec<_> = problems.iter().filter(|p| !told.contains(p)).collect();
        for problem in fresh.iter().take(MAX_LOGGED) {
            match problem.severity {
                Severity::Error => tracing::warn!(problem = %problem, "manifests have a problem"),
                Severity::Note => tracing::info!(note = %problem, "part of the manifests is ignored"),
            }
        }
        if let Some(more) = fresh.len().checked_sub(MAX_LOGGED + 1) {
            tracing::warn!(more = more + 1, "manifests have more problems: see /debug/problems");
        }
        if problems.is_empty() {
            tracing::info!("manifests have no problems any more");
        }
        self.problems.send_replace(problems);
    }
}

#[cfg(test)]
mod tests {
    use loam_core::ids::{TrustDomain, WorkloadUid};
    use loam_core::policy::Scope;
    use loam_manifest::Change;

    use super::*;

    fn owner() -> Owner {
        let mesh = Mesh {
            cluster: "c".into(),
            cluster_domain: "cluster.local".into(),
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: Arc::default(),
            root_namespace: "istio-system".into(),
            egress: Default::default(),
            network: "".into(),
        };
        Owner::new(mesh, Published::default())
    }

    fn update(yaml: &str) -> Update {
        let objects = loam_manifest::read([("m.yaml", yaml.as_bytes())]).objects;
        Update { changes: objects.into_iter().map(Change::Applied).collect(), problems: None, complete: true }
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\n\
                       spec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n";

    fn policy(spec: &str) -> Update {
        let head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}";
        update(&format!("{head}\nspec: {spec}\n"))
    }

    const SELECTING: &str = "{action: DENY, selector: {matchLabels: {app: web}}, rules: [{}]}";
    const FOR_ALL: &str = "{action: DENY, rules: [{}]}";

    /// Whether the pod lists the policy, and whom the policy is about.
    fn known(owner: &Owner) -> (bool, Option<Scope>) {
        let snapshot = owner.published.snapshot();
        let pod = snapshot.workload(&WorkloadUid::of_pod("c", "shop", "web")).expect("the pod is there");
        let scope = snapshot.policies().find(|p| &*p.key == "shop/p").map(|p| p.scope);
        (!pod.policies.is_empty(), scope)
    }

    #[test]
    fn a_policy_that_gets_a_selector_is_about_all_until_pods_list_it() {
        let mut owner = owner();
        owner.update(update(POD));
        owner.update(policy(FOR_ALL));
        assert_eq!((known(&owner), owner.due), ((false, Some(Scope::Namespace)), None));
        owner.update(policy(SELECTING));
        assert_eq!(known(&owner), (true, Some(Scope::Namespace)));
        assert!(owner.due.is_some());
        owner.step();
        assert_eq!((known(&owner), owner.due), ((true, Some(Scope::Workload)), None));
    }

    #[test]
    fn a_policy_that_loses_its_selector_is_about_all_before_pods_cease_to_list_it() {
        let mut owner = owner();
        owner.update(update(POD));
        owner.update(policy(SELECTING));
        assert_eq!((known(&owner), owner.due), ((true, Some(Scope::Workload)), None));
        owner.update(policy(FOR_ALL));
        assert_eq!(known(&owner), (true, Some(Scope::Namespace)));
        // What comes in between does not wait, and loses nothing.
        owner.update(update(""));
        assert_eq!((known(&owner), owner.due), ((false, Some(Scope::Namespace)), None));
    }
}
