//! What a server says about one request: lines of `Field=value`.

use std::fmt::{Display, Write as _};
use std::net::IpAddr;

use http::HeaderMap;
use http::header::HOST;
use http::request::Parts;

/// Who answers.
#[derive(Debug, Clone)]
pub struct Place {
    /// The pod's name. The suite recognizes backends by how it begins.
    pub hostname: String,
    /// Its namespace; empty when it does not know.
    pub namespace: String,
    /// Version of the service; may be empty.
    pub version: String,
}

/// How a request came.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The port that it came to.
    pub port: u16,
    /// Who sent it, as far as the connection tells.
    pub client: IpAddr,
    /// The protocol that TLS agreed on; empty without TLS.
    pub alpn: String,
}

/// Lines of an answer. What a request can make up comes last, since the first line with a field's name counts.
#[derive(Debug)]
struct Lines(String);

impl Lines {
    fn of(place: &Place, arrival: &Arrival) -> Self {
        let mut lines = Self(String::new());
        lines.add("Hostname", &place.hostname);
        lines.add("Namespace", &place.namespace);
        lines.add("ServiceVersion", &place.version);
        lines.add("ServicePort", arrival.port);
        lines.add("IP", arrival.client);
        lines.add("Alpn", &arrival.alpn);
        lines
    }

    fn add(&mut self, field: &str, value: impl Display) {
        let _ = writeln!(self.0, "{field}={value}");
    }

    fn headers(&mut self, headers: &HeaderMap) {
        for (name, value) in headers.iter().filter(|(name, _)| *name != HOST) {
            self.add("RequestHeader", format_args!("{name}:{}", String::from_utf8_lossy(value.as_bytes())));
        }
    }
}

/// The answer to a request of HTTP, or to one that becomes a WebSocket.
pub fn http(place: &Place, arrival: &Arrival, head: &Parts) -> String {
    let mut lines = Lines::of(place, arrival);
    lines.add("Method", &head.method);
    lines.add("Proto", format_args!("{:?}", head.version));
    lines.add("Host", host(head));
    lines.add("URL", head.uri.path_and_query().map_or("", |path| path.as_str()));
    lines.headers(&head.headers);
    lines.0
}

/// The answer to a call of gRPC. It has its own status, as the client sees none of HTTP.
pub fn grpc(place: &Place, arrival: &Arrival, head: &Parts, message: &str) -> String {
    let mut lines = Lines::of(place, arrival);
    lines.add("StatusCode", 200);
    lines.add("Proto", "GRPC");
    lines.add("Host", host(head));
    lines.add("RequestHeader", format_args!(":authority:{}", host(head)));
    lines.headers(&head.headers);
    // One line, whatever it has inside.
    lines.add("Echo", message.escape_debug());
    lines.0
}

/// The beginning of the answer on a connection of TCP; what was received follows.
pub fn tcp(place: &Place, arrival: &Arrival) -> String {
    let mut lines = Lines::of(place, arrival);
    lines.add("StatusCode", 200);
    lines.add("Proto", "TCP");
    lines.0
}

/// The host that a request names, with its port if that is there.
fn host(head: &Parts) -> String {
    let named = head.headers.get(HOST).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    head.uri.authority().map(ToString::to_string).or(named).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (Place, Arrival) {
        let place = Place { hostname: "echo-v1-6d-x".into(), namespace: "mesh".into(), version: "v1".into() };
        (place, Arrival { port: 8080, client: [10, 0, 0, 7].into(), alpn: String::new() })
    }

    fn head(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn an_answer_names_who_was_asked_for_what_and_by_whom() {
        let (place, arrival) = place();
        let request = http::Request::post("/a%2Fb?x=1").header("Host", "echo:8080").header("X-One", "1");
        let expected = "Hostname=echo-v1-6d-x\nNamespace=mesh\nServiceVersion=v1\nServicePort=8080\nIP=10.0.0.7\nAlpn=\n\
                        Method=POST\nProto=HTTP/1.1\nHost=echo:8080\nURL=/a%2Fb?x=1\nRequestHeader=x-one:1\n";
        assert_eq!(http(&place, &arrival, &head(request)), expected);
    }

    #[test]
    fn each_value_of_a_header_has_its_own_line() {
        let (place, arrival) = place();
        let request = http::Request::get("/").header("X-Add", "one").header("X-Add", "two");
        let text = http(&place, &arrival, &head(request));
        assert!(text.ends_with("RequestHeader=x-add:one\nRequestHeader=x-add:two\n"), "{text}");
    }

    #[test]
    fn what_a_request_makes_up_comes_after_what_is_so() {
        let (place, arrival) = place();
        let request = http::Request::get("/Hostname=mine").header("Host", "Hostname=mine").header("x", "Hostname=mine");
        let text = http(&place, &arrival, &head(request));
        assert!(text.starts_with("Hostname=echo-v1-6d-x\n"), "{text}");
        let text = grpc(&place, &arrival, &head(http::Request::post("http://echo:7070/")), "one\n\nHostname=mine");
        assert!(text.contains("Host=echo:7070\n") && text.ends_with("Echo=one\\n\\nHostname=mine\n"), "{text}");
    }
}
