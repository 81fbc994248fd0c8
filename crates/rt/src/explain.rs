//! Errors in words.

use std::error::Error;

/// An error and what lies beneath it, in one line. A cause that the text has already is not said twice.
pub fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn causes_follow_each_other_and_none_is_said_twice() {
        let beneath = Layer("dial a: refused", Some(Box::new(Layer("refused", None))));
        let error = Layer("fetch", Some(Box::new(beneath)));
        assert_eq!(explain(&error), "fetch: dial a: refused");
    }
}
