//! The steps of one pod: into the mesh, out of it, and a look at how it is.
//!
//! Each step may be taken again at any time, and leaves alone what is as it should be.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use loam_ebpf_common::layout::{Entrance, Pod, Steered};
use loam_ebpf_common::probe::Probed;
use loam_node::{ClientError, PodInfo};
use serde::{Deserialize, Serialize};

use crate::keeper_link::KeeperLink;
use crate::kubelet::KubeletError;
use crate::netns::{self, Netns, NetnsError, sysctl};
use crate::pods::record::{Record, Records};
use crate::pods::registry::Place;
use crate::pods::resolv;
use crate::redirect::{Redirect, RedirectError, SteerFacts};

/// Why a step did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The pod's network namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel programs.
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    /// The keeper's answer, or that there is none.
    #[error(transparent)]
    Keeper(#[from] ClientError),
    /// The keeper is not running, or not reached yet.
    #[error("waiting for the keeper")]
    NoKeeper,
    /// No ztunnel serves the pod yet, so capturing it would cut it off.
    #[error("waiting for the ztunnel: {0}")]
    NotServed(String),
    /// What is changed in the namespace could not be written down.
    #[error("write the record of the pod")]
    Record(#[source] io::Error),
    /// More than the programs hold; the pod's specification does not allow it.
    #[error("the pod has more addresses or probed ports than the programs hold")]
    TooMany,
}

impl EnrolError {
    /// Whether this only waits for somebody else.
    pub fn is_waiting(&self) -> bool {
        matches!(self, EnrolError::NoKeeper | EnrolError::NotServed(_))
    }

    /// Whether the pod's network namespace is not what it was.
    pub fn has_vanished(&self) -> bool {
        matches!(
            self,
            EnrolError::Netns(
                NetnsError::Gone(_) | NetnsError::Replaced(_) | NetnsError::NotOne(_) | NetnsError::Own(_)
            )
        )
    }

    /// The error with its causes, for status and log.
    pub fn text(&self) -> String {
        loam_rt::explain(self)
    }
}

/// How long the parts of an enrolment took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Routes, rules and switches.
    pub prepare_ms: f64,
    /// The keeper and the ztunnel.
    pub keeper_ms: f64,
    /// The programs.
    pub programs_ms: f64,
    /// All of it.
    pub total_ms: f64,
}

/// A pod that is captured.
#[derive(Debug)]
pub struct Enrolled {
    /// Cookie of its network namespace.
    pub cookie: u64,
    /// What the namespace lacked.
    pub prepared: Vec<String>,
    /// How long it took.
    pub timing: Timing,
}

/// What all steps work with.
#[derive(Clone)]
pub struct Kit {
    /// The kernel programs.
    redirect: Arc<Mutex<Redirect>>,
    /// The keeper, while there is one.
    pub keeper: KeeperLink,
    /// What is changed in namespaces.
    pub records: Records,
    /// The node's name.
    pub node: Arc<str>,
    /// Why the kubelet is not known; none if it is.
    kubelet_problem: Arc<Mutex<Option<String>>>,
}

impl Kit {
    /// Puts the parts together.
    pub fn new(redirect: Redirect, keeper: KeeperLink, records: Records, node: Arc<str>) -> Self {
        Self { redirect: Arc::new(Mutex::new(redirect)), keeper, records, node, kubelet_problem: Arc::default() }
    }

