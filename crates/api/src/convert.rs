//! From messages to the mesh's own types. What is wrong with a resource is said with its name and field, and concerns
//! that resource alone. Unknown fields are ignored; an unknown value is an error where it is about security, and
//! otherwise read as the safest known one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use loam_core::ids::{NameError, ServiceKey, WorkloadUid};
use loam_core::policy::Policy;
use loam_core::service::{Port, Service};
use loam_core::snapshot::Change;
use loam_core::workload::Workload;
use prost::Message;

use crate::intern::Interner;
use crate::{ADDRESS_TYPE, AUTHORIZATION_TYPE, ROUTES_TYPE, TRAFFIC_TYPE, security, waypoint, workload};

mod filters;
mod policies;
mod routes;
mod services;
mod traffic;
mod workloads;

pub(crate) use workloads::{DEFAULT_CLUSTER, DEFAULT_SERVICE_ACCOUNT};

/// Longest text of a field that has no rule of its own.
const MAX_TEXT_BYTES: usize = 1024;

/// Why a resource was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {field}: {why}")]
pub struct ConvertError {
    /// Its name.
    pub resource: String,
    /// The field, as in `services[shop/web].ports[1].service_port`.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

/// What is wrong with a field, before the resource's name is known.
#[derive(Debug)]
struct FieldError {
    field: String,
    why: String,
}

impl FieldError {
    fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }

    /// The error of a field within another.
    fn within(self, outer: impl std::fmt::Display) -> Self {
        Self { field: format!("{outer}.{}", self.field), why: self.why }
    }

    fn of(self, resource: &str) -> ConvertError {
        // Names come from the network: quote a bounded piece of them.
        ConvertError { resource: resource.chars().take(256).collect(), field: self.field, why: self.why }
    }
}

fn named(field: &str) -> impl Fn(NameError) -> FieldError {
    move |error| FieldError::new(field, error.to_string())
}

/// Reads resources and shares memory among them.
#[derive(Debug, Default)]
pub struct Decoder {
    interner: Interner,
}

impl Decoder {
    /// What the resource `name` of a type says.
    pub fn decode(&mut self, type_url: &str, name: &str, body: &[u8]) -> Result<Change, ConvertError> {
        let broken = |error: prost::DecodeError| FieldError::new("message", error.to_string()).of(name);
        let (change, own_name) = match type_url {
            ADDRESS_TYPE => match workload::Address::decode(body).map_err(broken)?.r#type {
                Some(workload::address::Type::Workload(message)) => {
                    let workload = self.workload(message).map_err(|e| ConvertError { resource: name.into(), ..e })?;
                    let own_name = workload.uid.to_string();
                    (Change::Workload(workload), own_name)
                }
                Some(workload::address::Type::Service(message)) => {
                    let service = self.service(message).map_err(|e| ConvertError { resource: name.into(), ..e })?;
                    let own_name = service.key.to_string();
                    (Change::Service(service), own_name)
                }
                None => return Err(FieldError::new("type", "is neither a workload nor a service").of(name)),
            },
            AUTHORIZATION_TYPE => {
                let message = security::Authorization::decode(body).map_err(broken)?;
                let policy = self.policy(message).map_err(|e| ConvertError { resource: name.into(), ..e })?;
                let own_name = policy.key.to_string();
                (Change::Policy(policy), own_name)
            }
            ROUTES_TYPE => {
                let message = waypoint::ServiceRoutes::decode(body).map_err(broken)?;
                let gateway = message.gateway.clone();
                let routes = routes::read(&mut self.interner, message).map_err(|e| e.of(name))?;
                let own_name = format!("{gateway}/{}", routes.service);
                (Change::Routes(routes), own_name)
            }
            TRAFFIC_TYPE => {
                let message = waypoint::ServiceTraffic::decode(body).map_err(broken)?;
                let gateway = message.gateway.clone();
                let traffic = traffic::read(&mut self.interner, message).map_err(|e| e.of(name))?;
                let own_name = format!("{gateway}/{}", traffic.service);
                (Change::Traffic(traffic), own_name)
            }
            other => return Err(FieldError::new("type_url", format!("{other:?} is not known")).of(name)),
        };
        // A removal names the resource only: under another name it could never be removed.
        if own_name != name {
            return Err(FieldError::new("name", format!("the message says {own_name:?}")).of(name));
        }
        Ok(change)
    }

    /// What must be assumed where [`Decoder::decode`] gave an error because of `why`: a policy that cannot be read may
    /// deny anything that it is about. Nothing where no decision depends on it: of an address, or of a policy that says
    /// that it is only watched. `root` is the namespace whose policies are about the whole mesh.
    pub fn doubt(&self, type_url: &str, name: &str, body: &[u8], root: &str, why: &str) -> Option<Change> {
        if type_url != AUTHORIZATION_TYPE {
            return None;
        }
        let message = security::Authorization::decode(body).ok();
        if message.as_ref().is_some_and(|message| message.dry_run) {
            return None;
        }
        let scope = message.and_then(|message| policies::scope(message.scope).ok());
        Some(Change::UnreadablePolicy(Policy::unreadable(name, scope, root, why)))
    }

    /// What the removal of the resource `name` of a type means. A name that nothing can have means nothing.
    pub fn removed(&self, type_url: &str, name: &str) -> Vec<Change> {
        match type_url {
            // Names of services and workloads look different, but nothing forbids one that looks like both.
            ADDRESS_TYPE => {
                let workload = name.parse::<WorkloadUid>().ok().map(Change::RemoveWorkload);
                let service = name.parse::<ServiceKey>().ok().map(Change::RemoveService);
                workload.into_iter().chain(service).collect()
            }
            AUTHORIZATION_TYPE => vec![Change::RemovePolicy(name.into())],
            ROUTES_TYPE => service_of(name).map(Change::RemoveRoutes).into_iter().collect(),
            TRAFFIC_TYPE => service_of(name).map(Change::RemoveTraffic).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// A workload.
    pub fn workload(&mut self, message: workload::Workload) -> Result<Workload, ConvertError> {
        let uid = message.uid.clone();
        workloads::read(&mut self.interner, message).map_err(|e| e.of(&uid))
    }

    /// A service.
    pub fn service(&mut self, message: workload::Service) -> Result<Service, ConvertError> {
        let name = format!("{}/{}", message.namespace, message.hostname);
        services::read(&mut self.interner, message).map_err(|e| e.of(&name))
    }

    /// A policy.
    pub fn policy(&mut self, message: security::Authorization) -> Result<Policy, ConvertError> {
        let name = format!("{}/{}", message.namespace, message.name);
        policies::read(&mut self.interner, message).map_err(|e| e.of(&name))
    }
}

/// The service that a resource of a waypoint is about: its name begins with the Gateway's.
fn service_of(name: &str) -> Option<ServiceKey> {
    name.splitn(3, '/').nth(2)?.parse().ok()
}

impl TryFrom<workload::Workload> for Workload {
    type Error = ConvertError;

    fn try_from(message: workload::Workload) -> Result<Self, ConvertError> {
        Decoder::default().workload(message)
    }
}

impl TryFrom<workload::Service> for Service {
    type Error = ConvertError;

    fn try_from(message: workload::Service) -> Result<Self, ConvertError> {
        Decoder::default().service(message)
    }
}

impl TryFrom<security::Authorization> for Policy {
    type Error = ConvertError;

    fn try_from(message: security::Authorization) -> Result<Self, ConvertError> {
        Decoder::default().policy(message)
    }
}

/// A text that many resources are likely to say.
fn text(interner: &mut Interner, field: &str, text: &str) -> Result<Arc<str>, FieldError> {
    valid_text(field, text).map(|text| interner.text(text))
}

fn valid_text<'a>(field: &str, text: &'a str) -> Result<&'a str, FieldError> {
    match text.len() {
        len if len > MAX_TEXT_BYTES => {
            Err(FieldError::new(field, format!("{len} bytes are more than {MAX_TEXT_BYTES}")))
        }
        // It ends up in logs and labels.
        _ if text.chars().any(char::is_control) => Err(FieldError::new(field, "has a control character")),
        _ => Ok(text),
    }
}

