//! A line of the access log, in Istio's text format or as its JSON object.

use std::fmt::{self, Display, Write as _};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Version};
use jiff::Timestamp;
use loam_core::reason::Reason;
use loam_core::service::Service;
use loam_rt::telemetry::LogFormat;

use super::{ConnectionRecord, Facts};

/// Longest value of one field. A client chooses some of them.
const MAX_VALUE_BYTES: usize = 4096;

/// The values of a line, in Istio's order. An absent one is `-`, or `null`.
struct Values {
    start_time: String,
    method: Option<String>,
    path: Option<String>,
    protocol: Option<&'static str>,
    response_code: u16,
    response_flags: &'static str,
    response_code_details: Option<String>,
    connection_termination_details: Option<String>,
    upstream_transport_failure_reason: Option<String>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u128,
    upstream_service_time: Option<u128>,
    x_forwarded_for: Option<String>,
    user_agent: Option<String>,
    request_id: Option<String>,
    authority: Option<String>,
    upstream_host: Option<String>,
    upstream_cluster: Option<String>,
    downstream_local_address: String,
    downstream_remote_address: String,
    route_name: Option<String>,
}

/// The line of a request.
pub(super) fn request(facts: &Facts, wall: SystemTime, took: Duration, format: LogFormat) -> String {
    let details = match facts.failure {
        Some(failure) => Some(failure.as_str().to_owned()),
        None => facts.status.map(|_| "via_upstream".to_owned()),
    };
    Values {
        start_time: time(wall),
        method: Some(facts.method.to_string()),
        path: Some(facts.path.clone()),
        protocol: Some(protocol(facts.version)),
        response_code: facts.status.map_or(0, |status| status.as_u16()),
        response_flags: facts.failure.map_or("-", |failure| failure.response_flags()),
        response_code_details: details,
        connection_termination_details: None,
        upstream_transport_failure_reason: facts.transport_failure.clone(),
        bytes_received: facts.received.load(Ordering::Relaxed),
        bytes_sent: facts.sent,
        duration: took.as_millis(),
        upstream_service_time: facts.upstream_took.map(|took| took.as_millis()),
        x_forwarded_for: text(facts.forwarded_for.as_ref()),
        user_agent: text(facts.user_agent.as_ref()),
        request_id: text(facts.request_id.as_ref()),
        authority: Some(facts.authority.clone()),
        upstream_host: facts.upstream.map(|addr| addr.to_string()),
        upstream_cluster: facts.service.as_ref().map(|(service, port)| cluster(service, *port, "http")),
        downstream_local_address: facts.origin.asked.to_string(),
        downstream_remote_address: facts.origin.downstream.to_string(),
        route_name: facts.route.as_deref().map(str::to_owned),
    }
    .write(format)
}

/// The line of a connection that is no HTTP.
pub(super) fn connection(
    record: &ConnectionRecord,
    wall: SystemTime,
    took: Duration,
    sent: u64,
    received: u64,
    failure: Option<(Reason, &dyn Display)>,
    format: LogFormat,
) -> String {
    Values {
        start_time: time(wall),
        method: None,
        path: None,
        protocol: None,
        response_code: 0,
        response_flags: failure.map_or("-", |(reason, _)| reason.response_flags()),
        response_code_details: failure.map(|(reason, _)| reason.as_str().to_owned()),
        connection_termination_details: failure.map(|(_, error)| error.to_string()),
        upstream_transport_failure_reason: None,
        bytes_received: sent,
        bytes_sent: received,
        duration: took.as_millis(),
        upstream_service_time: None,
        x_forwarded_for: None,
        user_agent: None,
        request_id: None,
        authority: None,
        upstream_host: record.upstream.map(|addr| addr.to_string()),
        upstream_cluster: record.service.as_ref().map(|(service, port)| cluster(service, *port, "tcp")),
        downstream_local_address: record.origin.asked.to_string(),
        downstream_remote_address: record.origin.downstream.to_string(),
        route_name: None,
    }
    .write(format)
}

/// Istio's name for a port of a service behind a waypoint.
fn cluster(service: &Service, port: u16, protocol: &str) -> String {
    format!("inbound-vip|{port}|{protocol}|{}", service.key.hostname)
}

