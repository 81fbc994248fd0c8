//! A directory, watched: the shell around the tree. One thread lists, reads and waits.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, oneshot};

use crate::document::Format;
use crate::object::Object;
use crate::parse::MAX_FILE_BYTES;
use crate::problem::{Problem, Severity};
use crate::settle::Settle;
use crate::tree::{Change, Content, Tree};

/// Look without being told, for what the kernel does not tell: a link to another directory, a network file system, a
/// directory that was replaced.
const RESCAN: Duration = Duration::from_secs(2);

/// Movements that may wait while files are read. When there are more, everything is looked at.
const MAX_WAKES: usize = 10_000;

/// Updates that may wait for their reader.
const MAX_UPDATES: usize = 8;

/// Text read at once after a change: what changed together is told together, up to this much.
const MAX_CHANGED_BYTES: usize = 64 << 20;

/// Text read at once at the beginning: small, because the objects in it take ten times the memory until their reader
/// has made something of them.
const MAX_FIRST_BYTES: usize = 4 << 20;

/// A file changed so short a time ago may change again without its stamp telling: clocks of file systems tick in
/// steps of 4 or 10 ms.
const FRESH: Duration = Duration::from_millis(20);

/// Most files of a directory: one per object of a large cluster.
const MAX_FILES: usize = 200_000;

/// A directory of manifests that is being watched. Dropping it ends the watch.
#[derive(Debug)]
pub struct Manifests {
    updates: mpsc::Receiver<Update>,
    wake: std_mpsc::SyncSender<Wake>,
}

/// What a directory says when it is opened.
#[derive(Debug, Default)]
pub struct State {
    /// Its objects, in the order of their kinds: what others refer to comes first.
    pub objects: Vec<Object>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// What changed at one moment.
#[derive(Debug)]
pub struct Update {
    /// Differences of objects; at most one for each.
    pub changes: Vec<Change>,
    /// All problems that there are, if they changed.
    pub problems: Option<Vec<Problem>>,
    /// Whether everything that was there at the beginning has been told.
    pub complete: bool,
}

/// Why a directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be listed.
    #[error("read the directory of manifests {0}")]
    List(PathBuf, #[source] io::Error),
    /// There is no thread for it.
    #[error("start the thread that watches {0}")]
    Thread(PathBuf, #[source] io::Error),
}

impl Manifests {
    /// Reads a directory and begins to watch it.
    ///
    /// Files that end in `.yaml`, `.yml` or `.json` count, hidden files and subdirectories do not.
    pub async fn open(dir: impl Into<PathBuf>) -> Result<(State, Self), OpenError> {
        let dir = dir.into();
        let mut manifests = Self::stream(dir.clone()).await?;
        let mut state = State::default();
        loop {
            let ended = || OpenError::Thread(dir.clone(), io::Error::other("it ended"));
            let update = manifests.next().await.ok_or_else(ended)?;
            state.objects.extend(update.changes.into_iter().filter_map(|change| match change {
                Change::Applied(object) => Some(object),
                Change::Deleted(_) => None,
            }));
            if update.complete {
                state.objects.sort_by_cached_key(Object::key);
                state.problems = update.problems.unwrap_or_default();
                return Ok((state, manifests));
            }
        }
    }

    /// As [`Self::open`], but what is there at the beginning comes as updates as well, a piece at a time, so that a
    /// large mesh never is in memory as a whole. Within a piece, what others refer to comes first.
    pub async fn stream(dir: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let dir: PathBuf = dir.into();
        let (wake, wakes) = std_mpsc::sync_channel(MAX_WAKES);
        let (sender, updates) = mpsc::channel(MAX_UPDATES);
        let (opened, open) = oneshot::channel();
        let mut worker = Worker::new(dir.clone(), wake.clone());
        let run = move || {
            // A file has a name, too, and listing it fails with words that say so.
            let listed = fs::read_dir(&worker.dir).map(drop);
            let failed = listed.is_err();
            if opened.send(listed).is_ok() && !failed {
                // An error says that nobody listens any more.
                let _ = worker.run(&wakes, &sender);
            }
        };
        let spawned = std::thread::Builder::new().name("manifests".to_owned()).spawn(run);
        spawned.map_err(|e| OpenError::Thread(dir.clone(), e))?;
        match open.await {
            Ok(Ok(())) => Ok(Self { updates, wake }),
            Ok(Err(e)) => Err(OpenError::List(dir, e)),
            Err(_) => Err(OpenError::Thread(dir, io::Error::other("it ended"))),
        }
    }

    /// Waits for the next change. Nothing is lost when the wait is given up. `None` when the watch has ended.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        // When the queue is full the thread is awake anyway, and finds that nobody listens.
        let _ = self.wake.try_send(Wake::Stop);
    }
}

#[derive(Debug)]
enum Wake {
    /// Something moved: which file, and whether it is known to be whole or known to be under way.
    Moved,
    Writing(PathBuf),
    Whole(PathBuf),
    Stop,
}

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn is_fresh(&self, now: SystemTime) -> bool {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = self.changed;
        let changed = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        since.saturating_sub(changed) < FRESH
    }
}