    /// Follows the kubelet to the cgroup where it was found. What is wrong is remembered for pods that are probed.
    pub fn follow_kubelet(&self, found: Result<PathBuf, KubeletError>) {
        let followed = match &found {
            Ok(cgroup) => self.redirect().follow_kubelet(Some(cgroup)),
            // Whoever has its cgroup now may be anybody.
            Err(_) => self.redirect().follow_kubelet(None),
        };
        let text = |error: RedirectError| EnrolError::from(error).text();
        let problem = match (found, followed) {
            (Ok(cgroup), Ok(true)) => {
                tracing::info!(cgroup = %cgroup.display(), "the kubelet's probes are told apart");
                None
            }
            (Ok(_), Ok(false)) => None,
            (Ok(_), Err(error)) => Some(text(error)),
            (Err(error), _) => Some(error.to_string()),
        };
        *self.kubelet_problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Why the kubelet's connections are not told from others; none if they are.
    pub fn kubelet_problem(&self) -> Option<String> {
        self.kubelet_problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The kernel programs. Every call takes a millisecond or two, and none waits.
    pub fn redirect(&self) -> MutexGuard<'_, Redirect> {
        self.redirect.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entrance(place: &Place) -> Result<Entrance, EnrolError> {
    let addresses = place.spec.addresses.iter().map(|&address| address.into());
    let steered = Steered::new(place.index, addresses).ok_or(EnrolError::TooMany)?;
    Ok(Entrance { steered, probed: Probed::new(&place.spec.probes).ok_or(EnrolError::TooMany)? })
}

fn millis(elapsed: Duration) -> f64 {
    (elapsed.as_secs_f64() * 1e5).round() / 100.0
}

/// Brings a pod into the mesh. In this order, so that at each moment a connection either goes where it always went or
/// finds everything it needs: routing of marked packets; listeners and a ztunnel that serves them; the way from the
/// wire; the way from the application last.
pub async fn enrol(kit: &Kit, place: &Place, netns: &Netns, captured: bool) -> Result<Enrolled, EnrolError> {
    let begun = Instant::now();
    let entrance = entrance(place)?;
    let (cookie, prepared) = prepare(kit, place, netns).await?;
    let prepare_ms = millis(begun.elapsed());

    let asked = Instant::now();
    let keeper = kit.keeper.client().ok_or(EnrolError::NoKeeper)?;
    let pod = Pod::new(entrance.steered, place.spec.dns);
    // Switched off first, since its questions are not answered any more when the keeper has heard of it.
    if !place.spec.dns && kit.redirect().captured(cookie)?.is_some_and(|pod| pod.has_dns()) {
        kit.redirect().capture(cookie, pod)?;
    }
    let added = keeper.add_pod(place.index, info(kit, place), netns.as_fd()).await?;
    // A pod that is captured stays so without a ztunnel: its connections are refused until there is one.
    if !added.serving && !captured {
        return Err(EnrolError::NotServed(added.problem));
    }
    let keeper_ms = millis(asked.elapsed());

    let attached = Instant::now();
    {
        let mut redirect = kit.redirect();
        redirect.steer(&entrance, netns.as_fd(), netns.inode())?;
        if redirect.captured(cookie)? != Some(pod) {
            redirect.capture(cookie, pod)?;
        }
    }
    let timing =
        Timing { prepare_ms, keeper_ms, programs_ms: millis(attached.elapsed()), total_ms: millis(begun.elapsed()) };
    Ok(Enrolled { cookie, prepared, timing })
}

/// The pod as others are told of it. That it is served counts for more than how it resolves names: what is wrong with
/// that is said whenever the pod is looked at.
fn info(kit: &Kit, place: &Place) -> PodInfo {
    let read = || place.spec.resolv_conf.as_deref().map(resolv::read).and_then(Result::ok);
    let resolv = place.spec.resolv.as_deref().map(resolv::parse).or_else(read);
    PodInfo { resolv, ..place.spec.info(&kit.node) }
}

/// Writes down how the namespace was, then changes it.
async fn prepare(kit: &Kit, place: &Place, netns: &Netns) -> Result<(u64, Vec<String>), EnrolError> {
    let (records, spec, index) = (kit.records.clone(), place.spec.clone(), place.index);
    let work = move || {
        let cookie = netns::cookie()?;
        let before = match records.get(cookie) {
            Some(record) => record.before,
            None => sysctl::Before::read(),
        };
        let addresses = spec.addresses.clone();
        let record = Record { spec, index, cookie, before, leaving: false };
        if records.get(cookie).as_ref() != Some(&record)
            && let Err(error) = records.put(&record)
        {
            return Ok(Err(EnrolError::Record(error)));
        }
        Ok(Ok((cookie, netns::prepare(&addresses)?)))
    };
    netns.run(work).await?
}

/// How long after the hooks let go of a pod its connections still find their listener: a connect that was
/// marked before sends its packet within the same system call, unless the processor is taken from it in between.
const SETTLE: Duration = Duration::from_millis(50);

/// Takes a pod out of the mesh. New connections go past it from the first step on; those that are carried live on, and
/// so do the routes and rules that carry them, until [`tidy`] finds that the last one is gone.
pub async fn withdraw(kit: &Kit, place: &Place) -> Result<(), EnrolError> {
    if let Some(cookie) = place.cookie {
        kit.redirect().release(cookie)?;
        // A connect that was marked a moment ago still needs its way to the listener.
        tokio::time::sleep(SETTLE).await;
    }
    kit.redirect().unsteer(place.index)?;
    // Without a keeper there are no listeners to give up. One that comes back is told what is not wanted.
    if let Some(keeper) = kit.keeper.client() {
        keeper.remove_pod(&place.spec.uid).await?;
    }
    if let Some(mut record) = record_of(kit, place)? {
        record.leaving = true;
        kit.records.put(&record).map_err(EnrolError::Record)?;
    }
    Ok(())
}

/// The record of a pod. An enrolment that failed early left one without the cookie being known.
fn record_of(kit: &Kit, place: &Place) -> Result<Option<Record>, EnrolError> {
    if let Some(cookie) = place.cookie {
        return Ok(kit.records.get(cookie));
    }
    let (all, _) = kit.records.all().map_err(EnrolError::Record)?;
    Ok(all.into_iter().find(|record| !record.leaving && record.spec.uid == place.spec.uid))
}

/// Takes back routes, rules and switches of a pod that left, if no socket needs them any more. Says whether that is
/// done.
pub async fn tidy(records: &Records, record: &Record) -> Result<bool, EnrolError> {
    let before = record.before.clone();
    let done = match same(record).await {
        Ok(netns) => {
            netns
                .run(move || {
                    if netns::sockets::count()? > 0 {
                        return Ok(false);
                    }
                    netns::undo(&before)?;
                    Ok(true)
                })
                .await?
        }
        // It took all that was in it along.
        Err(NetnsError::Gone(_) | NetnsError::Replaced(_) | NetnsError::NotOne(_)) => true,
        Err(error) => return Err(error.into()),
    };
    if done {
        records.remove(record.cookie).map_err(EnrolError::Record)?;
    }
    Ok(done)
}

/// The namespace that a record is about, if it is still at its path.
pub async fn same(record: &Record) -> Result<Netns, NetnsError> {
    let netns = Netns::open(&record.spec.netns)?;
    match netns.cookie().await? == record.cookie {
        true => Ok(netns),
        false => Err(NetnsError::Replaced(record.spec.netns.clone())),
    }
}

/// What the kernel and the keeper have for a pod.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PodFacts {
    /// The hooks know the pod's network namespace.
    pub captured: bool,
    /// Its questions to name servers are captured.
    pub dns: bool,
    /// The way from the wire.
    pub steer: SteerFacts,
    /// Routes, rules and switches are as they should be.
    pub routed: bool,
    /// The listeners listen, as far as the keeper can be asked.
    pub listening: Option<bool>,
    /// A ztunnel serves the pod.
    pub serving: Option<bool>,
    /// All that is wrong.
    pub problems: Vec<String>,
    /// Something is wrong that enrolling again may repair.
    #[serde(skip)]
    pub repairable: bool,
}

/// Looks at a pod that should be captured.
pub async fn inspect(kit: &Kit, place: &Place) -> Result<PodFacts, EnrolError> {
    let entrance = entrance(place)?;
    let netns = Netns::open(&place.spec.netns)?;
    if place.netns.is_some_and(|id| id != netns.id()) {
        return Err(NetnsError::Replaced(place.spec.netns.clone()).into());
    }
    let addresses = place.spec.addresses.clone();
    let (cookie, mut problems) = netns.run(move || Ok((netns::cookie()?, netns::check(&addresses)?))).await?;
    if place.cookie.is_some_and(|known| known != cookie) {
        return Err(NetnsError::Replaced(place.spec.netns.clone()).into());
    }
    let routed = problems.is_empty();
    let (steer, captured) = {
        let redirect = kit.redirect();
        (redirect.steer_facts(&entrance, netns.inode())?, redirect.captured(cookie)?)
    };
    let dns = captured.is_some_and(|pod| pod.has_dns());
    let is_captured = captured.is_some_and(|pod| pod.index() == place.index);
    let is_right = captured.is_none_or(|pod| pod == Pod::new(entrance.steered, place.spec.dns));
    let mut expect = |good: bool, text: &str| {
        if !good {
            problems.push(text.to_owned());
        }
    };
    expect(is_captured, "the hooks do not know the pod");
    expect(!is_captured || is_right, "the hooks have other addresses of the pod, or its questions switched otherwise");
    expect(steer.attached, "the steer program is not attached to the pod's network namespace");
    expect(!steer.attached || steer.current, "the steer program is another one");
    expect(
        !steer.attached || !steer.current || steer.configured,
        "the steer program has other addresses or probed ports",
    );
    let mut repairable = !problems.is_empty();
    let (mut listening, mut serving) = (None, None);
    match kit.keeper.client() {
        None => problems.push("the keeper cannot be asked".to_owned()),
        Some(keeper) => match keeper.check(&place.spec.uid).await {
            Ok(checked) => {
                (listening, serving) = (Some(checked.listening), Some(checked.serving));
                repairable |= !checked.listening;
                if !checked.problem.is_empty() {
                    problems.push(checked.problem);
                }
            }
            Err(error) => problems.push(error.to_string()),
        },
    }
    if let (Some(error), [_, ..]) = (kit.kubelet_problem(), &place.spec.probes[..]) {
        problems.push(format!("the kubelet's probes are judged as anybody's connections: {error}"));
    }
    if let Some(Err(error)) = place.spec.resolv_conf.as_deref().filter(|_| dns).map(resolv::read) {
        problems.push(error.to_string());
    }
    Ok(PodFacts { captured: is_captured, dns, steer, routed, listening, serving, problems, repairable })
}
