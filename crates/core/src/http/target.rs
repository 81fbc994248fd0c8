//! What a request is for, in the one form that matching, policy, logs and the request that is sent on share.
//!
//! Most ways round a policy are one mistake: who decided and who served read the same bytes differently. So a target is
//! put into its canonical form once, and one that has none, or that servers are known to read in several ways, is
//! refused.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, StatusCode, Uri, Version, header};

use crate::ids::valid_hostname;

/// Longest path with its query.
pub const MAX_TARGET_BYTES: usize = 8192;

/// Longest host with its port.
pub const MAX_HOST_BYTES: usize = crate::authority::MAX_AUTHORITY_BYTES;

/// A request, as far as it decides what becomes of it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a Method,
    /// What it is for.
    pub target: &'a Target,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// The head of a request as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// The request target: of HTTP/2 put together from its pseudo-headers.
    pub uri: &'a Uri,
    /// The version spoken.
    pub version: Version,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// Whether it is an extended CONNECT (RFC 8441), which has a scheme and a path.
    pub extended_connect: bool,
}

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    scheme: Scheme,
    authority: Authority,
    path: PathAndQuery,
}

/// The scheme of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(missing_docs, reason = "the names of schemes say it")]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl Scheme {
    /// Its name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The port that goes without saying.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How paths are put into canonical form, where there is a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathRules {
    /// Whether several slashes in a row become one.
    pub merge_slashes: bool,
    /// What becomes of `%2F`, `%5C` and `\`, which some servers take for a slash.
    pub slash_like: SlashLike,
}

impl Default for PathRules {
    fn default() -> Self {
        Self { merge_slashes: true, slash_like: SlashLike::Refuse }
    }
}

/// What becomes of a character that some servers take for a slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlashLike {
    /// The request is refused.
    Refuse,
    /// It is a slash.
    Slash,
    /// It stays, percent-encoded.
    Keep,
}

/// Why a request has no canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// CONNECT asks for a tunnel, and nothing here makes one.
    #[error("CONNECT is not served here")]
    Connect,
    /// The scheme is neither `http` nor `https`.
    #[error("the scheme is neither http nor https")]
    Scheme,
    /// There is no host.
    #[error("there is no host")]
    NoHost,
    /// There are several `host` headers.
    #[error("there is more than one host header")]
    SeveralHosts,
    /// The host of the target and the `host` header differ.
    #[error("the host of the target and the host header differ")]
    HostsDiffer,
    /// The host is no name and no address, has a user part, or its port is not from 1 to 65535.
    #[error("the host is not a name or an address with a port from 1 to 65535 or none")]
    Host,
    /// The path with its query is longer than [`MAX_TARGET_BYTES`].
    #[error("the target is longer than {MAX_TARGET_BYTES} bytes")]
    TooLong,
    /// The path does not begin with a slash; `*` is for OPTIONS only.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A `%` is not followed by two hexadecimal digits.
    #[error("a percent sign in the path is not followed by two hexadecimal digits")]
    Escape,
    /// The path has a NUL, raw or encoded.
    #[error("the path has a NUL")]
    Nul,
    /// The path has a control character, a space or a byte that a path cannot have (RFC 3986 3.3).
    #[error("the path has a character that must be percent-encoded")]
    Character,
    /// The path or the query has a `#`.
    #[error("the target has a fragment")]
    Fragment,
    /// The path has `%2F`, `%5C` or `\`.
    #[error("the path has an encoded slash or a backslash")]
    SlashLike,
    /// The path has UTF-8 that is longer than it need be, another spelling of an ASCII character.
    #[error("the path has overlong UTF-8")]
    Overlong,
    /// The path has a segment such as `..;x`, which some servers take for `..`.
    #[error("the path has a dot segment with a parameter")]
    DotParameter,
    /// The `transfer-encoding` is not exactly `chunked`, or comes several times, or in HTTP/1.0 (RFC 9112 6.1).
    #[error("the transfer-encoding is not a single chunked")]
    TransferEncoding,
    /// The `content-length` is not one plain number, or stands beside a `transfer-encoding` (RFC 9112 6.3).
    #[error("the content-length is not a single number, or stands beside a transfer-encoding")]
    ContentLength,
}