/// Content of a file that is owned until the tree has read it.
enum Loaded {
    Bytes(Vec<u8>),
    Gone,
    Unreadable(String),
}

struct Worker {
    dir: PathBuf,
    wake: std_mpsc::SyncSender<Wake>,
    /// The watch and the directory that it is on, which may have another name or be gone.
    watch: Option<(RecommendedWatcher, (u64, u64))>,
    watch_problem: Option<Problem>,
    tree: Tree,
    /// What was read; `None` is to be read again at the next look.
    stamps: HashMap<Arc<str>, Option<Stamp>>,
    settle: Settle,
    dir_problems: Vec<Problem>,
    tree_problems: Vec<Problem>,
}

impl Worker {
    fn new(dir: PathBuf, wake: std_mpsc::SyncSender<Wake>) -> Self {
        Self {
            dir,
            wake,
            watch: None,
            watch_problem: None,
            tree: Tree::default(),
            stamps: HashMap::new(),
            settle: Settle::default(),
            dir_problems: Vec::new(),
            tree_problems: Vec::new(),
        }
    }

    fn run(
        &mut self,
        wakes: &std_mpsc::Receiver<Wake>,
        updates: &mpsc::Sender<Update>,
    ) -> Result<(), mpsc::error::SendError<Update>> {
        self.renew_watch();
        let piece = |changes| Update { changes, problems: None, complete: false };
        self.look(MAX_FIRST_BYTES, |changes| updates.blocking_send(piece(changes)))?;
        let mut told = self.problems();
        updates.blocking_send(Update { changes: Vec::new(), problems: Some(told.clone()), complete: true })?;
        let mut rescan = Instant::now() + RESCAN;
        loop {
            let due = self.settle.due().map_or(rescan, |due| due.min(rescan));
            match wakes.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Wake::Stop) | Err(std_mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(wake) => self.note(&wake),
                Err(std_mpsc::RecvTimeoutError::Timeout) => {}
            }
            if updates.is_closed() {
                return Ok(());
            }
            let now = Instant::now();
            if now < self.settle.due().map_or(rescan, |due| due.min(rescan)) {
                continue;
            }
            self.renew_watch();
            let mut changes = Vec::new();
            let gather = |more| -> Result<(), mpsc::error::SendError<Update>> {
                changes.extend(more);
                Ok(())
            };
            self.look(MAX_CHANGED_BYTES, gather)?;
            rescan = Instant::now() + RESCAN;
            let now = self.problems();
            let problems = (now != told).then(|| now.clone());
            told = now;
            if !changes.is_empty() || problems.is_some() {
                updates.blocking_send(Update { changes, problems, complete: true })?;
            }
        }
    }

    fn note(&mut self, wake: &Wake) {
        let now = Instant::now();
        let name = |path: &Path| path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        match wake {
            Wake::Moved | Wake::Stop => self.settle.moved(now),
            Wake::Writing(path) => self.settle.writing(&name(path), now),
            Wake::Whole(path) => self.settle.whole(&name(path), now),
        }
    }

    /// Watches the directory that has our name at this moment.
    fn renew_watch(&mut self) {
        let Ok(metadata) = fs::metadata(&self.dir) else {
            self.watch = None;
            return;
        };
        let inode = (metadata.dev(), metadata.ino());
        if self.watch.as_ref().is_some_and(|(_, watched)| *watched == inode) {
            return;
        }
        let wake = self.wake.clone();
        let watcher = notify::recommended_watcher(move |event| tell(&wake, event));
        let watched = watcher.and_then(|mut watcher| {
            watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watched {
            Ok(watcher) => (self.watch, self.watch_problem) = (Some((watcher, inode)), None),
            Err(e) => {
                let every = RESCAN.as_secs();
                let message = format!("changes are only noticed every {every} s: watch {}: {e}", self.dir.display());
                self.watch = None;
                self.watch_problem = Some(Problem::new(Severity::Note, &"".into(), None, &message));
            }
        }
    }

    /// Looks at the whole directory, takes in what is different, and tells it in pieces of about `piece_bytes`.
    fn look<E>(&mut self, piece_bytes: usize, mut tell: impl FnMut(Vec<Change>) -> Result<(), E>) -> Result<(), E> {
        self.settle.look(Instant::now());
        match self.list() {
            Ok(listed) => {
                let mut wanted = self.different(listed);
                // A second round is for files that are needed again because another one gave way to them.
                while !wanted.is_empty() {
                    let again = self.take_in(wanted, piece_bytes, &mut tell)?;
                    wanted = again.into_iter().map(|name| (name, Presence::There)).collect();
                }
            }
            Err(e) => {
                let (dir, held) = (self.dir.display(), self.tree.len());
                let message = format!("list {dir}: {e}; the {held} objects last read stay in force");
                self.dir_problems = vec![Problem::new(Severity::Error, &"".into(), None, &message)];
            }
        }
        Ok(())
    }

    fn problems(&self) -> Vec<Problem> {
        let own = self.watch_problem.iter().chain(&self.dir_problems);
        own.chain(&self.tree_problems).cloned().collect()
    }

    fn list(&mut self) -> io::Result<BTreeMap<Arc<str>, Presence>> {
        let mut listed = BTreeMap::new();
        let mut notes = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if listed.len() >= MAX_FILES {
                let message = format!("there are more than {MAX_FILES} files; the others are not read");
                notes.push(Problem::new(Severity::Error, &"".into(), None, &message));
                break;
            }
            let manifest = Format::of(name).is_some();
            let directory = entry.file_type().is_ok_and(|t| t.is_dir());
            if directory && !name.starts_with('.') {
                notes.push(Problem::new(Severity::Note, &name.into(), None, "subdirectories are not read"));
            } else if manifest && !directory {
                listed.insert(name.into(), presence(&entry.path()));
            }
        }
        notes.sort();
        self.dir_problems = notes;
        Ok(listed)
    }

    /// What of a listing is to be read, or read again.
    fn different(&self, listed: BTreeMap<Arc<str>, Presence>) -> Vec<(Arc<str>, Presence)> {
        let gone: Vec<_> = self.stamps.keys().filter(|name| !listed.contains_key(*name)).cloned().collect();
        let stale = |(name, presence): &(Arc<str>, Presence)| match presence {
            Presence::Stamped(stamp) => {
                !self.settle.is_busy(name) && self.stamps.get(name).is_none_or(|read| *read != Some(*stamp))
            }
            Presence::There | Presence::Gone | Presence::Unreadable(_) => true,
        };
        let changed = listed.into_iter().filter(stale);
        changed.chain(gone.into_iter().map(|name| (name, Presence::Gone))).collect()
    }

    /// Reads files and gives them to the tree, a piece at a time. Returns those that are needed again.
    fn take_in<E>(
        &mut self,
        wanted: Vec<(Arc<str>, Presence)>,
        piece_bytes: usize,
        tell: &mut impl FnMut(Vec<Change>) -> Result<(), E>,
    ) -> Result<Vec<Arc<str>>, E> {
        let (mut piece, mut bytes, mut again) = (Vec::new(), 0, Vec::new());
        let mut wanted = wanted.into_iter().peekable();
        while let Some((name, presence)) = wanted.next() {
            let loaded = self.load(&name, presence);
            bytes += match &loaded {
                Loaded::Bytes(text) => text.len(),
                Loaded::Gone | Loaded::Unreadable(_) => 0,
            };
            piece.push((name, loaded));
            if bytes < piece_bytes && wanted.peek().is_some() {
                continue;
            }
            let contents = piece.iter().map(|(name, loaded)| (Arc::clone(name), loaded.content())).collect();
            let outcome = self.tree.update(contents);
            (piece, bytes) = (Vec::new(), 0);
            again.extend(outcome.again);
            if let Some(problems) = outcome.problems {
                self.tree_problems = problems;
            }
            tell(outcome.changes)?;
        }
        Ok(again)
    }

    fn load(&mut self, name: &Arc<str>, presence: Presence) -> Loaded {
        if matches!(presence, Presence::Gone) {
            self.stamps.remove(name);
            return Loaded::Gone;
        }
        let loaded = match presence {
            Presence::Unreadable(message) => Err(message),
            Presence::Gone | Presence::There | Presence::Stamped(_) => read(&self.dir.join(&**name)),
        };
        match loaded {
            Ok((stamp, bytes)) => {
                let fresh = stamp.is_fresh(SystemTime::now());
                if fresh {
                    self.settle.moved(Instant::now());
                }
                self.stamps.insert(Arc::clone(name), (!fresh).then_some(stamp));
                Loaded::Bytes(bytes)
            }
            Err(message) => {
                self.stamps.insert(Arc::clone(name), None);
                Loaded::Unreadable(message)
            }
        }
    }
}

