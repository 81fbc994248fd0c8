//! `loam.http.Filter`.

use std::time::Duration;

use ::http::{HeaderName, HeaderValue, StatusCode};
use loam_core::http::filter::{
    Allowed, Cors, Fault, Filter, HeaderEdits, Mirror, Origin, PathEdit, Redirect, Rewrite, Share,
};
use loam_core::http::target::Scheme;

use super::routes::{header, method, regex, upstream, value};
use super::{FieldError, port};
use crate::intern::Interner;
use crate::waypoint as wire;

pub(super) fn read(interner: &mut Interner, messages: Vec<wire::Filter>) -> Result<Vec<Filter>, FieldError> {
    let one = |(i, message)| filter(interner, message).map_err(|e| e.within(format_args!("filters[{i}]")));
    messages.into_iter().enumerate().map(one).collect()
}

fn filter(interner: &mut Interner, message: wire::Filter) -> Result<Filter, FieldError> {
    use wire::filter::Type;
    Ok(match message.r#type {
        Some(Type::RequestHeaders(edits)) => Filter::RequestHeaders(header_edits(edits)?),
        Some(Type::ResponseHeaders(edits)) => Filter::ResponseHeaders(header_edits(edits)?),
        Some(Type::Redirect(message)) => Filter::Redirect(redirect(message)?),
        Some(Type::Rewrite(message)) => {
            Filter::Rewrite(Rewrite { host: host(&message.host)?, path: message.path.map(path).transpose()? })
        }
        Some(Type::Mirror(message)) => Filter::Mirror(Mirror {
            upstream: upstream(interner, message.upstream)?,
            share: share("share", message.share)?,
        }),
        Some(Type::Cors(message)) => Filter::Cors(cors(message)?),
        Some(Type::Respond(message)) => {
            Filter::Respond { status: status("status", message.status)?, body: message.body.into() }
        }
        Some(Type::Fault(message)) => Filter::Fault(fault(message)?),
        Some(Type::Unknown(text)) => Filter::Unknown(value("unknown", &text)?),
        None => Filter::Unknown("a filter that this version of the waypoint does not know".into()),
    })
}

fn header_edits(message: wire::HeaderEdits) -> Result<HeaderEdits, FieldError> {
    let pairs = |field: &str, headers: Vec<wire::Header>| -> Result<Vec<(HeaderName, HeaderValue)>, FieldError> {
        let pair = |(i, h): (usize, wire::Header)| {
            let name = header(&format!("{field}[{i}].name"), &h.name)?;
            let value = HeaderValue::from_bytes(&h.value);
            Ok((name, value.map_err(|e| FieldError::new(format!("{field}[{i}].value"), e.to_string()))?))
        };
        headers.into_iter().enumerate().map(pair).collect()
    };
    let remove = message.remove.iter().enumerate().map(|(i, name)| header(&format!("remove[{i}]"), name));
    Ok(HeaderEdits {
        remove: remove.collect::<Result<_, _>>()?,
        set: pairs("set", message.set)?,
        add: pairs("add", message.add)?,
    })
}

fn redirect(message: wire::Redirect) -> Result<Redirect, FieldError> {
    use wire::redirect::Scheme as Wire;
    Ok(Redirect {
        scheme: match Wire::try_from(message.scheme) {
            Ok(Wire::Same) => None,
            Ok(Wire::Http) => Some(Scheme::Http),
            Ok(Wire::Https) => Some(Scheme::Https),
            Err(_) => return Err(FieldError::new("redirect.scheme", format!("{} is not known", message.scheme))),
        },
        host: host(&message.host)?,
        port: match message.port {
            0 => None,
            number => Some(port("redirect.port", number)?),
        },
        path: message.path.map(path).transpose()?,
        status: status("redirect.status", message.status)?,
    })
}

fn host(text: &str) -> Result<Option<std::sync::Arc<str>>, FieldError> {
    if text.is_empty() { Ok(None) } else { value("host", text).map(Some) }
}

fn path(message: wire::PathEdit) -> Result<PathEdit, FieldError> {
    match message.r#type {
        Some(wire::path_edit::Type::Full(text)) => Ok(PathEdit::Full(value("path", &text)?)),
        Some(wire::path_edit::Type::Prefix(text)) => Ok(PathEdit::Prefix(value("path", &text)?)),
        None => Err(FieldError::new("path", "is of a kind that is not known")),
    }
}

fn share(field: &str, message: Option<wire::Share>) -> Result<Share, FieldError> {
    match message {
        Some(wire::Share { parts, of }) if of > 0 => Ok(Share { parts, of }),
        Some(_) => Err(FieldError::new(field, "is a share of nothing")),
        None => Err(FieldError::new(field, "is missing")),
    }
}

pub(super) fn status(field: &str, number: u32) -> Result<StatusCode, FieldError> {
    let status = u16::try_from(number).ok().and_then(|number| StatusCode::from_u16(number).ok());
    status.ok_or_else(|| FieldError::new(field, format!("{number} is no status")))
}

fn cors(message: wire::Cors) -> Result<Cors, FieldError> {
    use wire::cors::origin::Type;
    let origin = |(i, origin): (usize, wire::cors::Origin)| {
        let field = format!("allow_origins[{i}]");
        Ok(match origin.r#type {
            Some(Type::Any(_)) => Origin::Any,
            Some(Type::Exact(text)) => Origin::Exact(value(&field, &text)?),
            Some(Type::Wildcard(parts)) => {
                Origin::Wildcard { before: value(&field, &parts.before)?, behind: value(&field, &parts.behind)? }
            }
            Some(Type::Regex(text)) => Origin::Regex(regex(&field, &text)?),
            None => return Err(FieldError::new(field, "is of a kind that is not known")),
        })
    };
    let headers = |field: &str, message| allowed(field, message, header);
    Ok(Cors {
        allow_origins: message.allow_origins.into_iter().enumerate().map(origin).collect::<Result<_, FieldError>>()?,
        allow_methods: allowed("allow_methods", message.allow_methods, method)?,
        allow_headers: headers("allow_headers", message.allow_headers)?,
        expose_headers: headers("expose_headers", message.expose_headers)?,
        max_age: message.max_age_millis.map(Duration::from_millis),
        credentials: message.credentials,
    })
}

fn allowed<T>(
    field: &str,
    message: Option<wire::cors::Allowed>,
    read: impl Fn(&str, &str) -> Result<T, FieldError>,
) -> Result<Allowed<T>, FieldError> {
    let message = message.unwrap_or_default();
    if message.all {
        return Ok(Allowed::All);
    }
    message.these.iter().map(|name| read(field, name)).collect::<Result<_, _>>().map(Allowed::These)
}

fn fault(message: wire::Fault) -> Result<Fault, FieldError> {
    let delay = message.delayed.map(|delayed| share("delayed", Some(delayed))).transpose()?;
    let abort = message.aborted.map(|aborted| share("aborted", Some(aborted))).transpose()?;
    let abort = abort.map(|share| status("abort_status", message.abort_status).map(|status| (share, status)));
    Ok(Fault {
        delay: delay.map(|share| (share, Duration::from_millis(message.delay_millis))),
        abort: abort.transpose()?,
    })
}
