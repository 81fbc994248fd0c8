//! `loam.http.Filter`.

use ::http::{HeaderName, HeaderValue, Method};
use bytes::Bytes;
use loam_core::http::filter::{Allowed, Cors, Fault, Filter, HeaderEdits, Origin, PathEdit, Redirect, Share};
use loam_core::http::target::Scheme;

use super::routes::upstream;
use super::traffic::millis;
use crate::waypoint as wire;

pub(super) fn filters(values: &[Filter]) -> Vec<wire::Filter> {
    values.iter().map(|value| wire::Filter { r#type: Some(filter(value)) }).collect()
}

fn filter(value: &Filter) -> wire::filter::Type {
    use wire::filter::Type;
    match value {
        Filter::RequestHeaders(edits) => Type::RequestHeaders(header_edits(edits)),
        Filter::ResponseHeaders(edits) => Type::ResponseHeaders(header_edits(edits)),
        Filter::Redirect(redirect) => Type::Redirect(one_redirect(redirect)),
        Filter::Rewrite(rewrite) => Type::Rewrite(wire::Rewrite {
            host: rewrite.host.as_deref().unwrap_or_default().to_owned(),
            path: rewrite.path.as_ref().map(path),
        }),
        Filter::Mirror(mirror) => {
            Type::Mirror(wire::Mirror { upstream: Some(upstream(&mirror.upstream)), share: Some(share(&mirror.share)) })
        }
        Filter::Cors(value) => Type::Cors(cors(value)),
        Filter::Respond { status, body } => {
            Type::Respond(wire::Respond { status: u32::from(status.as_u16()), body: body.to_string() })
        }
        Filter::Fault(value) => Type::Fault(fault(value)),
        Filter::Unknown(text) => Type::Unknown(text.to_string()),
    }
}

fn header_edits(value: &HeaderEdits) -> wire::HeaderEdits {
    let header = |(name, value): &(HeaderName, HeaderValue)| wire::Header {
        name: name.as_str().to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    wire::HeaderEdits {
        set: value.set.iter().map(header).collect(),
        add: value.add.iter().map(header).collect(),
        remove: value.remove.iter().map(|name| name.as_str().to_owned()).collect(),
    }
}

fn one_redirect(value: &Redirect) -> wire::Redirect {
    wire::Redirect {
        scheme: match value.scheme {
            None => wire::redirect::Scheme::Same,
            Some(Scheme::Http) => wire::redirect::Scheme::Http,
            Some(Scheme::Https) => wire::redirect::Scheme::Https,
        }
        .into(),
        host: value.host.as_deref().unwrap_or_default().to_owned(),
        port: value.port.map(u32::from).unwrap_or_default(),
        path: value.path.as_ref().map(path),
        status: u32::from(value.status.as_u16()),
    }
}

fn path(value: &PathEdit) -> wire::PathEdit {
    wire::PathEdit {
        r#type: Some(match value {
            PathEdit::Full(text) => wire::path_edit::Type::Full(text.to_string()),
            PathEdit::Prefix(text) => wire::path_edit::Type::Prefix(text.to_string()),
        }),
    }
}

fn share(value: &Share) -> wire::Share {
    wire::Share { parts: value.parts, of: value.of }
}

fn cors(value: &Cors) -> wire::Cors {
    use wire::cors::origin::Type;
    let origin = |origin: &Origin| wire::cors::Origin {
        r#type: Some(match origin {
            Origin::Any => Type::Any(true),
            Origin::Exact(text) => Type::Exact(text.to_string()),
            Origin::Wildcard { before, behind } => {
                Type::Wildcard(wire::cors::Wildcard { before: before.to_string(), behind: behind.to_string() })
            }
            Origin::Regex(regex) => Type::Regex(regex.as_str().to_owned()),
        }),
    };
    wire::Cors {
        allow_origins: value.allow_origins.iter().map(origin).collect(),
        allow_methods: allowed(&value.allow_methods, Method::as_str),
        allow_headers: allowed(&value.allow_headers, HeaderName::as_str),
        expose_headers: allowed(&value.expose_headers, HeaderName::as_str),
        max_age_millis: value.max_age.map(millis),
        credentials: value.credentials,
    }
}

fn allowed<T>(value: &Allowed<T>, text: impl Fn(&T) -> &str) -> Option<wire::cors::Allowed> {
    Some(match value {
        Allowed::All => wire::cors::Allowed { all: true, these: Vec::new() },
        Allowed::These(these) if these.is_empty() => return None,
        Allowed::These(these) => {
            wire::cors::Allowed { all: false, these: these.iter().map(|one| text(one).to_owned()).collect() }
        }
    })
}

fn fault(value: &Fault) -> wire::Fault {
    wire::Fault {
        delayed: value.delay.as_ref().map(|(delayed, _)| share(delayed)),
        delay_millis: value.delay.map(|(_, delay)| millis(delay)).unwrap_or_default(),
        aborted: value.abort.as_ref().map(|(aborted, _)| share(aborted)),
        abort_status: value.abort.map(|(_, status)| u32::from(status.as_u16())).unwrap_or_default(),
    }
}
