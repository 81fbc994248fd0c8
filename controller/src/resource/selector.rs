//! A selector of workloads, as policies write it.

use loam_manifest::Value;

use super::Labels;
use crate::policy::pattern;
use crate::policy::reader::{At, Flaws};

/// The labels below `field` of a selector: none for a selector that is empty, `None` for one with flaws.
pub fn read(selector: &At<'_>, field: &'static str, flaws: &mut Flaws) -> Option<Labels> {
    let before = flaws.count();
    let mut fields = selector.fields(flaws);
    let mut labels = std::collections::BTreeMap::new();
    if let Some(at) = fields.take(field) {
        if let Value::Map(pairs) = &at.value.value {
            for (key, value) in pairs {
                let value = At { value, path: format!("{}.{key:.64}", at.path) };
                if let Some(text) = value.parse(flaws, |text| pattern::label(key, text).map(|()| text)) {
                    labels.insert(key.clone(), text.to_owned());
                }
            }
        } else {
            at.flaw(flaws, format_args!("is {}, and should be a map of labels", at.value.value.word()));
        }
    }
    fields.finish(flaws);
    (flaws.count() == before).then(|| labels.into())
}
