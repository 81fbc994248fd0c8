//! What people say about the parts of a waypoint, laid over what is made.

use serde_json::{Map, Value};

/// Fields by which elements of a list are the same, best first.
const KEYS: [&str; 3] = ["name", "mountPath", "topologyKey"];

/// Deepest nesting of an overlay.
const MAX_DEPTH: usize = 64;

/// Why an overlay cannot be laid over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum OverlayError {
    #[error(
        "key {0:?} is none of deployment, horizontalPodAutoscaler, podDisruptionBudget, service and serviceAccount"
    )]
    Unknown(String),
    #[error("key {key}: {why}")]
    Broken { key: &'static str, why: String },
    #[error("key {key}: is nested deeper than {MAX_DEPTH} levels")]
    Deep { key: &'static str },
    #[error("key {key}: the name, the namespace, the owner and the selector of a part cannot be changed")]
    Fixed { key: &'static str },
}

/// Lays the YAML `text` over an object: maps are merged, lists too where their elements have names, `null` takes away,
/// and everything else takes the place of what was there.
pub(super) fn apply(key: &'static str, object: Value, text: Option<&str>) -> Result<Value, OverlayError> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Ok(object) };
    let overlay = loam_manifest::value(text).map_err(|why| OverlayError::Broken { key, why })?;
    if !matches!(overlay, Value::Object(_)) {
        return Err(OverlayError::Broken { key, why: "is no map of fields".to_owned() });
    }
    let fixed = [
        "/metadata/name",
        "/metadata/namespace",
        "/metadata/ownerReferences",
        "/spec/selector",
        "/kind",
        "/apiVersion",
    ];
    let mut merged = object.clone();
    merge(&mut merged, overlay, MAX_DEPTH).ok_or(OverlayError::Deep { key })?;
    match fixed.iter().all(|path| merged.pointer(path) == object.pointer(path)) {
        true => Ok(merged),
        false => Err(OverlayError::Fixed { key }),
    }
}

fn merge(base: &mut Value, overlay: Value, depth: usize) -> Option<()> {
    let deeper = depth.checked_sub(1)?;
    match (base, overlay) {
        (Value::Object(base), Value::Object(overlay)) => {
            for (field, value) in overlay {
                merge_field(base, field, value, deeper)?;
            }
        }
        (Value::Array(base), Value::Array(overlay)) => match key_of(base, &overlay) {
            Some(key) => {
                for element in overlay {
                    let same = base.iter_mut().find(|known| known.get(key) == element.get(key));
                    match same {
                        Some(known) => merge(known, element, deeper)?,
                        None => base.push(element),
                    }
                }
            }
            None => *base = overlay,
        },
        (base, overlay) => *base = overlay,
    }
    Some(())
}

fn merge_field(base: &mut Map<String, Value>, field: String, value: Value, depth: usize) -> Option<()> {
    match (base.get_mut(&field), value) {
        (_, Value::Null) => drop(base.remove(&field)),
        (Some(known), value) => merge(known, value, depth)?,
        (None, value) => drop(base.insert(field, value)),
    }
    Some(())
}

/// The field that all elements of both lists have.
fn key_of(base: &[Value], overlay: &[Value]) -> Option<&'static str> {
    let all = || base.iter().chain(overlay);
    KEYS.into_iter().find(|key| all().next().is_some() && all().all(|element| element.get(key).is_some()))
}
