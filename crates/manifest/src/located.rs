//! A value of a manifest as it was written, each part with its line: for kinds of which every field counts, so that
//! whoever reads them can say what is wrong and where.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Located {
    /// Line of the file, counted from 1; 0 where it is not known, as in JSON.
    pub line: u32,
    /// What it is.
    pub value: Value,
}

/// What may be written in a manifest.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// Nothing.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as text.
    Number(String),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Located>),
    /// Fields in their order.
    Map(Vec<(String, Located)>),
}

impl Located {
    /// Turns lines of a document into lines of its file, of which the document begins on line `first`.
    pub(crate) fn shift(&mut self, first: u32) {
        if self.line > 0 {
            self.line = self.line.saturating_add(first.saturating_sub(1));
        }
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(first)),
            Value::Map(fields) => fields.iter_mut().for_each(|(_, value)| value.shift(first)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
        }
    }
}

impl Value {
    /// The kind of value in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false without quotes",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: u32::try_from(spanned.referenced.line()).unwrap_or(0), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AsWritten)
    }
}

struct AsWritten;

impl<'de> Visitor<'de> for AsWritten {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map: Vec<(String, Located)> = Vec::new();
        while let Some(name) = fields.next_key::<String>()? {
            if map.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom(format_args!("field {name:?} is there twice")));
            }
            map.push((name, fields.next_value()?));
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use crate::istio::{Custom, Place};
    use crate::{Object, read};

    use super::*;

    fn policy(file: &str, text: &str) -> Custom<Located> {
        let mut state = read([(file, text.as_bytes())]);
        assert!(state.problems.is_empty(), "{:?}", state.problems);
        let Some(Object::AuthorizationPolicy(policy)) = state.objects.pop() else { panic!("not a policy") };
        *policy
    }

    /// `path line value` of every scalar.
    fn lines(path: &str, node: &Located, out: &mut Vec<String>) {
        let below = |name: &dyn fmt::Display| format!("{path}.{name}").trim_start_matches('.').to_owned();
        match &node.value {
            Value::List(items) => items.iter().enumerate().for_each(|(i, item)| lines(&below(&i), item, out)),
            Value::Map(fields) => fields.iter().for_each(|(name, value)| lines(&below(name), value, out)),
            Value::Null => out.push(format!("{path} {} -", node.line)),
            Value::Bool(b) => out.push(format!("{path} {} {b}", node.line)),
            Value::Number(text) | Value::Text(text) => out.push(format!("{path} {} {text}", node.line)),
        }
    }

    #[test]
    fn every_part_knows_its_line_in_the_file() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n# who may\n\
                    apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
                    spec:\n  action: DENY\n  rules:\n  - from:\n    - source:\n        principals:\n        - \"a\"\n\
                    \x20       - b\n    to: [{operation: {ports: [\"80\", 81]}}]\n    when:\n";
        let policy = policy("policies.yaml", text);
        assert_eq!(policy.place, Place { file: "policies.yaml".into(), line: 6 });
        let mut found = Vec::new();
        lines("", &policy.spec, &mut found);
        let expected = [
            "action 10 DENY",
            "rules.0.from.0.source.principals.0 15 a",
            "rules.0.from.0.source.principals.1 16 b",
            "rules.0.to.0.operation.ports.0 17 80",
            "rules.0.to.0.operation.ports.1 17 81",
        ];
        assert_eq!(found[..5], expected);
        assert!(found[5].starts_with("rules.0.when 18 -"), "{found:?}");
    }

    #[test]
    fn json_and_lists_are_read_without_lines() {
        let object = r#"{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":"p"},
            "spec":{"action":"DENY","rules":[{}]}}"#;
        let json = policy("a.json", object);
        let list = policy("a.yaml", &format!("apiVersion: v1\nkind: List\nitems:\n- {object}"));
        assert_eq!(json.spec, list.spec);
        assert_eq!((json.spec.line, json.place.line, list.place.line), (0, 1, 4));
    }

    #[test]
    fn a_policy_that_only_moved_is_told_again_with_its_line() {
        let mut tree = crate::tree::Tree::default();
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {}\n";
        let moved = format!("# a comment\n\n{text}");
        for (text, line) in [(text, 1), (&moved, 3)] {
            let outcome = tree.update(vec![("a.yaml".into(), crate::tree::Content::Bytes(text.as_bytes()))]);
            let [crate::Change::Applied(Object::AuthorizationPolicy(policy))] = &outcome.changes[..] else {
                panic!("{:?}", outcome.changes)
            };
            assert_eq!(policy.place.line, line);
        }
    }
}