fn ip(field: &str, bytes: &[u8]) -> Result<IpAddr, FieldError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(v4).into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(Ipv6Addr::from(v6).to_canonical()),
        Err(_) => Err(FieldError::new(field, format!("an address has 4 or 16 bytes, not {}", bytes.len()))),
    }
}

fn range(field: &str, bytes: &[u8], length: Option<u32>) -> Result<IpNet, FieldError> {
    let ip = ip(field, bytes)?;
    let Some(length) = length else { return Ok(ip.into()) };
    // The length of a mapped address counts the 96 bits before it.
    let mapped = bytes.len() == 16 && ip.is_ipv4();
    let length = if mapped { length.checked_sub(96) } else { Some(length) };
    let net = length.and_then(|l| u8::try_from(l).ok()).and_then(|l| IpNet::new(ip, l).ok());
    net.map(|net| net.trunc()).ok_or_else(|| FieldError::new(field, format!("the prefix length does not fit {ip}")))
}

fn port(field: &str, number: u32) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(FieldError::new(field, format!("{number} is not a port from 1 to 65535"))),
    }
}

/// Ports of a service or endpoint. The first of two with one number counts: TCP and UDP may share it.
fn ports(messages: &[workload::Port]) -> Result<Vec<Port>, FieldError> {
    use loam_core::service::AppProtocol;
    use workload::AppProtocol as Wire;
    let mut ports: Vec<Port> = Vec::with_capacity(messages.len());
    for (i, message) in messages.iter().enumerate() {
        let service_port = port(&format!("ports[{i}].service_port"), message.service_port)?;
        let target_port = match message.target_port {
            0 => 0,
            number => port(&format!("ports[{i}].target_port"), number)?,
        };
        let app_protocol = match Wire::try_from(message.app_protocol) {
            Ok(Wire::Http11) => AppProtocol::Http11,
            Ok(Wire::Http2) => AppProtocol::Http2,
            Ok(Wire::Grpc) => AppProtocol::Grpc,
            Ok(Wire::Tcp) => AppProtocol::Tcp,
            Ok(Wire::Tls) => AppProtocol::Tls,
            Ok(Wire::Unknown) | Err(_) => AppProtocol::Unknown,
        };
        ports.push(Port { service_port, target_port, app_protocol });
    }
    // Stable: the first of its number stays first.
    ports.sort_by_key(|p| p.service_port);
    ports.dedup_by_key(|p| p.service_port);
    Ok(ports)
}

#[cfg(test)]
mod tests;