impl Malformed {
    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            Malformed::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Malformed::TooLong => StatusCode::URI_TOO_LONG,
            Malformed::Scheme
            | Malformed::NoHost
            | Malformed::SeveralHosts
            | Malformed::HostsDiffer
            | Malformed::Host
            | Malformed::NotAbsolute
            | Malformed::Escape
            | Malformed::Nul
            | Malformed::Character
            | Malformed::Fragment
            | Malformed::SlashLike
            | Malformed::Overlong
            | Malformed::DotParameter
            | Malformed::TransferEncoding
            | Malformed::ContentLength => StatusCode::BAD_REQUEST,
        }
    }
}

impl Target {
    /// The canonical form of what `head` asks for, on a connection that carries `scheme`.
    pub fn of(head: &Head<'_>, scheme: Scheme, rules: &PathRules) -> Result<Self, Malformed> {
        if *head.method == Method::CONNECT && !head.extended_connect {
            return Err(Malformed::Connect);
        }
        check_framing(head.version, head.headers)?;
        let scheme = match head.uri.scheme_str() {
            None => scheme,
            Some(said) if said.eq_ignore_ascii_case("http") => Scheme::Http,
            Some(said) if said.eq_ignore_ascii_case("https") => Scheme::Https,
            Some(_) => return Err(Malformed::Scheme),
        };
        let authority = authority(head, scheme)?;
        let asked = head.uri.path_and_query();
        let asked = asked.ok_or(Malformed::NotAbsolute)?;
        if asked.as_str() == "*" && *head.method == Method::OPTIONS {
            return Ok(Self { scheme, authority, path: asked.clone() });
        }
        if asked.as_str().len() > MAX_TARGET_BYTES {
            return Err(Malformed::TooLong);
        }
        let path = match canonical_path(asked.path(), rules)? {
            Cow::Borrowed(_) if asked.as_str().starts_with('/') => asked.clone(),
            path => joined(&path, asked.query()).ok_or(Malformed::Character)?,
        };
        Ok(Self { scheme, authority, path })
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Host and port as they are sent on.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The host in lower case, without a final dot and without port. IPv6 is in brackets.
    pub fn host(&self) -> &str {
        self.authority.host()
    }

    /// The port that stands behind the host.
    pub fn port(&self) -> Option<u16> {
        self.authority.port_u16()
    }

    /// The path, which begins with a slash; or `*`.
    pub fn path(&self) -> &str {
        self.path.path()
    }

    /// The query, without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.path.query()
    }

    /// Path and query.
    pub fn path_and_query(&self) -> &PathAndQuery {
        &self.path
    }

    /// The first value of the parameter `name` of the query, percent-decoded. A plus stands for a space (URL standard,
    /// `application/x-www-form-urlencoded`).
    pub fn parameter(&self, name: &str) -> Option<Cow<'_, str>> {
        let parameters = self.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        parameters.filter(|(key, _)| form_decoded(key) == name).map(|(_, value)| form_decoded(value)).next()
    }

    /// The same with another host, which keeps its own port or none, and another path, which is put into canonical
    /// form as a request's is. `None` if one of them has no legal form.
    pub fn changed(&self, host: Option<&str>, path: Option<&str>) -> Option<Self> {
        let authority = match host {
            Some(host) => {
                let (host, port) = host_and_port(host).ok()?;
                joined_authority(&host, port).ok()?
            }
            None => self.authority.clone(),
        };
        let path = match path {
            Some(path) => {
                // A filter may say what a client may not, so that nothing is refused but what is illegal.
                let rules = PathRules { merge_slashes: false, slash_like: SlashLike::Keep };
                joined(&canonical_path(path, &rules).ok()?, self.query())?
            }
            None => self.path.clone(),
        };
        Some(Self { scheme: self.scheme, authority, path })
    }

    /// The URI with scheme and authority, as HTTP/2 wants it.
    pub fn absolute(&self) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(match self.scheme {
            Scheme::Http => http::uri::Scheme::HTTP,
            Scheme::Https => http::uri::Scheme::HTTPS,
        });
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(self.path.clone());
        Uri::from_parts(parts).unwrap_or_else(|_| self.origin())
    }

    /// The URI of path and query alone, as HTTP/1 wants it beside a `host` header.
    pub fn origin(&self) -> Uri {
        Uri::from(self.path.clone())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

/// Refuses a message whose end two parsers could see at different places.
fn check_framing(version: Version, headers: &HeaderMap) -> Result<(), Malformed> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    if let Some(coding) = coding
        && (version < Version::HTTP_11
            || codings.next().is_some()
            || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Malformed::TransferEncoding);
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(()) };
    let number = length.as_bytes();
    let plain = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
    let small = length.to_str().ok().and_then(|text| text.parse::<u64>().ok()).is_some();
    match plain && small && lengths.next().is_none() && coding.is_none() {
        true => Ok(()),
        false => Err(Malformed::ContentLength),
    }
}

