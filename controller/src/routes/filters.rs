//! Filters. One that cannot be kept becomes one that answers with an error.

use std::collections::HashSet;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use loam_core::http::filter::{Allowed, Cors, Filter, HeaderEdits, Mirror, Origin, PathEdit, Redirect, Rewrite, Share};
use loam_core::http::headers::is_editable;
use loam_core::http::target::Scheme;
use loam_manifest::gateway::{
    Cors as WrittenCors, Filter as Written, Header, HeaderEdits as WrittenEdits, Mirror as WrittenMirror, PathChange,
    Redirect as WrittenRedirect,
};

use crate::resource::quoted;

/// Most headers of one edit, as the API has it.
const MAX_EDITS: usize = 64;
/// How long browsers may remember an answer about CORS where nothing is said, as the API has it.
const CORS_MAX_AGE: Duration = Duration::from_secs(5);

/// What a filter asks for. A mirror is looked at elsewhere: it refers to somebody.
#[derive(Debug)]
pub(super) enum Read<'a> {
    Filter(Filter),
    Mirror(&'a WrittenMirror),
}

/// Reads one filter; an error says why it cannot be kept.
pub(super) fn read(written: &Written) -> Result<Read<'_>, String> {
    let empty = || format!("filter {} says nothing", quoted(&written.r#type));
    Ok(Read::Filter(match written.r#type.as_str() {
        "RequestHeaderModifier" => {
            Filter::RequestHeaders(edits(written.request_header_modifier.as_ref().ok_or_else(empty)?)?)
        }
        "ResponseHeaderModifier" => {
            Filter::ResponseHeaders(edits(written.response_header_modifier.as_ref().ok_or_else(empty)?)?)
        }
        "RequestRedirect" => Filter::Redirect(redirect(written.request_redirect.as_ref().ok_or_else(empty)?)?),
        "URLRewrite" => {
            let rewrite = written.url_rewrite.as_ref().ok_or_else(empty)?;
            Filter::Rewrite(Rewrite {
                host: rewrite.hostname.as_deref().map(host).transpose()?,
                path: rewrite.path.as_ref().map(path).transpose()?,
            })
        }
        "RequestMirror" => return written.request_mirror.as_ref().map(Read::Mirror).ok_or_else(empty),
        "CORS" => Filter::Cors(cors(written.cors.as_ref().ok_or_else(empty)?)?),
        other => return Err(format!("filter {} is not known", quoted(other))),
    }))
}

/// The share of requests that a mirror copies.
pub(super) fn share(written: &WrittenMirror) -> Result<Share, String> {
    let share = |parts: i64, of: i64| match (u32::try_from(parts), u32::try_from(of)) {
        (Ok(parts), Ok(of)) if of > 0 && parts <= of => Ok(Share { parts, of }),
        _ => Err(format!("{parts} of {of} is no share of requests to mirror")),
    };
    match (written.percent, &written.fraction) {
        (None, None) => Ok(Share::ALL),
        (Some(percent), _) => share(percent, 100),
        (None, Some(fraction)) => share(fraction.numerator, fraction.denominator.unwrap_or(100)),
    }
}

/// A mirror of `upstream`.
pub(super) fn mirror(upstream: loam_core::http::backend::Upstream, share: Share) -> Filter {
    Filter::Mirror(Mirror { upstream, share })
}

fn edits(written: &WrittenEdits) -> Result<HeaderEdits, String> {
    if written.set.len() + written.add.len() + written.remove.len() > MAX_EDITS {
        return Err(format!("there are more than {MAX_EDITS} changes of headers"));
    }
    let pair = |header: &Header| Ok((name(&header.name)?, value(header)?));
    let edits = HeaderEdits {
        set: written.set.iter().map(pair).collect::<Result<_, String>>()?,
        add: written.add.iter().map(pair).collect::<Result<_, String>>()?,
        remove: written.remove.iter().map(|text| name(text)).collect::<Result<_, String>>()?,
    };
    let names = edits.set.iter().chain(&edits.add).map(|(name, _)| name).chain(&edits.remove);
    let mut seen = HashSet::new();
    for name in names {
        if !is_editable(name) {
            return Err(format!("header {name} cannot be changed"));
        }
        if !seen.insert(name) {
            return Err(format!("header {name} is changed twice"));
        }
    }
    Ok(edits)
}

