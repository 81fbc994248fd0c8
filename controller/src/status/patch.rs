//! From what is wished to what is written: conditions and parents merged into what others wrote. Pure; `None` is that
//! nothing is to be written.

use std::collections::BTreeSet;

use loam_manifest::gateway::ParentRef;
use serde_json::{Map, Value, json};

use super::{Ancestor, Condition};
use crate::resource::gateway::CONTROLLER;

/// Longest message of a condition, as the API has it.
const MAX_MESSAGE_CHARS: usize = 32_768;
/// Most conditions of one list, most parents and most ancestors, as the API has it.
const MAX_CONDITIONS: usize = 8;
const MAX_PARENTS: usize = 32;
const MAX_ANCESTORS: usize = 16;

/// Conditions with `wished` among them. Those of `ours` that are not wished go; others stay. The time is that of the
/// last turn, and `now` for one that turns.
pub fn conditions(
    current: Option<&Value>,
    wished: &[Condition],
    ours: &[&str],
    generation: Option<i64>,
    now: &str,
) -> Vec<Value> {
    let current: &[Value] = current.and_then(Value::as_array).map_or(&[], Vec::as_slice);
    let kind = |value: &Value| value.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut merged: Vec<Value> = Vec::new();
    let mut seen = BTreeSet::new();
    for value in current {
        let kind = kind(value);
        match wished.iter().find(|condition| condition.kind == kind) {
            Some(condition) if seen.insert(kind.clone()) => {
                merged.push(condition_value(condition, Some(value), generation, now))
            }
            // There twice.
            Some(_) => {}
            None if ours.contains(&kind.as_str()) => {}
            None => merged.push(value.clone()),
        }
    }
    let fresh = wished.iter().filter(|condition| !seen.contains(condition.kind));
    merged.extend(fresh.map(|condition| condition_value(condition, None, generation, now)));
    merged.truncate(MAX_CONDITIONS);
    merged
}

fn condition_value(condition: &Condition, old: Option<&Value>, generation: Option<i64>, now: &str) -> Value {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let status = if condition.holds { "True" } else { "False" };
    let turned = old.filter(|old| text(old, "status") == status).map(|old| text(old, "lastTransitionTime"));
    let message: String = condition.message.chars().take(MAX_MESSAGE_CHARS).collect();
    let mut value = json!({
        "type": condition.kind,
        "status": status,
        "reason": condition.reason.to_string(),
        "message": message,
        "lastTransitionTime": turned.filter(|time| !time.is_empty()).unwrap_or_else(|| now.to_owned()),
    });
    if let Some(generation) = generation {
        value["observedGeneration"] = json!(generation);
    }
    value
}

/// What our types of conditions are on a parent.
const OF_PARENT: [&str; 4] = ["Accepted", "ResolvedRefs", "PartiallyInvalid", "ResolvedWaypoints"];

/// The parents of a route's status with ours among them: those of other controllers stay as they are.
pub fn parents(
    current: Option<&Value>,
    wished: &[(ParentRef, Vec<Condition>)],
    generation: Option<i64>,
    now: &str,
) -> Vec<Value> {
    let current: &[Value] = current.and_then(Value::as_array).map_or(&[], Vec::as_slice);
    let (ours, others): (Vec<&Value>, Vec<&Value>) = current.iter().partition(|entry| is_ours(entry));
    let mut merged: Vec<Value> = others.into_iter().cloned().collect();
    for (reference, conditions_wished) in wished {
        let reference = reference_value(reference);
        let old = ours.iter().find(|entry| entry.get("parentRef") == Some(&reference));
        let old = old.and_then(|entry| entry.get("conditions"));
        merged.push(json!({
            "parentRef": reference,
            "controllerName": CONTROLLER,
            "conditions": conditions(old, conditions_wished, &OF_PARENT, generation, now),
        }));
    }
    merged.truncate(MAX_PARENTS);
    merged
}

