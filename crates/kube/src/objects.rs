//! All kinds together, as one source.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kube::Client;
use loam_manifest::{Change, Key, Kind, Object, Problem, Severity, State, Update};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::follow::{News, follow};
use crate::resource::{Selection, group, plural};

/// News that may wait to be put together.
const MAX_NEWS: usize = 256;

/// Updates that may wait for their reader. While one waits, what changes is put together in the next.
const MAX_UPDATES: usize = 1;

/// Objects told at once at the beginning.
const PIECE: usize = 500;

/// Objects that cannot be understood and are worth telling apart.
const MAX_FLAWED: usize = 1_000;

/// Objects of an API server that are being followed. Dropping it ends that.
#[derive(Debug)]
pub struct Objects {
    updates: mpsc::Receiver<Update>,
    _tasks: JoinSet<()>,
}

impl Objects {
    /// Begins to follow objects. What is there at the beginning comes as updates as well, a piece at a time, and the
    /// first that is `complete` says that all of it has come: a server that cannot be asked for one kind holds that
    /// up, and the problems say why.
    pub fn stream(client: &Client, selections: impl IntoIterator<Item = Selection>) -> Self {
        let (news, heard) = mpsc::channel(MAX_NEWS);
        let (sender, updates) = mpsc::channel(MAX_UPDATES);
        let mut tasks = JoinSet::new();
        let mut missing = BTreeSet::new();
        for selection in selections {
            missing.insert(selection.kind);
            tasks.spawn(follow(client.clone(), selection, news.clone()));
        }
        let gathered = Gathered { missing, ..Gathered::default() };
        tasks.spawn(gather(gathered, heard, sender));
        Self { updates, _tasks: tasks }
    }

    /// As [`Self::stream`], and waits for what is there at the beginning; the log says why it must. `None` when the
    /// source has ended.
    pub async fn open(client: &Client, selections: impl IntoIterator<Item = Selection>) -> Option<(State, Self)> {
        let mut objects = Self::stream(client, selections);
        let mut begun: HashMap<Key, Object> = HashMap::new();
        let mut state = State::default();
        loop {
            let update = objects.next().await?;
            for change in update.changes {
                match change {
                    Change::Applied(object) => drop(begun.insert(object.key(), object)),
                    Change::Deleted(key) => drop(begun.remove(&key)),
                }
            }
            if let Some(problems) = update.problems {
                for problem in problems.iter().filter(|p| !state.problems.contains(p)) {
                    tracing::warn!(%problem, "objects of the API server");
                }
                state.problems = problems;
            }
            if update.complete {
                state.objects = begun.into_values().collect();
                state.objects.sort_by_cached_key(Object::key);
                return Some((state, objects));
            }
        }
    }

    /// Waits for the next change. Nothing is lost when the wait is given up. `None` when the source has ended.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

/// What was heard and not told yet.
#[derive(Debug, Default)]
struct Gathered {
    /// Kinds that have not been listed for the first time.
    missing: BTreeSet<Kind>,
    /// The last change of each object.
    changes: HashMap<Key, Change>,
    troubles: BTreeMap<Kind, String>,
    /// Kinds that the server does not know.
    absent: BTreeSet<Kind>,
    flawed: BTreeMap<Key, String>,
    /// Whether problems are others than those told.
    problems: bool,
    /// Whether the beginning was told completely.
    begun: bool,
}

impl Gathered {
    fn hear(&mut self, news: News) {
        match news {
            News::Changed(change) => {
                let key = match &change {
                    Change::Applied(object) => object.key(),
                    Change::Deleted(key) => key.clone(),
                };
                self.problems |= self.flawed.remove(&key).is_some();
                self.changes.insert(key, change);
            }
            News::Flawed(key, why) => {
                if self.flawed.len() < MAX_FLAWED || self.flawed.contains_key(&key) {
                    self.flawed.insert(key, why);
                    self.problems = true;
                }
            }
            News::Complete(kind) => {
                self.missing.remove(&kind);
                self.problems |= self.absent.remove(&kind);
            }
            News::Absent(kind) => {
                self.missing.remove(&kind);
                self.problems |= self.absent.insert(kind);
            }
            News::Trouble(kind, trouble) => {
                self.problems = true;
                match trouble {
                    Some(why) => drop(self.troubles.insert(kind, why)),
                    None => drop(self.troubles.remove(&kind)),
                }
            }
        }
    }

    /// Whether there is something to tell: at the beginning problems or a piece, later anything.
    fn is_due(&self) -> bool {
        match self.begun {
            true => self.problems || !self.changes.is_empty(),
            false => self.problems || self.missing.is_empty() || self.changes.len() >= PIECE,
        }
    }

    fn update(&mut self) -> Update {
        let mut changes: Vec<Change> = self.changes.drain().map(|(_, change)| change).collect();
        // What others refer to is applied first and deleted last.
        changes.sort_by_cached_key(|change| match change {
            Change::Applied(object) => (false, object.key()),
            Change::Deleted(key) => (true, key.clone()),
        });
        let applied = changes.partition_point(|c| matches!(c, Change::Applied(_)));
        changes[applied..].reverse();
        self.begun |= self.missing.is_empty();
        let problems = self.problems.then(|| self.list_problems());
        self.problems = false;
        Update { changes, problems, complete: self.begun }
    }

    fn list_problems(&self) -> Vec<Problem> {
        let of = |severity, message: &str| Problem::new(severity, &"".into(), None, message);
        let done = match self.begun {
            true => "what was last read stays in force",
            false => "the API server is waited for",
        };
        let troubles = self.troubles.values().map(|why| of(Severity::Error, &format!("{done}: {why}")));
        let flawed = self.flawed.iter().map(|(key, why)| {
            let message = format!("cannot be read, and its last good version stays in force: {why}");
            of(Severity::Error, &message).about(key.clone())
        });
        let absent = self.absent.iter().map(|kind| {
            let crd = format!("{}.{}", plural(*kind), group(*kind));
            let message = format!("the API server has no CRD {crd}, and so there is no {kind}; it is looked for");
            of(Severity::Note, &message)
        });
        troubles.chain(flawed).chain(absent).collect()
    }
}

async fn gather(mut gathered: Gathered, mut heard: mpsc::Receiver<News>, updates: mpsc::Sender<Update>) {
    loop {
        // At the beginning whoever lists waits for the reader; later everything is heard at once, and put together.
        if !gathered.begun && gathered.is_due() {
            if updates.send(gathered.update()).await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            news = heard.recv() => match news {
                Some(news) => gathered.hear(news),
                None => return,
            },
            place = updates.reserve(), if gathered.is_due() => match place {
                Ok(place) => place.send(gathered.update()),
                Err(_) => return,
            },
        }
    }
}
