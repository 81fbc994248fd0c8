//! The node's network configuration with our plugin at the end of it: which file that is, and what is to be changed.

use std::collections::BTreeMap;

use loam_cni::NAME;
use serde_json::{Map, Value, json};

/// What is appended to the name of a configuration of one plugin while its list stands in for it.
pub const SAVED: &str = ".loam-saved";

/// Marks a list that we made out of a configuration of one plugin.
const MADE_FROM: &str = "loamMadeFrom";

/// The version that a list gets whose only plugin named none.
const OLDEST_VERSION: &str = "0.3.1";

/// The files of the directory that a runtime looks at, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A change to the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Give this file this content.
    Write(String, Vec<u8>),
    /// Give the file with the first name the second one.
    Rename(String, String),
    /// Take this file away.
    Remove(String),
}

/// Why there is no chain to join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Nobody has set up the pods' network yet.
    #[error(
        "no network configuration is there yet (*.conflist, *.conf): the node's CNI writes one when it is installed"
    )]
    None,
    /// Runtimes would not take it either.
    #[error("{0} is no network configuration: {1}; mend it or take it away, since it is the one that counts")]
    Unreadable(String, String),
}

/// Whether a runtime takes a file with this name for a network configuration.
pub fn is_configuration(name: &str) -> bool {
    [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end))
}

/// What makes `entry` the last plugin of the configuration that runtimes use, which is the one whose name comes first.
/// Nothing if it is.
pub fn join(files: &Files, entry: &Value) -> Result<Vec<Edit>, ChainError> {
    let (name, content) = files.iter().find(|(name, _)| is_configuration(name)).ok_or(ChainError::None)?;
    let unreadable = |why: &str| ChainError::Unreadable(name.clone(), why.to_owned());
    let mut list = object(content).map_err(|why| unreadable(&why))?;
    if let Some(plugins) = list.get_mut("plugins") {
        let plugins = plugins.as_array_mut().ok_or_else(|| unreadable("plugins is no list"))?;
        if plugins.iter().all(is_ours) {
            return Err(unreadable("it has no plugin that gives pods their network"));
        }
        if plugins.iter().filter(|plugin| is_ours(plugin)).count() == 1 && plugins.last() == Some(entry) {
            return Ok(Vec::new());
        }
        plugins.retain(|plugin| !is_ours(plugin));
        plugins.push(entry.clone());
        return Ok(vec![Edit::Write(name.clone(), text(&list))]);
    }
    if !list.contains_key("type") {
        return Err(unreadable("it has neither plugins nor a type"));
    }
    let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
    let made = json!({
        "cniVersion": list.get("cniVersion").cloned().unwrap_or_else(|| OLDEST_VERSION.into()),
        "name": list.get("name").cloned().unwrap_or_else(|| stem.into()),
        MADE_FROM: name,
        "plugins": [list, entry],
    });
    let made = made.as_object().cloned().unwrap_or_default();
    // The list first: between the two steps the former configuration still comes first.
    Ok(vec![Edit::Write(format!("{stem}.conflist"), text(&made)), Edit::Rename(name.clone(), format!("{name}{SAVED}"))])
}

/// What takes our plugin out of every configuration and puts back those that a list stands in for.
pub fn leave(files: &Files) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (name, content) in files.iter().filter(|(name, _)| is_configuration(name)) {
        // What cannot be read does not have us.
        let Ok(mut list) = object(content) else { continue };
        let former = list.get(MADE_FROM).and_then(Value::as_str).map(str::to_owned);
        if let Some(former) = former.filter(|former| files.contains_key(&format!("{former}{SAVED}"))) {
            match files.contains_key(&former) {
                // Its owner wrote it again meanwhile.
                true => edits.push(Edit::Remove(format!("{former}{SAVED}"))),
                false => edits.push(Edit::Rename(format!("{former}{SAVED}"), former)),
            }
            edits.push(Edit::Remove(name.clone()));
            continue;
        }
        let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else { continue };
        if plugins.iter().any(is_ours) {
            plugins.retain(|plugin| !is_ours(plugin));
            edits.push(Edit::Write(name.clone(), text(&list)));
        }
    }
    edits
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == NAME
}

fn object(content: &[u8]) -> Result<Map<String, Value>, String> {
    serde_json::from_slice(content).map_err(|error| error.to_string())
}

