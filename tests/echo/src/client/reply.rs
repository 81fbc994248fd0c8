//! What came back for one request, as lines.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::target::Target;

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    /// The status; none where only the body tells one.
    pub(super) status: Option<StatusCode>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Reply {
    /// Its lines, none of which is empty: an empty one ends the answer.
    pub(super) fn lines(&self, index: u32, url: &Target) -> String {
        let mut text = format!("[{index}] Url={url}\n");
        if let Some(status) = self.status {
            let _ = writeln!(text, "[{index}] StatusCode={}", status.as_u16());
        }
        for (name, value) in &self.headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            let _ = writeln!(text, "[{index}] ResponseHeader={name}:{value}");
        }
        for line in String::from_utf8_lossy(&self.body).lines().filter(|line| !line.is_empty()) {
            let _ = writeln!(text, "[{index} body] {line}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::LOCATION;

    use super::*;

    #[test]
    fn an_answer_has_no_empty_line_inside() {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_static("http://example.org/"));
        let body = Bytes::from_static(b"one=1\n\ntwo=2\r\n\r\n");
        let reply = Reply { status: Some(StatusCode::FOUND), headers, body };
        let expected = "[3] Url=http://echo/x\n[3] StatusCode=302\n[3] ResponseHeader=location:http://example.org/\n\
                        [3 body] one=1\n[3 body] two=2\n";
        assert_eq!(reply.lines(3, &"http://echo/x".parse().unwrap()), expected);
    }
}