fn time(wall: SystemTime) -> String {
    match Timestamp::try_from(wall) {
        Ok(time) => format!("{time:.3}"),
        // Beyond the year 9999.
        Err(_) => "-".to_owned(),
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

fn text(value: Option<&HeaderValue>) -> Option<String> {
    value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

impl Values {
    fn write(&self, format: LogFormat) -> String {
        let mut line = String::with_capacity(512);
        // A string takes everything.
        let _ = match format {
            LogFormat::Plain => self.plain(&mut line),
            LogFormat::Json => self.json(&mut line),
        };
        line.push('\n');
        line
    }

    fn plain(&self, line: &mut String) -> fmt::Result {
        write!(line, "[{}] \"", self.start_time)?;
        for (i, value) in [self.method.as_deref(), self.path.as_deref(), self.protocol].into_iter().enumerate() {
            write!(line, "{}{}", if i == 0 { "" } else { " " }, Plain(value))?;
        }
        write!(line, "\" {} {}", self.response_code, self.response_flags)?;
        write!(line, " {}", Plain(self.response_code_details.as_deref()))?;
        match self.connection_termination_details.as_deref() {
            None => line.push_str(" -"),
            details => write!(line, " \"{}\"", Plain(details))?,
        }
        write!(line, " \"{}\"", Plain(self.upstream_transport_failure_reason.as_deref()))?;
        write!(line, " {} {} {}", self.bytes_received, self.bytes_sent, self.duration)?;
        match self.upstream_service_time {
            Some(time) => write!(line, " {time}")?,
            None => line.push_str(" -"),
        }
        for quoted in [&self.x_forwarded_for, &self.user_agent, &self.request_id, &self.authority, &self.upstream_host]
        {
            write!(line, " \"{}\"", Plain(quoted.as_deref()))?;
        }
        write!(line, " {} - ", Plain(self.upstream_cluster.as_deref()))?;
        write!(line, "{} {} - ", self.downstream_local_address, self.downstream_remote_address)?;
        write!(line, "{}", Plain(self.route_name.as_deref()))
    }

    fn json(&self, line: &mut String) -> fmt::Result {
        let texts = [
            ("start_time", Some(&*self.start_time)),
            ("method", self.method.as_deref()),
            ("path", self.path.as_deref()),
            ("protocol", self.protocol),
            ("response_flags", Some(self.response_flags)),
            ("response_code_details", self.response_code_details.as_deref()),
            ("connection_termination_details", self.connection_termination_details.as_deref()),
            ("upstream_transport_failure_reason", self.upstream_transport_failure_reason.as_deref()),
            ("x_forwarded_for", self.x_forwarded_for.as_deref()),
            ("user_agent", self.user_agent.as_deref()),
            ("request_id", self.request_id.as_deref()),
            ("authority", self.authority.as_deref()),
            ("upstream_host", self.upstream_host.as_deref()),
            ("upstream_cluster", self.upstream_cluster.as_deref()),
            ("upstream_local_address", None),
            ("downstream_local_address", Some(&*self.downstream_local_address)),
            ("downstream_remote_address", Some(&*self.downstream_remote_address)),
            ("requested_server_name", None),
            ("route_name", self.route_name.as_deref()),
        ];
        let numbers = [
            ("response_code", Some(u128::from(self.response_code))),
            ("bytes_received", Some(u128::from(self.bytes_received))),
            ("bytes_sent", Some(u128::from(self.bytes_sent))),
            ("duration", Some(self.duration)),
            ("upstream_service_time", self.upstream_service_time),
        ];
        line.push('{');
        for (i, (key, value)) in texts.into_iter().enumerate() {
            write!(line, "{}\"{key}\":", if i == 0 { "" } else { "," })?;
            match value {
                Some(value) => line.push_str(&serde_json::to_string(cut(value)).map_err(|_| fmt::Error)?),
                None => line.push_str("null"),
            }
        }
        for (key, value) in numbers {
            match value {
                Some(value) => write!(line, ",\"{key}\":{value}")?,
                None => write!(line, ",\"{key}\":null")?,
            }
        }
        line.push('}');
        Ok(())
    }
}

/// As much of a value as a line has room for.
fn cut(value: &str) -> &str {
    let mut end = value.len().min(MAX_VALUE_BYTES);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    &value[..end]
}

/// A value that cannot leave its place in a line of text.
struct Plain<'a>(Option<&'a str>);

impl Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(value) = self.0 else { return f.write_str("-") };
        for c in cut(value).chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                c if c.is_control() => write!(f, "\\x{:02x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}
