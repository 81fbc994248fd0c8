//! The one owner of the index: takes in what the source says, and puts the result in force.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use loam_manifest::{Manifests, Severity, Update};
use serde::Serialize;
use tokio::sync::watch;

use crate::index::{Index, Mesh, Residents};
use crate::publish::Published;

/// Problems that are logged at one moment; all of them are shown by `/debug/problems`.
const MAX_LOGGED: usize = 100;

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
    of_source: Vec<loam_manifest::Problem>,
    problems: watch::Sender<Arc<[Problem]>>,
    counts: Arc<Counts>,
}

impl Owner {
    /// An owner that publishes to `published`.
    pub fn new(mesh: Mesh, published: Published) -> Self {
        let problems = watch::Sender::new(Arc::default());
        Self { index: Index::new(mesh), published, of_source: Vec::new(), problems, counts: Arc::default() }
    }

    /// Who runs where.
    pub fn residents(&self) -> Arc<Residents> {
        self.index.residents()
    }

    /// What others may see.
    pub fn view(&self) -> View {
        View { problems: self.problems.subscribe(), counts: Arc::clone(&self.counts) }
    }

    /// Takes in all that there is to begin with. Nothing is published before it is complete: half a mesh would look
    /// like one in which the other half is gone. Returns false when the source has ended.
    pub async fn begin(&mut self, manifests: &mut Manifests) -> bool {
        let (started, mut objects) = (Instant::now(), 0);
        while let Some(update) = manifests.next().await {
            objects += update.changes.len();
            let complete = update.complete;
            self.take(update);
            if complete {
                self.finish(started, objects);
                return true;
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
    pub async fn follow(mut self, mut manifests: Manifests) {
        while let Some(update) = manifests.next().await {
            self.update(update);
        }
    }

    fn finish(&mut self, started: Instant, objects: usize) {
        let compiled = self.index.compile();
        let resources = compiled.changes.len();
        let changed = self.published.publish(compiled);
        let [pods, services, slices] = self.index.counts();
        let Counts { pods: all_pods, services: all_services, slices: all_slices } = &*self.counts;
        for (count, value) in [(all_pods, pods), (all_services, services), (all_slices, slices)] {
            count.store(value, Ordering::Relaxed);
        }
        let millis = started.elapsed().as_millis();
        if objects > 0 {
            tracing::info!(objects, resources, changed, pods, services, slices, millis, "manifests applied");
        }
        self.tell_problems();
    }

    fn tell_problems(&mut self) {
        let of_source = self.of_source.iter().map(|p| Problem {
            severity: p.severity,
            file: Some(p.file.to_string()).filter(|f| !f.is_empty()),
            line: p.line,
            object: p.object.as_ref().map(ToString::to_string),
            message: p.message.clone(),
        });
        let of_index = self.index.problems().into_iter().map(|p| Problem {
            severity: Severity::Error,
            file: None,
            line: None,
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
