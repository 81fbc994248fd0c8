//! What a CONNECT says: its authority, the headers that go with it, and who sent it.

use std::str::FromStr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};
use loam_core::addr::DownstreamAddr;
use loam_core::authority::Authority;
use loam_core::headers::MAX_HEADER_BYTES;
use loam_core::ids::Identity;
use loam_core::reason::Reason;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The headers of a CONNECT. They describe the connection for telemetry; nothing may be decided by them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectHeaders {
    /// Labels of the source workload (W3C baggage).
    pub baggage: Option<String>,
    /// The original client (RFC 7239).
    pub forwarded: Option<String>,
    /// The trace this connection belongs to (W3C trace context).
    pub traceparent: Option<String>,
}

impl ConnectHeaders {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        Self {
            baggage: text(headers, &BAGGAGE),
            forwarded: text(headers, &FORWARDED),
            traceparent: text(headers, &TRACEPARENT),
        }
    }

    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        for (name, value) in [(BAGGAGE, &self.baggage), (FORWARDED, &self.forwarded), (TRACEPARENT, &self.traceparent)]
        {
            if let Some(value) = value.as_deref().and_then(header_value) {
                headers.insert(name, value);
            }
        }
    }
}

/// The first value of a header if it is text of bearable length.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    if value.len() > MAX_HEADER_BYTES {
        return None;
    }
    value.to_str().ok().map(str::to_owned)
}

fn header_value(text: &str) -> Option<HeaderValue> {
    if text.len() > MAX_HEADER_BYTES {
        return None;
    }
    HeaderValue::from_str(text).ok()
}

/// Reads the labels of the answering workload.
pub(crate) fn response_baggage(headers: &HeaderMap) -> Option<String> {
    text(headers, &BAGGAGE)
}

/// A CONNECT as an accepted tunnel brought it.
#[derive(Debug, Clone)]
pub struct Request {
    /// What the tunnel asks for.
    pub authority: Authority,
    /// How it describes itself.
    pub headers: ConnectHeaders,
    /// Who asks, as proven by the certificate.
    pub peer: Identity,
    /// Where the tunnel comes from.
    pub peer_addr: DownstreamAddr,
}

/// A request that is not a plain CONNECT to a readable authority; answered with 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Only CONNECT makes a tunnel.
    #[error("the method is {0} instead of CONNECT")]
    Method(Method),
    /// RFC 9113 8.5: CONNECT has neither `:scheme` nor `:path`.
    #[error("CONNECT with a scheme, a path or a protocol")]
    NotPlain,
    /// The authority names no `ip:port` and no `host:port`.
    #[error("the authority cannot be read: {0}")]
    Authority(String),
}

impl Malformed {
    /// The reason for logs and metrics.
    pub fn reason(&self) -> Reason {
        Reason::MalformedRequest
    }
}

/// Reads the authority of a plain CONNECT.
pub(crate) fn read_connect<B>(request: &http::Request<B>) -> Result<Authority, Malformed> {
    if request.method() != Method::CONNECT {
        return Err(Malformed::Method(request.method().clone()));
    }
    let uri = request.uri();
    let extended = request.extensions().get::<h2::ext::Protocol>().is_some();
    // The http crate shows an absent path of a CONNECT as the empty one.
    if extended || uri.scheme().is_some() || uri.path_and_query().is_some_and(|path| !path.as_str().is_empty()) {
        return Err(Malformed::NotPlain);
    }
    let text = uri.authority().map_or("", |a| a.as_str());
    Authority::from_str(text).map_err(|error| Malformed::Authority(error.to_string()))
}

/// Writes the CONNECT that asks for `authority`.
pub(crate) fn write_connect(authority: &Authority, headers: &ConnectHeaders) -> Result<http::Request<()>, http::Error> {
    let uri = Uri::from_maybe_shared(authority.to_string())?;
    let mut request = http::Request::builder().version(Version::HTTP_2).method(Method::CONNECT).uri(uri).body(())?;
    headers.write(request.headers_mut());
    Ok(request)
}

