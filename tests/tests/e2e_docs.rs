//! The commands of the book's pages about Kubernetes do what the pages say, in their order, on the cluster that there is.
#![expect(clippy::print_stdout, reason = "what was not run is told")]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::cluster::Kubectl;
use loam_tests::pages::{self, Block};
use loam_tests::release::{self, Release};
use loam_tests::testing::on_cluster;
use loam_tests::{bin, bookshop, eventually};

/// Until all pods of a namespace are captured, or gone.
const SETTLE: Duration = Duration::from_secs(120);

/// Commands that know what only this cluster needs: where its nodes have cgroup v2.
fn preamble() -> Result<String> {
    let flags = release::flags_of_place(&Kubectl::from_environment()?)?;
    let wrapped = |program: &str| {
        format!(
            "{program}() {{ case \"$1\" in install|upgrade) command {program} \"$@\"{flags};; \
             *) command {program} \"$@\";; esac; }}\n"
        )
    };
    Ok(wrapped("loam") + &wrapped("helm"))
}

/// Types a block into a shell, and gives what it said.
fn typed(block: &Block) -> Result<String> {
    let programs = bin::dir()?;
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let script = preamble()? + &block.script;
    let output = Command::new("sh")
        .args(["-eu", "-c", &script])
        .current_dir(pages::repository())
        .env("PATH", path)
        .output()
        .context("start sh")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}:{}: {}\n{said}{errors}", block.page, block.line, block.script);
    Ok(said)
}

/// Takes away what pages leave: the mesh, and the bookshop.
fn clean(kubectl: &Kubectl) -> Result<()> {
    let release = Release::install(kubectl)?;
    kubectl.run(&["delete", "namespace", bookshop::NAMESPACE, "--ignore-not-found", "--wait=false"])?;
    eventually(SETTLE, || {
        let left = kubectl.run(&["get", "namespace", bookshop::NAMESPACE, "--ignore-not-found", "--output=name"])?;
        ensure!(left.trim().is_empty(), "{} is still there", left.trim());
        Ok(())
    })?;
    release.uninstall()
}

/// Types all blocks of a page on a cluster without the mesh; gives what the last one said.
fn follow(kubectl: &Kubectl, page: &str) -> Result<String> {
    clean(kubectl)?;
    let mut last = String::new();
    for block in pages::blocks(page)? {
        match &block.not_run {
            Some(why) => println!("not run: {}:{}: {why}", block.page, block.line),
            None => last = typed(&block)?,
        }
    }
    Ok(last)
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn what_the_pages_for_newcomers_have_in_common_leads_to_captured_pods() {
    on_cluster(|kubectl| {
        let status = follow(kubectl, pages::FOR_NEWCOMERS[0])?;
        ensure!(status.contains("captured") && !status.contains("waiting"), "it ends with {status}");
        clean(kubectl)
    });
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn the_page_about_kubernetes_installs_enrols_and_takes_all_of_it_out_again() {
    on_cluster(|kubectl| {
        follow(kubectl, pages::ON_A_CLUSTER)?;
        let left = kubectl.run(&["get", "daemonset,deployment", "--namespace", release::NAMESPACE, "--output=name"])?;
        ensure!(left.trim().is_empty(), "{left} is left of the mesh");
        clean(kubectl)
    });
}
