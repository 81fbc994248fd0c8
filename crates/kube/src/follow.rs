//! One kind, listed and watched for as long as somebody listens.

use std::time::Duration;

use http::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::Client;
use kube::client::Body;
use kube::core::WatchEvent;
use loam_manifest::{Change, Key, Kind, told};
use loam_rt::backoff::Backoff;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::events::{Events, whole};
use crate::known::Known;
use crate::resource::{Selection, escaped, optional, path, plural};
use crate::trouble::Trouble;

/// Longest wait after the first failure.
const FLOOR: Duration = Duration::from_millis(500);

/// Longest wait: an API server that is back is noticed within it.
const CEILING: Duration = Duration::from_secs(15);

/// Objects in one answer to a list.
const PAGE: usize = 500;

/// How long a page may take.
const PAGE_DEADLINE: Duration = Duration::from_secs(30);

/// How long the server is asked to keep a watch open, in seconds: somewhere between, so that watches do not end at one
/// moment.
const WATCH_SECONDS: std::ops::RangeInclusive<u64> = 35..=40;

/// A watch that the server has not ended by then is stalled. With two attempts over connections that are as dead, it
/// is replaced within a minute.
const WATCH_DEADLINE: Duration = Duration::from_secs(43);

/// How long a watch may take to begin.
const HEAD_DEADLINE: Duration = Duration::from_secs(7);

/// A watch that ends sooner, and said nothing, was no good.
const SHORT: Duration = Duration::from_secs(1);

/// Failures to watch in a row after which everything is listed again.
const MAX_WATCH_FAILURES: u32 = 3;

/// Pause between two looks for a kind that the server does not know.
const LOOK: Duration = Duration::from_secs(5);

/// How often in a row the server must say that it does not know a kind, before objects of it that were there are gone.
const MISSING: u32 = 3;

/// What a kind has to say.
#[derive(Debug)]
pub(crate) enum News {
    /// An object is different.
    Changed(Change),
    /// An object cannot be understood; its last good version stays in force.
    Flawed(Key, String),
    /// The list is complete.
    Complete(Kind),
    /// The server does not know the kind, and so there are no objects of it.
    Absent(Kind),
    /// What keeps it from being up to date, or that nothing does.
    Trouble(Kind, Option<String>),
}

/// Nobody listens.
struct Unheard;

impl<T> From<mpsc::error::SendError<T>> for Unheard {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        Self
    }
}

/// Why an attempt ended.
enum Stop {
    Unheard,
    Trouble(Trouble),
}

