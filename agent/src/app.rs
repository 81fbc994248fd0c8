//! `loam-agent run`: what is wanted comes in, steps go out, and each pod is looked at every five seconds.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use loam_kube::{Objects, Selection, Updates};
use loam_manifest::enrol::EXCLUDED_NAMESPACES;
use loam_manifest::{Kind, Manifests, Source as Manifest, Update};
use loam_node::{AGENT_SOCKET, AgentClient, ClientError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::cleanup;
use crate::cni::waiting::{Verdict, Waiting};
use crate::cni::{self, Question};
use crate::config::Run;
use crate::enrol::{self, EnrolError, Enrolled, Kit, PodFacts};
use crate::keeper_link::{KeeperLink, maintain};
use crate::kubelet;
use crate::netns::{Netns, sysctl};
use crate::notices::Teller;
use crate::pods::discovery::{self, Searched};
use crate::pods::record::{Record, Records};
use crate::pods::registry::{Action, MAX_BUSY, Place};
use crate::pods::sandbox::Sandbox;
use crate::pods::search::Search;
use crate::pods::source::Source;
use crate::pods::spec::{Guide, Rules};
use crate::pods::{Registry, Uid};
use crate::processes::Processes;
use crate::redirect::{FORM, HookFacts, Redirect};
use crate::status::{self, Memory, Status};

/// How often every pod is looked at: a pod that tampers with its rules is noticed within this time.
const VERIFY_EVERY: Duration = Duration::from_secs(5);

/// Where the processes of the node are.
const PROC: &str = "/proc";

/// How long changes are gathered before the status is written again.
const STATUS_DELAY: Duration = Duration::from_millis(20);

/// Runs until it is asked to end. What it did stays in force.
pub async fn run(config: Run) -> Result<()> {
    let begun = Instant::now();
    let started_at = Timestamp::now();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    std::fs::create_dir_all(&config.run_dir).with_context(|| format!("make {}", config.run_dir.display()))?;
    let _lock = cleanup::lock(&config.run_dir)?;
    sysctl::unlock()?;
    let records = Records::open(&config.run_dir).context("open the records")?;
    let redirect = Redirect::open(&config.bpffs, &config.cgroup).context("set up the redirect")?;
    let start_ms = begun.elapsed().as_secs_f64() * 1e3;
    info!(ms = start_ms, form = FORM, "programs are attached");

    let (filler, link) = KeeperLink::new();
    let [listeners, exempt] = stores(&redirect).context("share the maps")?;
    let keeper = tokio::spawn(maintain(config.run_dir.join(AGENT_SOCKET), listeners, exempt, filler));

    let (asked, questions) = mpsc::channel(cni::serve::MAX_QUESTIONS);
    let socket = config.run_dir.join(loam_cni::SOCKET);
    let listener = cni::serve::listen(&socket).with_context(|| format!("listen at {}", socket.display()))?;
    tokio::spawn(cni::serve::serve(listener, Processes::new(PROC), asked));
    let (told, cni_problem) = watch::channel(None);
    if let (Some(bin_dir), Some(conf_dir)) = (&config.cni_bin_dir, &config.cni_conf_dir) {
        let place = cni::install::Place { bin_dir: bin_dir.clone(), conf_dir: conf_dir.clone() };
        let program =
            std::env::current_exe().context("find the plugin beside the agent")?.with_file_name(loam_cni::NAME);
        let entry = loam_cni::plugin::entry(&config.cni_socket, &config.daemon_set.0, &EXCLUDED_NAMESPACES);
        tokio::spawn(async move { place.keep(&program, &entry, told).await });
    }

    let (client, updates, guide) = match &config.pods {
        Manifest::Dir(dir) => (None, Updates::Dir(Manifests::stream(dir).await?), Guide::Annotations),
        Manifest::Kubernetes => {
            let client = loam_kube::client().await?;
            let selections = [Selection::all(Kind::Namespace), Selection::pods_on(&config.node)];
            let updates = Updates::Kubernetes(Objects::stream(&client, selections));
            (Some(client), updates, Guide::Node)
        }
    };
    // Apart from the others: where they may not be read, that must not keep anybody out of the mesh.
    let network_policies = client.as_ref().map(|client| Objects::stream(client, [Selection::all(Kind::NetworkPolicy)]));
    let rules = Rules { node: config.node.clone(), dns: config.dns_capture, guide };
    let kit = Kit::new(redirect, link, records, config.node.as_str().into());
    let teller = client.map(|client| Teller::new(client, kit.node.clone()));
    let mut agent = Agent {
        kit,
        source: Source::new(rules),
        pods: config.pods,
        updates,
        watching: true,
        network_policies,
        policy_problems: Vec::new(),
        begun: false,
        registry: Registry::default(),
        steps: JoinSet::new(),
        looks: JoinSet::new(),
        search: Search::default(),
        searches: JoinSet::new(),
        teller,
        memory: BTreeMap::new(),
        hooks: None,
        problems: Vec::new(),
        hook_problem: None,
        started_at,
        start_ms,
        run_dir: config.run_dir,
        cgroup: config.cgroup,
        questions,
        waiting: Waiting::default(),
        cni_problem,
        kubelet_cgroup: config.kubelet_cgroup,
        status_due: None,
    };
    agent.adopt().await.context("take over from a predecessor")?;
    tokio::select! {
        () = agent.work() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    keeper.abort();
    info!("the agent ends; what it set up stays in force");
    Ok(())
}

/// The next update of objects; none when they are followed no more, and then never again.
async fn next(objects: &mut Option<Objects>) -> Option<Update> {
    match objects {
        Some(objects) => objects.next().await,
        None => std::future::pending().await,
    }
}

/// Until a write on an object has ended; never where nobody writes.
async fn settled(teller: &mut Option<Teller>) {
    match teller {
        Some(teller) => teller.settle().await,
        None => std::future::pending().await,
    }
}

fn stores(redirect: &Redirect) -> std::io::Result<[OwnedFd; 2]> {
    let (listeners, exempt) = redirect.stores();
    Ok([listeners.try_clone_to_owned()?, exempt.try_clone_to_owned()?])
}

struct Agent {
    kit: Kit,
    source: Source,
    /// What is followed.
    pods: Manifest,
    updates: Updates,
    watching: bool,
    /// Those of the API server, read for advice.
    network_policies: Option<Objects>,
    /// Why they are not known.
    policy_problems: Vec<String>,
    /// All that was there at the beginning is known. Until then whoever is captured stays so.
    begun: bool,
    registry: Registry,
    /// Enrolments and withdrawals.
    steps: JoinSet<Done>,
    /// Everything else that is asked and answered.
    looks: JoinSet<Seen>,
    search: Search,
    /// At most one.
    searches: JoinSet<Searched>,
    /// Writes on the objects of pods, if they are an API server's.
    teller: Option<Teller>,
    memory: BTreeMap<Uid, Memory>,
    hooks: Option<HookFacts>,
    problems: Vec<String>,
    hook_problem: Option<String>,
    started_at: Timestamp,
    start_ms: f64,
    run_dir: PathBuf,
    /// Where cgroups are mounted.
    cgroup: PathBuf,
    /// What the CNI plugin asks.
    questions: mpsc::Receiver<Question>,
    /// Those that cannot be answered yet.
    waiting: Waiting,
    /// Why the plugin is not in the node's chain.
    cni_problem: watch::Receiver<Option<String>>,
    /// The kubelet's, if it need not be found.
    kubelet_cgroup: Option<PathBuf>,
    status_due: Option<Instant>,
}

/// What became of a step.
enum Done {
    Enrolled(Uid, Result<Enrolled, EnrolError>),
    Withdrawn(Uid, Result<(), EnrolError>),
}

/// What a look found.
enum Seen {
    Pods(Vec<(Place, Result<PodFacts, EnrolError>)>),
    Keeper(Result<Vec<Kept>, ClientError>),
}

/// A pod that the keeper has.
struct Kept {
    uid: String,
    index: u32,
    cookie: u64,
}

impl Agent {
    /// Takes over the pods that a predecessor captured, as the kernel and the records have them.
    async fn adopt(&mut self) -> Result<()> {
        let (records, broken) = self.kit.records.all().context("list the records")?;
        for path in broken {
            warn!(path = %path.display(), "cannot read the record of a pod");
            self.problems.push(format!("cannot read the record {}", path.display()));
        }
        let captured: BTreeMap<u64, u32> = self.kit.redirect().all_captured()?.into_iter().collect();
        let mut known = Vec::new();
        for record in records.into_iter().filter(|record| !record.leaving) {
            let netns = enrol::same(&record).await.ok().map(|netns| netns.id());
            let is_captured = captured.get(&record.cookie) == Some(&record.index);
            known.push(record.index);
            let Record { spec, index, cookie, .. } = record;
            if netns.is_some() {
                self.source.place(spec.uid.clone(), Sandbox::recorded(&spec));
            }
            info!(pod = %spec, index, captured = is_captured, "taking over a pod");
            self.registry.adopt(Place { spec, index, netns, cookie: Some(cookie) }, is_captured);
        }
        // Without a record nobody knows whose it is, and it must not be given to another.
        let mut redirect = self.kit.redirect();
        for (cookie, index) in captured.into_iter().filter(|(_, index)| !known.contains(index)) {
            warn!(cookie, index, "releasing a pod that nobody knows");
            redirect.release(cookie)?;
        }
        for index in redirect.all_steered()?.into_iter().filter(|index| !known.contains(index)) {
            redirect.unsteer(index)?;
        }
        Ok(())
    }

    async fn work(&mut self) {
        let mut verify = tokio::time::interval(VERIFY_EVERY);
        verify.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.changed();
        loop {
            self.answer();
            self.take_steps();
            self.begin_search();
            let due = [
                self.registry.due_at(),
                self.status_due,
                self.search.due_at(),
                self.teller.as_ref().and_then(Teller::due_at),
                self.waiting.due_at(),
            ];
            let due = due.into_iter().flatten().min();
            let wake = pin!(async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            });
            tokio::select! {
                update = self.updates.next(), if self.watching => match update {
                    Some(update) => self.take_update(update),
                    None => self.unwatched(),
                },
                update = next(&mut self.network_policies) => self.take_network_policies(update),
                Some(done) = self.steps.join_next() => match done {
                    Ok(done) => self.take_done(done),
                    // A step that ended by a bug would leave its pod busy for ever.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                Some(Ok(seen)) = self.looks.join_next() => self.take_seen(seen),
                Some(searched) = self.searches.join_next() => match searched {
                    Ok(searched) => self.take_searched(searched),
                    // A search that ended by a bug would be the last one.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                () = settled(&mut self.teller) => self.changed(),
                Some(question) = self.questions.recv() => self.waiting.take(question, Instant::now()),
                Ok(()) = self.cni_problem.changed() => self.changed(),
                client = self.kit.keeper.changed() => self.take_keeper(client),
                _ = verify.tick() => self.verify().await,
                () = wake => {
                    self.write_status();
                    self.tell();
                }
            }
        }
    }

    fn take_update(&mut self, update: Update) {
        for change in update.changes {
            self.source.change(change);
        }
        if let Some(problems) = update.problems {
            for problem in &problems {
                warn!(%problem, "manifest");
            }
            self.problems = problems.iter().map(ToString::to_string).collect();
        }
        if update.complete && !self.begun {
            self.begun = true;
            self.source.settle();
        }
        self.want();
    }

    fn take_network_policies(&mut self, update: Option<Update>) {
        let Some(update) = update else {
            self.network_policies = None;
            return;
        };
        for change in update.changes {
            self.source.change(change);
        }
        if let Some(problems) = update.problems {
            self.policy_problems = problems.iter().map(ToString::to_string).collect();
            if let [problem, ..] = &self.policy_problems[..] {
                warn!(problem, "it is not known whether NetworkPolicies keep tunnels from pods");
            }
        }
        self.changed();
    }

    /// Acts on what is known of pods at this moment.
    fn want(&mut self) {
        if self.begun {
            self.registry.want(self.source.wanted());
            self.search.want(self.source.missing(), Instant::now());
        }
        self.changed();
    }

    /// Answers the plugin as far as there are answers.
    fn answer(&mut self) {
        let (source, registry) = (&mut self.source, &self.registry);
        let mut moved = false;
        self.waiting.answer(Instant::now(), |question| {
            let verdict = Verdict::of(question, source, registry);
            moved |= verdict == Verdict::Moved;
            verdict
        });
        if moved {
            self.want();
        }
    }

    fn unwatched(&mut self) {
        let text = format!("{} is not watched any more: restart the agent", self.pods);
        warn!("{text}");
        self.watching = false;
        self.problems.push(text);
        self.changed();
    }

    fn begin_search(&mut self) {
        let now = Instant::now();
        let Some(pods) = self.search.begin(now) else { return };
        let processes = Processes::new(PROC);
        self.searches.spawn(discovery::search(processes, pods));
    }

    fn take_searched(&mut self, searched: Searched) {
        self.search.ended(searched.took, Instant::now());
        for (uid, found) in searched.found {
            let problem = found.as_ref().err().cloned();
            if self.source.found(&uid, found)
                && let Some(error) = problem
            {
                warn!(uid, error, "cannot get at a pod");
            }
        }
        self.want();
    }

    fn take_steps(&mut self) {
        let now = Instant::now();
        for action in self.registry.next(now) {
            self.changed();
            match action {
                Action::Enrol(place) => self.begin_enrol(place, now),
                Action::Withdraw(place) => {
                    let kit = self.kit.clone();
                    let uid = place.spec.uid.clone();
                    info!(pod = %place.spec, index = place.index, "withdrawing");
                    self.steps.spawn(async move { Done::Withdrawn(uid, enrol::withdraw(&kit, &place).await) });
                }
            }
        }
    }

    fn begin_enrol(&mut self, place: Place, now: Instant) {
        let uid = place.spec.uid.clone();
        match Netns::open(&place.spec.netns) {
            Ok(netns) => {
                if self.registry.claim(&uid, netns.id(), now) {
                    let kit = self.kit.clone();
                    let captured = self.registry.is_captured(&uid);
                    let step = async move { Done::Enrolled(uid, enrol::enrol(&kit, &place, &netns, captured).await) };
                    self.steps.spawn(step);
                }
            }
            Err(error) => self.step_failed(&uid, &error.into()),
        }
    }

    fn take_done(&mut self, done: Done) {
        match done {
            Done::Enrolled(uid, Ok(enrolled)) => {
                let Enrolled { cookie, prepared, timing } = enrolled;
                let place = self.registry.place_of(&uid).cloned();
                let (pod, index) = place.map_or_else(|| (uid.to_string(), 0), |p| (p.spec.to_string(), p.index));
                match self.registry.is_captured(&uid) {
                    true => info!(pod, index, ?prepared, "pod is repaired"),
                    false => info!(pod, index, cookie, ms = timing.total_ms, ?timing, "pod is enrolled"),
                }
                self.registry.enrolled(&uid, cookie);
                let memory = self.memory.entry(uid.clone()).or_default();
                memory.timing.get_or_insert(timing);
                if let Some(place) = self.registry.place_of(&uid).cloned() {
                    self.look(vec![place]);
                }
            }
            Done::Enrolled(uid, Err(error)) => self.step_failed(&uid, &error),
            Done::Withdrawn(uid, Ok(())) => {
                info!(%uid, "pod is withdrawn");
                self.memory.remove(&uid);
                self.registry.withdrawn(&uid);
            }
            Done::Withdrawn(uid, Err(error)) => self.step_failed(&uid, &error),
        }
        self.changed();
    }

    fn step_failed(&mut self, uid: &Uid, error: &EnrolError) {
        let (text, now) = (error.text(), Instant::now());
        let before = self.registry.views().find(|view| view.uid == uid).map(|view| view.reason.to_owned());
        if before.as_ref() != Some(&text) {
            let pod = self.registry.place_of(uid).map_or_else(|| uid.to_string(), |place| place.spec.to_string());
            match error.is_waiting() {
                true => info!(pod, reason = text, "pod waits"),
                false => warn!(pod, error = text, "pod failed, trying again"),
            }
        }
        match error.has_vanished() {
            true => {
                self.registry.vanished(uid, text, now);
                self.source.lose(uid);
                self.want();
            }
            false => self.registry.failed(uid, text, error.is_waiting(), now),
        }
        self.changed();
    }

    /// Begins a look at every pod that should be captured.
    async fn verify(&mut self) {
        self.check_hooks();
        self.follow_kubelet();
        self.tidy().await;
        let places: Vec<_> = self.registry.at_rest().cloned().collect();
        if !places.is_empty() {
            self.look(places);
        }
        self.changed();
    }

    fn look(&mut self, places: Vec<Place>) {
        let kit = self.kit.clone();
        self.looks.spawn(async move {
            let inspect = |place: Place| {
                let kit = kit.clone();
                async move {
                    let facts = enrol::inspect(&kit, &place).await;
                    (place, facts)
                }
            };
            Seen::Pods(stream::iter(places).map(inspect).buffer_unordered(MAX_BUSY).collect().await)
        });
    }

    fn take_seen(&mut self, seen: Seen) {
        match seen {
            Seen::Pods(pods) => {
                for (place, facts) in pods {
                    self.take_facts(&place, facts);
                }
            }
            Seen::Keeper(Ok(kept)) => self.compare(kept),
            Seen::Keeper(Err(error)) => warn!(%error, "cannot list the keeper's pods"),
        }
        self.changed();
    }

    fn take_facts(&mut self, place: &Place, facts: Result<PodFacts, EnrolError>) {
        let uid = &place.spec.uid;
        // Something may have begun since the look did; then it says nothing.
        if !self.registry.at_rest().any(|current| current == place) {
            return;
        }
        match facts {
            Ok(facts) => {
                let former = self.memory.get(uid).and_then(|memory| memory.facts.as_ref());
                if former.map_or(&[][..], |former| &former.problems) != facts.problems && !facts.problems.is_empty() {
                    warn!(pod = %place.spec, problems = ?facts.problems, "pod is not as it should be");
                }
                if facts.repairable {
                    self.registry.repair(uid);
                }
                let memory = self.memory.entry(uid.clone()).or_default();
                memory.checked_at = Some(Timestamp::now());
                memory.facts = Some(facts);
            }
            Err(error) if error.has_vanished() => self.step_failed(uid, &error),
            Err(error) => warn!(pod = %place.spec, error = error.text(), "cannot look at pod"),
        }
    }

    fn check_hooks(&mut self) {
        match self.kit.redirect().check_hooks() {
            Ok(facts) => {
                if !facts.repaired.is_empty() {
                    warn!(hooks = ?facts.repaired, "hooks were not attached; they are again");
                }
                self.hooks = Some(facts);
                self.hook_problem = None;
            }
            Err(error) => {
                let text = EnrolError::from(error).text();
                warn!(error = text, "cannot check the hooks");
                self.hook_problem = Some(text);
            }
        }
    }

    /// Looks where the kubelet is: its cgroup is another one after it was started anew.
    fn follow_kubelet(&self) {
        let found = match &self.kubelet_cgroup {
            Some(cgroup) => Ok(cgroup.clone()),
            None => kubelet::cgroup(Path::new(PROC), &self.cgroup),
        };
        self.kit.follow_kubelet(found);
    }

    /// Takes back routes and rules of pods that left, once nothing needs them.
    async fn tidy(&mut self) {
        let Ok((records, _)) = self.kit.records.all() else { return };
        for record in records.into_iter().filter(|record| record.leaving) {
            // Its namespace may be on its way in again.
            let places = self.registry.views().filter_map(|view| view.place);
            if places.map(|place| &place.spec.netns).any(|netns| *netns == record.spec.netns) {
                continue;
            }
            match enrol::tidy(&self.kit.records, &record).await {
                Ok(true) => info!(pod = %record.spec, "routes and rules are taken back"),
                Ok(false) => {}
                Err(error) => warn!(pod = %record.spec, error = error.text(), "cannot take back routes and rules"),
            }
        }
    }

    /// A keeper is there: ask which pods it has.
    fn take_keeper(&mut self, client: Option<AgentClient>) {
        self.changed();
        let Some(client) = client else { return };
        self.looks.spawn(async move {
            let list = client.list().await;
            let kept = |pod: loam_node::message::KeptPod| {
                Some(Kept { uid: pod.info?.uid, index: pod.index, cookie: pod.netns_cookie })
            };
            Seen::Keeper(list.map(|pods| pods.into_iter().filter_map(kept).collect()))
        });
    }

    /// Has the keeper have our pods, and no others.
    fn compare(&mut self, kept: Vec<Kept>) {
        let has = |place: &Place| {
            kept.iter().any(|kept| {
                *kept.uid == *place.spec.uid && kept.index == place.index && Some(kept.cookie) == place.cookie
            })
        };
        let missing: Vec<Uid> =
            self.registry.at_rest().filter(|place| !has(place)).map(|place| place.spec.uid.clone()).collect();
        for uid in missing {
            self.registry.repair(&uid);
        }
        for Kept { uid, .. } in kept {
            if self.registry.place_of(&uid).is_some() {
                continue;
            }
            let kit = self.kit.clone();
            self.looks.spawn(async move {
                if let Some(keeper) = kit.keeper.client() {
                    // If this fails the connection has ended, and all is compared again.
                    let _ = keeper.remove_pod(&uid).await;
                }
                Seen::Pods(Vec::new())
            });
        }
    }

    fn changed(&mut self) {
        self.status_due.get_or_insert_with(|| Instant::now() + STATUS_DELAY);
    }

    fn write_status(&mut self) {
        if self.status_due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.status_due = None;
        let waiting = (!self.begun).then(|| format!("waiting for {}: which pods are here is not known yet", self.pods));
        let cni_problem = self.cni_problem.borrow().clone();
        let registry = &self.registry;
        self.memory.retain(|uid, _| registry.place_of(uid).is_some());
        let own = self.problems.iter();
        let status = Status {
            node: self.kit.node.to_string(),
            pid: std::process::id(),
            started_at: self.started_at,
            written_at: Timestamp::now(),
            start_ms: self.start_ms,
            programs: FORM,
            hooks: self.hooks.clone(),
            keeper: self.kit.keeper.client().is_some(),
            problems: own
                .chain(&self.hook_problem)
                .chain(&waiting)
                .chain(&cni_problem)
                .chain(&self.policy_problems)
                .cloned()
                .collect(),
            pods: status::pods(&self.registry, &self.memory),
        };
        if let Err(error) = status::write(&self.run_dir, &status) {
            warn!(%error, "cannot write the status");
        }
    }

    /// Has the objects of pods say how their pods are.
    fn tell(&mut self) {
        if let Some(teller) = self.teller.as_mut().filter(|_| self.begun) {
            teller.tell(&self.source, &self.registry);
        }
    }
}
