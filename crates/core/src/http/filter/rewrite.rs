//! Other paths and hosts for a request that is sent on.

use super::{PathEdit, Rewrite};
use crate::http::table::Prefix;
use crate::http::target::Target;

impl Rewrite {
    /// The target after the rewrite. `None` if it has no legal form, or a prefix is to be replaced that was not
    /// matched.
    pub fn apply(&self, target: &Target, matched: Option<&Prefix>) -> Option<Target> {
        let path = self.path.as_ref().map(|edit| edit.apply(target.path(), matched).ok_or(())).transpose().ok()?;
        target.changed(self.host.as_deref(), path.as_deref())
    }
}

impl PathEdit {
    /// The path after the edit. `None` if a prefix is to be replaced that was not matched.
    pub(super) fn apply(&self, path: &str, matched: Option<&Prefix>) -> Option<String> {
        match (self, matched) {
            (PathEdit::Full(full), _) => Some(rooted(full)),
            (PathEdit::Prefix(replacement), Some(Prefix::Segments(prefix))) => {
                // Gateway API, `HTTPPathModifier`: final slashes of both mean nothing, so that none is doubled.
                let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
                Some(rooted(&format!("{}{rest}", replacement.trim_end_matches('/'))))
            }
            (PathEdit::Prefix(replacement), Some(Prefix::Text(prefix))) => {
                Some(rooted(&format!("{replacement}{}", path.strip_prefix(&**prefix)?)))
            }
            (PathEdit::Prefix(_), None) => None,
        }
    }
}

fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_as_the_table_of_the_gateway_api_says() {
        for (path, prefix, replacement, outcome) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo/bar", "/", "/xyz", "/xyz/foo/bar"),
            ("/foo/bar", "/foo/bar", "/", "/"),
            ("/foo/bar", "/foo", "xyz", "/xyz/bar"),
        ] {
            let edit = PathEdit::Prefix(replacement.into());
            let outcome = Some(outcome.to_owned());
            assert_eq!(
                edit.apply(path, Some(&Prefix::Segments(prefix.into()))),
                outcome,
                "{path} {prefix} {replacement}"
            );
        }
    }

    #[test]
    fn a_text_is_replaced_letter_by_letter_and_a_full_path_whatever_was_matched() {
        let text = |path: &str, prefix: &str, replacement: &str| {
            PathEdit::Prefix(replacement.into()).apply(path, Some(&Prefix::Text(prefix.into()))).unwrap()
        };
        assert_eq!(text("/foobar", "/foo", "/x"), "/xbar");
        assert_eq!(text("/foo/bar", "/foo/", "/"), "/bar");
        assert_eq!(PathEdit::Full("/x".into()).apply("/a", None).as_deref(), Some("/x"));
        assert_eq!(PathEdit::Prefix("/x".into()).apply("/a", None), None);
    }
}
