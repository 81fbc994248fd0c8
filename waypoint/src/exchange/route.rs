//! Which rule a request meets, and what follows from it.

use std::sync::Arc;
use std::time::Duration;

use loam_core::addr::OrigDst;
use loam_core::http::backend::BackendService;
use loam_core::http::failure::Failure;
use loam_core::http::plan::{Answer, Ask, Forward, Plan, delay, plan, plan_opaque};
use loam_core::http::route::{Kind, Rule};
use loam_core::http::table::{Found, Table};
use loam_core::http::target::Request;
use loam_core::snapshot::Snapshot;
use loam_core::waypoint::Target;

use super::session::Sticky;
use crate::engine::Session;

/// What becomes of a request.
pub(super) enum Routed {
    Go(Box<Course>),
    Answer { answer: Answer, delay: Option<Duration> },
    Fail { failure: Failure, delay: Option<Duration> },
}

/// Where a request goes.
pub(super) struct Course {
    /// What it is for: the service that was asked for, or the backend of a rule.
    pub(super) to: Target,
    /// What the rule says; nothing where a workload was asked for.
    pub(super) forward: Option<Forward>,
    /// How long it waits on purpose.
    pub(super) delay: Option<Duration>,
    /// Whether the route is about gRPC, which needs HTTP/2.
    pub(super) http2: bool,
    /// What keeps the client with its endpoint.
    pub(super) sticky: Option<Sticky>,
}

impl Course {
    /// The rule.
    pub(super) fn rule(&self) -> Option<&Arc<Rule>> {
        self.forward.as_ref()?.via.as_ref().map(|via| &via.rule)
    }
}

/// What becomes of `request`, by the routes of the service that was asked for.
pub(super) fn route(session: &Session, request: &Request<'_>) -> Routed {
    let asked_for = || session.target.clone();
    let (service, port, asked) = match &session.target {
        Target::Workload { .. } => {
            return go(Course { to: asked_for(), forward: None, delay: None, http2: false, sticky: None });
        }
        Target::Service { service, port, asked } => (service, port.service_port, *asked),
    };
    let snapshot = session.engine.mesh.load();
    let table = snapshot.routes(&service.key).and_then(|routes| routes.find(port, session.caller_namespace()));
    let Some(table) = table else {
        let backend = BackendService { service: service.key.clone(), port, subset: None };
        let session = snapshot.traffic(&service.key).and_then(|traffic| traffic.of(port, None).session.as_ref());
        // Where there is no rule, the port stands for it.
        let sticky = session.map(|session| Sticky::read(session, u64::from(port), request.headers));
        let forward = Some(Forward::direct(backend, request.target.clone()));
        return go(Course { to: asked_for(), forward, delay: None, http2: false, sticky });
    };
    let Some(found) = find(table, request) else {
        return Routed::Fail { failure: Failure::NoRoute, delay: None };
    };
    let turn = found.turn();
    let delay = delay(found.rule, turn);
    let sticky = found.rule.session.as_ref().map(|session| Sticky::read(session, found.scope(), request.headers));
    let held = sticky.as_ref().and_then(|sticky| sticky.held.as_ref());
    match plan(&Ask { found, request: *request, port, turn, held }) {
        Plan::Answer(answer) => Routed::Answer { answer, delay },
        Plan::Fail(failure) => Routed::Fail { failure, delay },
        Plan::Forward(forward) => match target(&snapshot, &forward.backend, asked) {
            Some(to) => {
                let BackendService { service, port, subset } = &forward.backend;
                let of_service = || snapshot.traffic(service)?.of(*port, subset.as_deref()).session.as_ref();
                let of_service = || of_service().map(|s| Sticky::read(s, found.scope(), request.headers));
                let sticky = sticky.or_else(of_service);
                let http2 = table.kind() == Kind::Grpc;
                go(Course { to, forward: Some(forward), delay, http2, sticky })
            }
            None => Routed::Fail { failure: Failure::InvalidBackend, delay },
        },
    }
}

fn go(course: Course) -> Routed {
    Routed::Go(Box::new(course))
}

/// Where a connection goes that is not looked into, by the routes of the service that was asked for.
pub fn route_opaque(session: &Session) -> Result<Target, Failure> {
    let Target::Service { service, port, asked } = &session.target else { return Ok(session.target.clone()) };
    let snapshot = session.engine.mesh.load();
    let routes = snapshot.routes(&service.key);
    let table = routes.and_then(|routes| routes.find(port.service_port, session.caller_namespace()));
    match table.map(|table| (table.kind(), table)) {
        // Routes of HTTP are for HTTP.
        None | Some((Kind::Grpc | Kind::Http, _)) => Ok(session.target.clone()),
        Some((Kind::Tls | Kind::Tcp, table)) => {
            let found = table.find_opaque(None).ok_or(Failure::NoRoute)?;
            let backend = plan_opaque(&found, found.turn())?;
            target(&snapshot, &backend, *asked).ok_or(Failure::InvalidBackend)
        }
    }
}

fn find<'a>(table: &'a Table, request: &Request<'_>) -> Option<Found<'a>> {
    match table.kind() {
        Kind::Grpc | Kind::Http => table.find(request),
        // A route that does not look into connections is for whatever comes.
        Kind::Tls | Kind::Tcp => table.find_opaque(None),
    }
}

/// The port of a service that `backend` names, for who has asked for `asked`.
fn target(snapshot: &Snapshot, backend: &BackendService, asked: OrigDst) -> Option<Target> {
    let service = snapshot.service(&backend.service)?;
    let port = *service.port(backend.port)?;
    let asked = OrigDst::new(std::net::SocketAddr::new(asked.ip(), backend.port));
    Some(Target::Service { service: service.clone(), port, asked })
}

/// The port of a service that `backend` names, as the mesh is now.
pub fn backend(session: &Session, backend: &BackendService) -> Option<Target> {
    target(&session.engine.mesh.load(), backend, session.target.asked())
}
