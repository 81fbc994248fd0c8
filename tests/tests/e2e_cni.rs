//! The plugin in the CNI chain of each node: it stays last, whatever the node's own CNI writes, and goes without a trace.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::cluster::{NodeCaptures, Seen};
use loam_tests::eventually;
use loam_tests::release::Release;
use loam_tests::tenant::{SETTLE, Tenant, calling, talking};
use loam_tests::testing::on_own_cluster;
use serde_json::{Value, json};

/// Where a node has its network configurations.
const DIRECTORY: &str = "/etc/cni/net.d";
/// Until the plugin is where it belongs.
const JOINED: Duration = Duration::from_secs(60);

/// The network configurations of a node, by the names of their files: runtimes use the first.
type Chains = BTreeMap<String, String>;

fn chains(cluster: &Seen, node: &str) -> Result<Chains> {
    let names = cluster.run_inside(node, &["ls", DIRECTORY])?;
    let read = |name: &str| -> Result<_> {
        Ok((name.to_owned(), cluster.run_inside(node, &["cat", &format!("{DIRECTORY}/{name}")])?))
    };
    names.lines().map(read).collect()
}

/// Writes a configuration as a CNI does: aside, and then whole.
fn write(cluster: &Seen, node: &str, name: &str, text: &str) -> Result<()> {
    let script = r#"printf %s "$1" > "$2.tmp" && mv "$2.tmp" "$2""#;
    cluster.run_inside(node, &["sh", "-c", script, "sh", text, &format!("{DIRECTORY}/{name}")]).map(drop)
}

/// Configurations without what only their writers see.
fn meaning(chains: &Chains) -> Result<BTreeMap<String, Value>> {
    let read = |(name, text): (&String, &String)| -> Result<_> {
        Ok((name.clone(), serde_json::from_str(text).with_context(|| format!("read {name}"))?))
    };
    chains.iter().map(read).collect()
}

/// The types of the plugins of the configuration that is used.
fn used(chains: &Chains) -> Result<Vec<String>> {
    let (name, text) = chains.iter().next().context("there is no network configuration")?;
    let list: Value = serde_json::from_str(text).with_context(|| format!("read {name}"))?;
    let plugins = list["plugins"].as_array().with_context(|| format!("{name} has no plugins"))?;
    Ok(plugins.iter().map(|plugin| plugin["type"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Waits until the plugin comes last on every node, and once.
fn joined(cluster: &Seen) -> Result<()> {
    for node in cluster.nodes() {
        eventually(JOINED, || {
            let used = used(&chains(cluster, &node)?)?;
            let ours = used.iter().filter(|plugin| *plugin == "loam-cni").count();
            ensure!(ours == 1 && used.last().is_some_and(|last| last == "loam-cni"), "{node} calls {used:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A list of the node's CNI after an update of it: with another MTU and another plugin at the end.
fn updated(text: &str, mtu: u32) -> Result<String> {
    let mut list: Value = serde_json::from_str(text)?;
    list["plugins"][0]["mtu"] = mtu.into();
    let plugins = list["plugins"].as_array_mut().context("the node's CNI has no list")?;
    plugins.retain(|plugin| plugin["type"] != "loam-cni");
    plugins.push(json!({"type": "tuning"}));
    Ok(list.to_string())
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn the_plugin_stays_last_when_another_cni_rewrites_the_chain_and_leaves_what_that_wrote() {
    on_own_cluster(|kubectl, cluster| {
        // What an earlier test installed may have come before anybody looked.
        Release::install(kubectl)?.uninstall()?;
        let nodes = cluster.nodes();
        let look = || -> Result<Vec<Chains>> { nodes.iter().map(|node| chains(cluster, node)).collect() };
        let before = look()?;
        ensure!(!format!("{before:?}").contains("loam"), "an uninstall left something: {before:?}");
        let release = Release::install(kubectl)?;
        joined(cluster)?;

        let tenant = Tenant::enter(kubectl, "cni-e2e")?;
        let far = tenant.server("far", &nodes[nodes.len() - 1])?;
        let mut expected = Vec::new();
        // Its own file, and then one that comes before it.
        for (name, mtu) in [(None, 1400), (Some("05-earlier.conflist"), 1300)] {
            expected.clear();
            for (node, chains) in nodes.iter().zip(look()?) {
                let (first, text) = chains.iter().next().context("there is no network configuration")?;
                let (name, text) = (name.unwrap_or(first), updated(text, mtu)?);
                write(cluster, node, name, &text)?;
                let mut chains = meaning(&chains)?;
                chains.insert(name.to_owned(), serde_json::from_str(&text)?);
                expected.push(chains);
            }
            joined(cluster)?;
            let captures = NodeCaptures::start(cluster)?;
            let pod = format!("late-{mtu}");
            tenant.pod_with(&pod, &nodes[0], &[calling("first", far, "first")], &[talking(&pod)])?;
            tenant.captured(&pod)?;
            tenant.served(&pod, "first")?;
            captures.finish()?.assert_no_plaintext()?;
        }

        release.uninstall()?;
        for (chains, expected) in look()?.iter().zip(&mut expected) {
            for list in expected.values_mut() {
                let plugins = list["plugins"].as_array_mut().context("a list without plugins")?;
                plugins.retain(|plugin| plugin["type"] != "loam-cni");
            }
            ensure!(meaning(chains)? == *expected, "left is {chains:?} and not {expected:?}");
        }
        // The node makes pods without the mesh as it did before.
        tenant.pod("plain", &nodes[0], &[talking("plain")])?;
        eventually(SETTLE, || {
            let pod = tenant.state("plain")?;
            ensure!(pod.ready && !pod.captured, "{pod:?}");
            Ok(())
        })?;
        tenant.leave()?;
        for (node, chains) in nodes.iter().zip(&before) {
            cluster.run_inside(node, &["rm", &format!("{DIRECTORY}/05-earlier.conflist")])?;
            for (name, text) in chains {
                write(cluster, node, name, text)?;
            }
        }
        Ok(())
    });
}