/// The ancestors of a policy's status with ours among them.
pub fn ancestors(current: Option<&Value>, wished: &[Ancestor], generation: Option<i64>, now: &str) -> Vec<Value> {
    let current: &[Value] = current.and_then(Value::as_array).map_or(&[], Vec::as_slice);
    let (ours, others): (Vec<&Value>, Vec<&Value>) = current.iter().partition(|entry| is_ours(entry));
    let mut merged: Vec<Value> = others.into_iter().cloned().collect();
    for ancestor in wished {
        let reference = json!({
            "group": "gateway.networking.k8s.io",
            "kind": "Gateway",
            "namespace": &*ancestor.gateway.namespace,
            "name": &*ancestor.gateway.name,
        });
        let old = ours.iter().find(|entry| entry.get("ancestorRef") == Some(&reference));
        let old = old.and_then(|entry| entry.get("conditions"));
        merged.push(json!({
            "ancestorRef": reference,
            "controllerName": CONTROLLER,
            "conditions": conditions(old, &ancestor.conditions, &OF_PARENT, generation, now),
        }));
    }
    merged.truncate(MAX_ANCESTORS);
    merged
}

fn is_ours(entry: &Value) -> bool {
    entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER)
}

/// A reference as the route has it, field by field: what is not said there is not said here.
fn reference_value(reference: &ParentRef) -> Value {
    let mut value = Map::new();
    let mut text = |field: &str, text: &Option<String>| {
        if let Some(text) = text {
            value.insert(field.to_owned(), json!(text));
        }
    };
    text("group", &reference.group);
    text("kind", &reference.kind);
    text("namespace", &reference.namespace);
    text("sectionName", &reference.section_name);
    value.insert("name".to_owned(), json!(reference.name));
    if let Some(port) = reference.port {
        value.insert("port".to_owned(), json!(port));
    }
    Value::Object(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Reason;

    const NOW: &str = "2026-01-02T03:04:05Z";
    const THEN: &str = "2025-01-01T00:00:00Z";

    fn accepted(holds: bool) -> Condition {
        Condition { kind: "Accepted", holds, reason: Reason::Accepted, message: "m".into() }
    }

    fn value(kind: &str, status: &str, generation: i64) -> Value {
        json!({"type": kind, "status": status, "reason": "Accepted", "message": "m", "lastTransitionTime": THEN,
               "observedGeneration": generation})
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let current = json!([value("Accepted", "True", 1), value("Theirs", "False", 1)]);
        let merged = |wished| conditions(Some(&current), &[wished], &OF_PARENT, Some(2), NOW);
        assert_eq!(merged(accepted(true)), [value("Accepted", "True", 2), value("Theirs", "False", 1)]);
        let turned = merged(accepted(false));
        assert_eq!((&turned[0]["lastTransitionTime"], &turned[0]["status"]), (&json!(NOW), &json!("False")));
    }

    #[test]
    fn what_is_no_longer_wished_goes_and_what_is_there_twice_is_there_once() {
        let current =
            json!([value("PartiallyInvalid", "True", 1), value("Accepted", "True", 1), value("Accepted", "False", 1)]);
        let merged = conditions(Some(&current), &[accepted(true)], &OF_PARENT, Some(1), NOW);
        assert_eq!(merged, [value("Accepted", "True", 1)]);
    }

    #[test]
    fn parents_of_other_controllers_stay_as_they_are() {
        let theirs = json!({"parentRef": {"name": "g"}, "controllerName": "example.org/other", "conditions": [1]});
        let gone = json!({"parentRef": {"name": "old"}, "controllerName": CONTROLLER, "conditions": []});
        let ours = json!({"parentRef": {"group": "", "kind": "Service", "name": "web", "port": 80},
                          "controllerName": CONTROLLER, "conditions": [value("Accepted", "True", 1)]});
        let current = json!([gone, theirs, ours]);
        let reference = ParentRef {
            group: Some(String::new()),
            kind: Some("Service".into()),
            name: "web".into(),
            port: Some(80),
            ..ParentRef::default()
        };
        let wished = [(reference, vec![accepted(true)])];
        assert_eq!(parents(Some(&current), &wished, Some(1), NOW), [theirs.clone(), ours]);
        assert_eq!(parents(Some(&current), &[], Some(1), NOW), [theirs]);
    }
}