/// Who the request is for: the host of its target, or its `host` header. Where both are there they say the same
/// (RFC 9113 8.3.1; of HTTP/1.1, RFC 9112 3.2.2 would let the target win).
fn authority(head: &Head<'_>, scheme: Scheme) -> Result<Authority, Malformed> {
    let mut headers = head.headers.get_all(header::HOST).iter();
    let header = headers.next();
    if headers.next().is_some() {
        return Err(Malformed::SeveralHosts);
    }
    let header = header.map(|value| value.to_str().map_err(|_| Malformed::Host)).transpose()?;
    let target = head.uri.authority();
    let text = target.map(Authority::as_str).or(header).ok_or(Malformed::NoHost)?;
    if text.is_empty() {
        return Err(Malformed::NoHost);
    }
    let (host, port) = host_and_port(text)?;
    if let (Some(_), Some(header)) = (target, header) {
        let (other, other_port) = host_and_port(header)?;
        let port_of = |port: Option<u16>| port.unwrap_or(scheme.default_port());
        if other != host || port_of(other_port) != port_of(port) {
            return Err(Malformed::HostsDiffer);
        }
    }
    match target {
        Some(target) if port.is_none() && *target.as_str() == *host => Ok(target.clone()),
        Some(_) | None => joined_authority(&host, port),
    }
}

/// A host in canonical form, and its port.
fn host_and_port(text: &str) -> Result<(Cow<'_, str>, Option<u16>), Malformed> {
    if text.len() > MAX_HOST_BYTES {
        return Err(Malformed::Host);
    }
    let (host, port) = match text.rfind([':', ']']) {
        Some(at) if text.as_bytes()[at] == b':' => {
            let port = crate::authority::parse_port(&text[at + 1..]).ok_or(Malformed::Host)?;
            (&text[..at], Some(port))
        }
        Some(_) | None => (text, None),
    };
    if let Some(v6) = host.strip_prefix('[') {
        let v6: Ipv6Addr = v6.strip_suffix(']').and_then(|v6| v6.parse().ok()).ok_or(Malformed::Host)?;
        return match v6.to_ipv4_mapped() {
            Some(_) => Err(Malformed::Host),
            None => Ok((format!("[{v6}]").into(), port)),
        };
    }
    if host.parse::<Ipv4Addr>().is_ok() {
        return Ok((host.into(), port));
    }
    let name = valid_hostname(host).map_err(|_| Malformed::Host)?;
    // A name that ends in a number is another spelling of an address (RFC 1123 2.1, URL standard 3.5).
    let last = name.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.get(..2).is_some_and(|zero_x| zero_x.eq_ignore_ascii_case("0x"));
    let number = hexadecimal || last.bytes().all(|b| b.is_ascii_digit());
    if number || name.starts_with('*') {
        return Err(Malformed::Host);
    }
    match name.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Ok((name.to_ascii_lowercase().into(), port)),
        false => Ok((name.into(), port)),
    }
}

fn joined_authority(host: &str, port: Option<u16>) -> Result<Authority, Malformed> {
    let authority = match port {
        Some(port) => Authority::try_from(format!("{host}:{port}")),
        None => Authority::try_from(host),
    };
    authority.map_err(|_| Malformed::Host)
}

fn joined(path: &str, query: Option<&str>) -> Option<PathAndQuery> {
    match query {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")).ok(),
        None => PathAndQuery::try_from(path).ok(),
    }
}