impl Loaded {
    fn content(&self) -> Content<'_> {
        match self {
            Loaded::Bytes(bytes) => Content::Bytes(bytes),
            Loaded::Gone => Content::Gone,
            Loaded::Unreadable(message) => Content::Unreadable(message.clone()),
        }
    }
}

/// How a name stands in a listing.
#[derive(Debug)]
enum Presence {
    Stamped(Stamp),
    There,
    Gone,
    Unreadable(String),
}

fn presence(path: &Path) -> Presence {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Presence::Stamped(Stamp::of(&metadata)),
        Ok(_) => Presence::Unreadable("is not a regular file".to_owned()),
        // It went between the listing and this look, unless it is a link that leads nowhere.
        Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => Presence::Gone,
        Err(e) => Presence::Unreadable(format!("cannot be read: {e}")),
    }
}

/// One byte more than allowed is read, so that the reader of the text sees that there is too much.
fn read(path: &Path) -> Result<(Stamp, Vec<u8>), String> {
    let read = || {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        Ok((Stamp::of(&metadata), bytes))
    };
    read().map_err(|e: io::Error| format!("cannot be read: {e}"))
}

/// Passes on what the kernel says. Our own reading makes events, too, and must not wake us.
fn tell(wake: &std_mpsc::SyncSender<Wake>, event: notify::Result<notify::Event>) {
    let mut wakes = match event {
        Ok(mut event) => match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Name(_)) => {
                event.paths.drain(..).map(Wake::Whole).collect()
            }
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Data(_)) => event.paths.drain(..).map(Wake::Writing).collect(),
            _ => vec![Wake::Moved],
        },
        Err(_) => vec![Wake::Moved],
    };
    // A full queue loses which file moved, not that something did: it is full of the same news.
    wakes.drain(..).for_each(|w| drop(wake.try_send(w)));
}