impl From<Unheard> for Stop {
    fn from(_: Unheard) -> Self {
        Self::Unheard
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// Follows a kind until nobody listens.
pub(crate) async fn follow(client: Client, selection: Selection, news: mpsc::Sender<News>) {
    let follower = Follower {
        client,
        selection,
        news,
        known: Known::default(),
        backoff: Backoff::new(FLOOR, CEILING),
        failures: 0,
        trouble: None,
    };
    let Unheard = follower.run().await;
}

struct Follower {
    client: Client,
    selection: Selection,
    news: mpsc::Sender<News>,
    known: Known,
    backoff: Backoff,
    /// In a row.
    failures: u32,
    /// What was told last.
    trouble: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Value>,
}

impl Follower {
    async fn run(mut self) -> Unheard {
        let mut missing = 0;
        loop {
            let done = match self.list().await {
                Ok((api_version, version)) => {
                    missing = 0;
                    self.watch(api_version, version).await
                }
                Err(Stop::Trouble(Trouble::Missing)) if optional(self.selection.kind) => {
                    missing += 1;
                    self.miss(missing).await
                }
                Err(Stop::Trouble(trouble)) => self.fail("list", trouble).await,
                Err(Stop::Unheard) => Err(Unheard),
            };
            if let Err(unheard) = done {
                return unheard;
            }
        }
    }

    /// Lists everything. Returns the version of the API that the server has, and that of the list.
    async fn list(&mut self) -> Result<(&'static str, String), Stop> {
        for api_version in self.selection.kind.api_versions() {
            match self.list_as(api_version).await {
                Ok(version) => return Ok((api_version, version)),
                Err(Stop::Trouble(Trouble::Missing)) => {}
                Err(other) => return Err(other),
            }
        }
        Err(Trouble::Missing.into())
    }

    async fn list_as(&mut self, api_version: &str) -> Result<String, Stop> {
        self.known.begin();
        let mut next = String::new();
        loop {
            let page = self.page(api_version, &next).await?;
            for item in page.items {
                self.take(item, true).await?;
            }
            let version = page.metadata.resource_version.unwrap_or_default();
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => next = token,
                None => {
                    for key in self.known.end() {
                        self.gone(key).await?;
                    }
                    self.well().await?;
                    self.news.send(News::Complete(self.selection.kind)).await.map_err(Unheard::from)?;
                    return Ok(version);
                }
            }
        }
    }

    async fn page(&self, api_version: &str, next: &str) -> Result<Page, Trouble> {
        let kind = self.selection.kind;
        let mut uri = format!("{}?limit={PAGE}", path(kind, api_version));
        if !next.is_empty() {
            uri += &format!("&continue={}", escaped(next));
        }
        let asked = async { whole(kind, self.send("list", uri).await?).await };
        timeout(PAGE_DEADLINE, asked).await.map_err(|_| Trouble::late("list", kind, PAGE_DEADLINE))?
    }

    async fn send(&self, verb: &str, mut uri: String) -> Result<http::Response<Body>, Trouble> {
        let kind = self.selection.kind;
        if let Some(fields) = &self.selection.fields {
            uri += &format!("&fieldSelector={}", escaped(fields));
        }
        let request = Request::get(uri).body(Body::empty());
        let request = request.map_err(|e| Trouble::Failed(format!("{verb} {}: {e}", plural(kind))))?;
        self.client.send(request).await.map_err(|e| Trouble::of(verb, kind, &e))
    }

    /// Watches from a version on, until everything must be listed again.
    async fn watch(&mut self, api_version: &str, mut version: String) -> Result<(), Unheard> {
        loop {
            let (began, before) = (Instant::now(), version.clone());
            let trouble = match self.watch_once(api_version, &mut version).await {
                Ok(()) if began.elapsed() >= SHORT || version != before => {
                    self.well().await?;
                    continue;
                }
                Ok(()) => Trouble::Ended,
                Err(Stop::Unheard) => return Err(Unheard),
                Err(Stop::Trouble(trouble)) => trouble,
            };
            let list = match trouble {
                Trouble::Gone | Trouble::Missing => true,
                Trouble::Ended | Trouble::Failed(_) => self.failures + 1 >= MAX_WATCH_FAILURES,
            };
            self.fail("watch", trouble).await?;
            if list {
                return Ok(());
            }
        }
    }

    /// One watch, until it ends. `version` follows what was seen.
    async fn watch_once(&mut self, api_version: &str, version: &mut String) -> Result<(), Stop> {
        let kind = self.selection.kind;
        let seconds = rand::random_range(WATCH_SECONDS);
        let uri = format!(
            "{}?watch=1&allowWatchBookmarks=1&timeoutSeconds={seconds}&resourceVersion={}",
            path(kind, api_version),
            escaped(version)
        );
        let deadline = Instant::now() + WATCH_DEADLINE;
        let begun = async { Events::of(kind, self.send("watch", uri).await?).await };
        let begun = timeout(HEAD_DEADLINE, begun).await;
        let mut events = begun.map_err(|_| Trouble::late("watch", kind, HEAD_DEADLINE))??;
        self.tell(None).await?;
        loop {
            let event = timeout_at(deadline, events.next()).await;
            let Some(event) = event.map_err(|_| Trouble::late("watch", kind, WATCH_DEADLINE))?? else {
                return Ok(());
            };
            let seen = match event {
                WatchEvent::Added(value) | WatchEvent::Modified(value) => {
                    let seen = version_of(&value);
                    self.take(value, false).await?;
                    seen
                }
                WatchEvent::Deleted(value) => {
                    if let Some(key) = key_of(kind, &value)
                        && self.known.delete(&key)
                    {
                        self.gone(key).await?;
                    }
                    version_of(&value)
                }
                WatchEvent::Bookmark(mark) => Some(mark.metadata.resource_version),
                WatchEvent::Error(status) => {
                    return Err(Trouble::of_status("watch", kind, status.code, &status.message).into());
                }
            };
            if let Some(seen) = seen {
                *version = seen;
            }
            self.well().await?;
        }
    }

    /// Takes in an object of a list or a watch.
    async fn take(&mut self, value: Value, listed: bool) -> Result<(), Unheard> {
        let kind = self.selection.kind;
        let Some(key) = key_of(kind, &value) else { return Ok(()) };
        let version = version_of(&value).unwrap_or_default();
        let fresh = if listed { self.known.list(&key, &version) } else { self.known.apply(&key, &version) };
        if !fresh {
            return Ok(());
        }
        let news = match told(kind, value) {
            Ok(object) => News::Changed(Change::Applied(object)),
            Err(why) => News::Flawed(key, why),
        };
        Ok(self.news.send(news).await?)
    }

    async fn gone(&mut self, key: Key) -> Result<(), Unheard> {
        Ok(self.news.send(News::Changed(Change::Deleted(key))).await?)
    }

    /// The server does not know the kind, for the `times`th time in a row.
    async fn miss(&mut self, times: u32) -> Result<(), Unheard> {
        if self.known.is_empty() || times >= MISSING {
            self.known.begin();
            for key in self.known.end() {
                self.gone(key).await?;
            }
            self.well().await?;
            self.news.send(News::Absent(self.selection.kind)).await?;
        }
        sleep(LOOK).await;
        Ok(())
    }

    /// All is as it should be.
    async fn well(&mut self) -> Result<(), Unheard> {
        self.backoff.succeed();
        self.failures = 0;
        self.tell(None).await
    }

    async fn tell(&mut self, trouble: Option<String>) -> Result<(), Unheard> {
        if trouble != self.trouble {
            self.trouble.clone_from(&trouble);
            self.news.send(News::Trouble(self.selection.kind, trouble)).await?;
        }
        Ok(())
    }

    /// Tells what is wrong and waits before the next attempt.
    async fn fail(&mut self, verb: &str, trouble: Trouble) -> Result<(), Unheard> {
        let kind = self.selection.kind;
        let message = match trouble {
            // Ordinary life: the server remembers some minutes, and ends.
            Trouble::Gone | Trouble::Ended => None,
            Trouble::Missing => Some(format!("{verb} {}: the API server does not know this kind", plural(kind))),
            Trouble::Failed(message) => Some(message),
        };
        if message.is_some() {
            self.tell(message).await?;
        }
        self.failures = self.failures.saturating_add(1);
        sleep(self.backoff.fail(rand::random())).await;
        Ok(())
    }
}

fn version_of(value: &Value) -> Option<String> {
    value.pointer("/metadata/resourceVersion")?.as_str().map(str::to_owned)
}

fn key_of(kind: Kind, value: &Value) -> Option<Key> {
    let part = |path: &str| value.pointer(path).and_then(Value::as_str);
    let namespace = if kind.namespaced() { part("/metadata/namespace")? } else { "" };
    Some(Key { kind, namespace: namespace.into(), name: part("/metadata/name")?.into() })
}