pub(super) fn name(text: &str) -> Result<HeaderName, String> {
    HeaderName::try_from(text).map_err(|_| format!("{} is no name of a header", quoted(text)))
}

fn value(header: &Header) -> Result<HeaderValue, String> {
    HeaderValue::try_from(&header.value)
        .map_err(|_| format!("{} is no value of header {}", quoted(&header.value), quoted(&header.name)))
}

fn redirect(written: &WrittenRedirect) -> Result<Redirect, String> {
    let status = written.status_code.unwrap_or(302);
    Ok(Redirect {
        scheme: match written.scheme.as_deref() {
            None => None,
            Some("http") => Some(Scheme::Http),
            Some("https") => Some(Scheme::Https),
            Some(other) => return Err(format!("a redirect to scheme {} is not known", quoted(other))),
        },
        host: written.hostname.as_deref().map(host).transpose()?,
        port: match written.port {
            None => None,
            Some(port) => Some(crate::resource::usable_port("port of a redirect", port)?),
        },
        path: written.path.as_ref().map(path).transpose()?,
        status: match status {
            301 | 302 | 303 | 307 | 308 => u16::try_from(status).ok().and_then(|s| StatusCode::from_u16(s).ok()),
            _ => None,
        }
        .ok_or_else(|| format!("a redirect with status {status} is not known"))?,
    })
}

fn host(text: &str) -> Result<std::sync::Arc<str>, String> {
    match text.parse::<loam_core::ids::Hostname>() {
        Ok(host) if !host.as_str().starts_with('*') => Ok(host.as_str().into()),
        Ok(_) | Err(_) => Err(format!("{} is no host", quoted(text))),
    }
}

fn path(written: &PathChange) -> Result<PathEdit, String> {
    match (written.r#type.as_str(), &written.replace_full_path, &written.replace_prefix_match) {
        ("ReplaceFullPath", Some(text), _) => usable_path(text).map(PathEdit::Full),
        ("ReplacePrefixMatch", _, Some(text)) => usable_path(text).map(PathEdit::Prefix),
        (other, _, _) => Err(format!("a change of the path of type {} is not known, or says nothing", quoted(other))),
    }
}

fn usable_path(text: &str) -> Result<std::sync::Arc<str>, String> {
    match text.bytes().all(|b| b.is_ascii_graphic()) && !text.contains(['?', '#']) {
        true => Ok(text.into()),
        false => Err(format!("{} is no path", quoted(text))),
    }
}

fn cors(written: &WrittenCors) -> Result<Cors, String> {
    let method = |text: &str| Method::from_bytes(text.as_bytes()).map_err(|_| format!("{} is no method", quoted(text)));
    Ok(Cors {
        allow_origins: written.allow_origins.iter().map(|text| origin(text)).collect(),
        allow_methods: allowed(&written.allow_methods, method)?,
        allow_headers: allowed(&written.allow_headers, name)?,
        expose_headers: allowed(&written.expose_headers, name)?,
        max_age: match written.max_age {
            None => Some(CORS_MAX_AGE),
            Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
        },
        credentials: written.allow_credentials == Some(true),
    })
}

fn origin(text: &str) -> Origin {
    match text.split_once('*') {
        None => Origin::Exact(text.into()),
        Some(("", "")) => Origin::Any,
        Some((before, behind)) => Origin::Wildcard { before: before.into(), behind: behind.into() },
    }
}

fn allowed<T>(written: &[String], read: impl Fn(&str) -> Result<T, String>) -> Result<Allowed<T>, String> {
    if written.iter().any(|text| text == "*") {
        return Ok(Allowed::All);
    }
    written.iter().map(|text| read(text)).collect::<Result<_, _>>().map(Allowed::These)
}