/// The canonical form of a path: what need not be percent-encoded is not, what must be is, with capital digits
/// (RFC 3986 6.2.2); no dot segments; and slashes as `rules` say. A path that is canonical is given back as it is.
pub(super) fn canonical_path<'a>(path: &'a str, rules: &PathRules) -> Result<Cow<'a, str>, Malformed> {
    if !path.starts_with('/') {
        return Err(Malformed::NotAbsolute);
    }
    if is_canonical(path.as_bytes()) {
        return Ok(path.into());
    }
    let decoded = decoded(path.as_bytes(), rules)?;
    let mut segments: Vec<&str> = Vec::new();
    // What is behind the last slash; a dot segment there leaves nothing, and with it the slash.
    let mut last = "";
    let mut all = decoded[1..].split('/').peekable();
    while let Some(segment) = all.next() {
        let is_last = all.peek().is_none();
        last = if is_last { segment } else { "" };
        match segment {
            "." => last = "",
            ".." => {
                segments.pop();
                last = "";
            }
            _ if segment.starts_with(".;") || segment.starts_with("..;") => return Err(Malformed::DotParameter),
            "" if rules.merge_slashes => {}
            _ if !is_last => segments.push(segment),
            _ => {}
        }
    }
    let mut canonical = String::with_capacity(decoded.len());
    for segment in segments {
        canonical.push('/');
        canonical.push_str(segment);
    }
    canonical.push('/');
    canonical.push_str(last);
    Ok(canonical.into())
}

/// Whether nothing needs to be looked at closely.
fn is_canonical(path: &[u8]) -> bool {
    let plain = |b: u8| is_path_byte(b) && b != b'%';
    path.iter().all(|b| plain(*b)) && !path.windows(2).any(|pair| pair[0] == b'/' && matches!(pair[1], b'/' | b'.'))
}

/// With percent-encoding in canonical form.
fn decoded(path: &[u8], rules: &PathRules) -> Result<String, Malformed> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    // The byte before, if it was one of an encoded sequence of several.
    let mut lead = 0;
    while let Some((first, behind)) = rest.split_first() {
        let (byte, encoded) = match first {
            b'%' => {
                let digits = behind.split_at_checked(2).ok_or(Malformed::Escape)?;
                rest = digits.1;
                let number = |digit: u8| char::from(digit).to_digit(16).ok_or(Malformed::Escape);
                ((number(digits.0[0])? * 16 + number(digits.0[1])?) as u8, true)
            }
            byte => {
                rest = behind;
                (*byte, false)
            }
        };
        if is_overlong(lead, byte) {
            return Err(Malformed::Overlong);
        }
        lead = byte;
        match byte {
            0 => return Err(Malformed::Nul),
            b'/' if !encoded => out.push('/'),
            b'/' | b'\\' => match rules.slash_like {
                SlashLike::Refuse => return Err(Malformed::SlashLike),
                SlashLike::Slash => out.push('/'),
                SlashLike::Keep => push_encoded(&mut out, byte),
            },
            _ if is_unreserved(byte) => out.push(char::from(byte)),
            b'#' if !encoded => return Err(Malformed::Fragment),
            ..=b' ' | 0x7f if !encoded => return Err(Malformed::Character),
            _ if encoded || !is_path_byte(byte) => push_encoded(&mut out, byte),
            _ => out.push(char::from(byte)),
        }
    }
    Ok(out)
}

fn push_encoded(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// Whether a sequence that begins with these bytes spells in more of them what fewer would (RFC 3629 3).
fn is_overlong(first: u8, second: u8) -> bool {
    matches!(second, 0xc0 | 0xc1) || matches!((first, second), (0xe0, 0x80..=0x9f) | (0xf0, 0x80..=0x8f))
}

/// RFC 3986 2.3.
fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

/// What may stand in a path as it is: RFC 3986 3.3, the slash, and the percent sign.
fn is_path_byte(b: u8) -> bool {
    is_unreserved(b)
        || matches!(b, b'/' | b'%' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';')
        || b == b'='
}

/// A name or value of a form. What is no UTF-8 is replaced by U+FFFD, and a percent sign without digits stays.
fn form_decoded(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        let digit = |at: usize| behind.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &behind[2..];
            }
            (b'+', _, _) => bytes.push(b' '),
            (byte, _, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
pub(super) mod tests;