/// The 200 with the labels of the answering workload.
pub(crate) fn accepted(baggage: Option<&str>) -> http::Response<()> {
    let mut response = http::Response::new(());
    if let Some(value) = baggage.and_then(header_value) {
        response.headers_mut().insert(BAGGAGE, value);
    }
    response
}

/// The answer to a CONNECT that is refused for `reason`.
pub(crate) fn refused(reason: Reason) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = status_of(reason);
    response
}

/// HBONE knows three refusals: 400 for a request that makes no sense here, 401 for policy, 503 for the rest. A fourth
/// one, which others take like any other, says that this is not the way (RFC 9110 15.5.20): a waypoint is.
fn status_of(reason: Reason) -> StatusCode {
    match reason {
        Reason::MalformedRequest | Reason::AuthorityMismatch => StatusCode::BAD_REQUEST,
        Reason::Denied | Reason::PolicyPending => StatusCode::UNAUTHORIZED,
        Reason::WaypointRequired => StatusCode::MISDIRECTED_REQUEST,
        Reason::WorkloadUnknown
        | Reason::NotRegistered
        | Reason::NoHealthyUpstream
        | Reason::NameUnresolved
        | Reason::PortUnknown
        | Reason::WaypointMissing
        | Reason::WaypointNotReady
        | Reason::Loop
        | Reason::NetworkUnreachable
        | Reason::CertificateUnavailable
        | Reason::TlsFailure
        | Reason::TunnelFailure
        | Reason::PeerRefused
        | Reason::ConnectRefused
        | Reason::ConnectTimeout
        | Reason::ConnectFailed
        | Reason::Overload
        | Reason::Drained
        | Reason::WorkloadGone
        | Reason::Reset
        | Reason::Internal => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_is_read_back_as_it_was_written() {
        let headers = ConnectHeaders {
            baggage: Some("k8s.namespace.name=shop".into()),
            forwarded: Some("for=\"10.0.0.1:4000\"".into()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".into()),
        };
        for text in ["10.0.0.7:8080", "[2001:db8::7]:8080", "web.shop.svc.cluster.local:80"] {
            let request = write_connect(&text.parse().unwrap(), &headers).unwrap();
            assert_eq!(read_connect(&request).unwrap().to_string(), text);
            assert_eq!(ConnectHeaders::read(request.headers()), headers);
        }
    }

    #[test]
    fn only_a_plain_connect_is_one() {
        let request = |method: Method, uri: &str| http::Request::builder().method(method).uri(uri).body(()).unwrap();
        assert_eq!(read_connect(&request(Method::GET, "http://a:80/")), Err(Malformed::Method(Method::GET)));
        assert_eq!(read_connect(&request(Method::CONNECT, "http://a:80/")), Err(Malformed::NotPlain));
        let mut extended = request(Method::CONNECT, "a:80");
        extended.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        assert_eq!(read_connect(&extended), Err(Malformed::NotPlain));
    }

    #[test]
    fn a_header_that_is_too_long_or_no_text_is_ignored() {
        let mut headers = HeaderMap::new();
        headers.insert(BAGGAGE, HeaderValue::from_str(&"a".repeat(MAX_HEADER_BYTES + 1)).unwrap());
        headers.insert(FORWARDED, HeaderValue::from_bytes(b"for=\xff").unwrap());
        assert_eq!(ConnectHeaders::read(&headers), ConnectHeaders::default());
    }

    #[test]
    fn a_refusal_tells_policy_from_a_wrong_way_and_both_from_trouble() {
        for (reason, status) in [
            (Reason::AuthorityMismatch, 400),
            (Reason::Denied, 401),
            (Reason::PolicyPending, 401),
            (Reason::WaypointRequired, 421),
            (Reason::ConnectRefused, 503),
        ] {
            assert_eq!(refused(reason).status(), status, "{}", reason.as_str());
        }
    }

    #[test]
    fn a_header_that_cannot_be_written_is_left_out() {
        let mut map = HeaderMap::new();
        let headers = ConnectHeaders { baggage: Some("a=b\r\nx: y".into()), ..Default::default() };
        headers.write(&mut map);
        assert!(map.is_empty());
    }
}
