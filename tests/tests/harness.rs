//! The harness itself: what the other tests rely on, without a mesh.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use loam_tests::capture::Capture;
use loam_tests::report::{Probe, Transfers};
use loam_tests::scene::{SHORT, serve};
use loam_tests::{eventually, in_lab};

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn pods_reach_each_other_on_one_node_and_across_nodes_and_a_capture_reads_along() {
    in_lab(|lab| {
        let client = lab.node(0).pod("client", "demo", "client")?;
        let near = lab.node(0).pod("near", "demo", "server")?;
        let far = lab.node(1).pod("far", "demo", "server")?;
        serve(&near)?;
        serve(&far)?;
        let captures = Capture::on_all(&lab.nodes())?;
        for address in [near.at_each(7001), far.at_each(7001)].concat() {
            let probe: Probe = client.report(&["probe", &address.to_string(), "--tag", "plain"], SHORT)?;
            let server = probe.server.with_context(|| format!("{address}: {:?}", probe.error))?;
            ensure!(probe.peer == Some(address), "{address}: getpeername gives {:?}", probe.peer);
            ensure!(client.addresses().contains(&server.peer.ip()), "{address}: the server saw {server:?}");
        }
        for order in ["echo", "server", "client-reset", "server-reset"] {
            let port = if order == "echo" { 7000 } else { 7001 };
            let to = far.at(port).to_string();
            let done: Transfers =
                client.report(&["transfer", &to, "--order", order, "--count", "20", "--tag", "bulk"], SHORT)?;
            ensure!(done.ok == 20 && done.errors.is_empty(), "{order}: {done:?}");
        }
        let seen = Capture::finish_all(captures)?;
        ensure!(seen.dropped == 0 && seen.readable("plain") > 0 && seen.readable("bulk") > 0, "{seen:?}");
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_closed_lab_leaves_nothing_behind() {
    in_lab(|lab| {
        serve(&lab.node(0).pod("p", "demo", "p")?)?;
        let (work, cgroup) = (lab.work().to_owned(), lab.cgroup().to_owned());
        ensure!(work.exists() && cgroup.exists());
        lab.close();
        ensure!(!work.exists(), "{} is left", work.display());
        ensure!(!cgroup.exists(), "{} is left", cgroup.display());
        Ok(())
    });
}

/// Names the file in which [`a_lab_to_be_killed`] says where its lab is.
const VICTIM: &str = "LOAM_TEST_VICTIM";

/// Not a test of its own: the process that the next one kills.
#[test]
#[ignore = "started by another test"]
fn a_lab_to_be_killed() {
    let Some(file) = std::env::var_os(VICTIM) else { return };
    in_lab(|lab| {
        serve(&lab.node(0).pod("p", "demo", "p")?)?;
        let text = format!("{}\n{}\n{}\n", lab.work().display(), lab.cgroup().display(), lab.outer_pid());
        fs::write(&file, text)?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_lab_whose_parent_is_killed_leaves_nothing_behind() {
    in_lab(|lab| {
        let file = lab.work().join("victim");
        let mut parent = Command::new(std::env::current_exe()?)
            .args(["--ignored", "--exact", "a_lab_to_be_killed"])
            .env(VICTIM, &file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let text = eventually(SHORT, || {
            let text = fs::read_to_string(&file)?;
            ensure!(text.lines().count() == 3, "the other lab is not up");
            Ok(text)
        })?;
        let mut lines = text.lines();
        let mut path = || lines.next().map(PathBuf::from).context("a line is missing");
        let (work, cgroup) = (path()?, path()?);
        let init = Path::new("/proc").join(path()?);
        ensure!(work.exists() && cgroup.exists() && init.exists(), "the other lab is not where it says: {text}");
        parent.kill()?;
        parent.wait()?;
        for what in [&work, &cgroup, &init] {
            eventually(SHORT, || {
                ensure!(!what.exists(), "{} is left", what.display());
                Ok(())
            })?;
        }
        Ok(())
    });
}
