//! Edits of headers.

use http::HeaderMap;

use super::HeaderEdits;
use crate::http::headers::is_editable;

impl HeaderEdits {
    /// Makes the edits, save those of headers that are not the user's to edit.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in self.remove.iter().filter(|name| is_editable(name)) {
            headers.remove(name);
        }
        for (name, value) in self.set.iter().filter(|(name, _)| is_editable(name)) {
            headers.insert(name, value.clone());
        }
        for (name, value) in self.add.iter().filter(|(name, _)| is_editable(name)) {
            headers.append(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn lines(text: &str) -> Vec<(HeaderName, HeaderValue)> {
        let line = |line: &str| {
            let (name, value) = line.split_once('=').unwrap();
            (name.parse().unwrap(), value.parse().unwrap())
        };
        text.split_whitespace().map(line).collect()
    }

    fn map(text: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        lines(text).into_iter().for_each(|(name, value)| {
            map.append(name, value);
        });
        map
    }

    #[test]
    fn headers_are_set_added_and_removed_whatever_their_case() {
        for (set, add, remove, before, after) in [
            ("X-A=1", "", "", "", "x-a=1"),
            ("X-A=1", "", "", "x-a=0 x-a=2 x-b=3", "x-a=1 x-b=3"),
            ("", "X-A=1", "", "", "x-a=1"),
            ("", "X-A=1", "", "x-a=0", "x-a=0 x-a=1"),
            ("", "", "X-A", "x-a=0 x-a=2 x-b=3", "x-b=3"),
            ("x-a=1", "x-b=2", "x-c", "x-a=9 x-b=9 x-c=9 x-d=9", "x-a=1 x-b=9 x-b=2 x-d=9"),
        ] {
            let remove = remove.split_whitespace().map(|name| name.parse().unwrap()).collect();
            let mut headers = map(before);
            HeaderEdits { set: lines(set), add: lines(add), remove }.apply(&mut headers);
            assert_eq!(headers, map(after), "{set} {add} of {before}");
        }
    }

    #[test]
    fn headers_between_neighbours_are_nobodys_to_edit() {
        let before = "host=a content-length=3 te=trailers x-forwarded-client-cert=x";
        let mut headers = map(before);
        let names = ["host", "content-length", "te", "x-forwarded-client-cert"];
        HeaderEdits {
            set: lines("host=b transfer-encoding=chunked x-envoy-retry-on=5xx"),
            add: lines("connection=close upgrade=h2c"),
            remove: names.iter().map(|name| name.parse().unwrap()).collect(),
        }
        .apply(&mut headers);
        assert_eq!(headers, map(before));
    }
}