fn text(list: &Map<String, Value>) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(list).unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Value {
        json!({"type": "loam-cni", "socket": "/run/loam/cni.sock"})
    }

    fn files(all: &[(&str, &str)]) -> Files {
        all.iter().map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec())).collect()
    }

    /// The directory after the edits.
    fn edited(mut files: Files, edits: Vec<Edit>) -> Files {
        for edit in edits {
            match edit {
                Edit::Write(name, content) => drop(files.insert(name, content)),
                Edit::Rename(from, to) => {
                    let content = files.remove(&from).expect("what is renamed is there");
                    files.insert(to, content);
                }
                Edit::Remove(name) => drop(files.remove(&name).expect("what is removed is there")),
            }
        }
        files
    }

    /// The types of the plugins that a runtime would call.
    fn called(files: &Files) -> Vec<String> {
        let (_, content) = files.iter().find(|(name, _)| is_configuration(name)).unwrap();
        let list: Value = serde_json::from_slice(content).unwrap();
        let plugins = list["plugins"].as_array().cloned().unwrap_or_else(|| vec![list]);
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    const LIST: &str =
        r#"{"cniVersion": "1.0.0", "name": "k8s", "plugins": [{"type": "bridge", "mtu": 1450}, {"type": "portmap"}]}"#;
    const SINGLE: &str = r#"{"cniVersion": "0.4.0", "name": "net", "type": "ptp", "ipam": {"type": "host-local"}}"#;

    #[test]
    fn the_plugin_comes_last_in_the_configuration_that_is_used_and_goes_without_a_trace() {
        for (what, before, expected) in [
            ("a list", files(&[("10-a.conflist", LIST)]), &["bridge", "portmap", "loam-cni"][..]),
            (
                "the first of two",
                files(&[("10-a.conflist", LIST), ("20-b.conf", SINGLE)]),
                &["bridge", "portmap", "loam-cni"],
            ),
            ("a single plugin", files(&[("10-a.conf", SINGLE), ("20-b.conflist", LIST)]), &["ptp", "loam-cni"]),
            ("a single plugin in .json", files(&[("a.json", SINGLE)]), &["ptp", "loam-cni"]),
            (
                "what runtimes do not look at",
                files(&[("05-x.bak", "{"), ("10-a.conflist", LIST)]),
                &["bridge", "portmap", "loam-cni"],
            ),
        ] {
            let joined = edited(before.clone(), join(&before, &entry()).unwrap());
            assert_eq!(called(&joined), expected, "{what}");
            assert_eq!(join(&joined, &entry()), Ok(vec![]), "{what}: joined already");
            let left = edited(joined.clone(), leave(&joined));
            assert_eq!(left.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{what}");
            let value = |files: &Files, name: &String| serde_json::from_slice::<Value>(&files[name]).ok();
            for name in before.keys() {
                assert_eq!(value(&left, name), value(&before, name), "{what}: {name}");
            }
            assert_eq!(leave(&left), [], "{what}: left already");
        }
    }

    #[test]
    fn a_chain_that_another_plugin_changed_is_joined_again() {
        let ours = entry().to_string();
        for plugins in [
            // Rewritten without us, with another behind us, with an older entry of ours, with us twice.
            r#"{"type": "bridge"}"#.to_owned(),
            format!(r#"{{"type": "bridge"}}, {ours}, {{"type": "portmap"}}"#),
            r#"{"type": "bridge"}, {"type": "loam-cni", "socket": "/old"}"#.to_owned(),
            format!(r#"{{"type": "bridge"}}, {ours}, {ours}"#),
        ] {
            let before = files(&[("10-a.conflist", &format!(r#"{{"cniVersion": "1.0.0", "plugins": [{plugins}]}}"#))]);
            let after = edited(before.clone(), join(&before, &entry()).unwrap());
            let all = called(&after);
            assert_eq!(all.last().unwrap(), "loam-cni", "{plugins}");
            assert_eq!(all.iter().filter(|name| *name == "loam-cni").count(), 1, "{plugins}");
            assert_eq!(join(&after, &entry()), Ok(vec![]), "{plugins}");
        }
    }

    #[test]
    fn a_configuration_that_its_owner_wrote_again_is_joined_again_and_kept_when_we_leave() {
        let before = files(&[("10-a.conf", SINGLE)]);
        let mut joined = edited(before.clone(), join(&before, &entry()).unwrap());
        let newer = SINGLE.replace("ptp", "bridge");
        joined.insert("10-a.conf".into(), newer.clone().into_bytes());
        let again = edited(joined.clone(), join(&joined, &entry()).unwrap());
        assert_eq!(called(&again), ["bridge", "loam-cni"]);
        let left = edited(joined.clone(), leave(&joined));
        assert_eq!(left, files(&[("10-a.conf", &newer)]));
    }

    #[test]
    fn what_is_no_chain_is_left_alone_and_named() {
        assert_eq!(join(&files(&[]), &entry()), Err(ChainError::None));
        assert_eq!(join(&files(&[("10-a.conf.loam-saved", SINGLE)]), &entry()), Err(ChainError::None));
        for content in ["{", "[]", "{}", r#"{"plugins": {}}"#, r#"{"plugins": []}"#] {
            let error = join(&files(&[("10-a.conflist", content)]), &entry()).unwrap_err();
            assert!(error.to_string().starts_with("10-a.conflist "), "{content}: {error}");
            assert_eq!(leave(&files(&[("10-a.conflist", content)])), [], "{content}");
        }
    }
}
