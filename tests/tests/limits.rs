//! What is bounded says so where the bound is reached, and works on.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use loam_tests::scene::{LONG, Scene, TALK};
use loam_tests::{Lab, Pod, eventually, in_lab};

/// Most pods of a node.
const MOST: usize = 1024;

/// Network namespaces with nothing but loopback, which has their pods' addresses, called `crowd-0` and so on.
fn namespaces(lab: &Lab, count: usize) -> Result<()> {
    let script = format!(
        "for n in $(seq 0 {}); do ip netns add crowd-$n && printf 'link set lo up\\naddr add 10.245.%d.%d/32 dev lo\\n' \
         $((n / 256)) $((n % 256)) | ip -netns crowd-$n -batch - || exit 1; done",
        count - 1
    );
    lab.spawn("crowd", &["sh", "-c", &script])?.output(LONG)?.success().map(drop)
}

/// As many pods of the mesh, on the node of `like`.
fn crowd(like: &Pod, numbers: std::ops::Range<usize>) -> String {
    let mut text = String::new();
    for n in numbers {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  namespace: demo\n  name: crowd-{n}\n  uid: crowd-{n}\n  \
             annotations: {{loam.dev/netns: /run/netns/crowd-{n}}}\nspec:\n  nodeName: {}\n  serviceAccountName: {}\n  \
             containers: [{{name: app}}]\nstatus:\n  phase: Running\n  podIPs: [{{ip: 10.245.{}.{}}}]\n",
            like.node(),
            like.service_account(),
            n / 256,
            n % 256,
        );
    }
    text
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_full_node_says_which_pod_has_no_place_and_gives_it_the_first_that_is_free() {
    in_lab(|lab| {
        let scene = Scene::enrolled(lab)?;
        let (client, far) = (&scene.client, scene.far.at(TALK));
        // With `far` they are one too many.
        namespaces(lab, MOST)?;
        scene.mesh.manifests().write("crowd.yaml", &crowd(&scene.far, 0..MOST))?;
        let node = scene.mesh.node(1);
        let states = || -> Result<(usize, Vec<String>)> {
            let status = node.status()?;
            let pods = status["pods"].as_array().context("no pods")?;
            let (enrolled, rest): (Vec<_>, Vec<_>) = pods.iter().partition(|pod| pod["state"] == "enrolled");
            Ok((enrolled.len(), rest.iter().map(ToString::to_string).collect()))
        };
        eventually(LONG, || {
            let (enrolled, rest) = states()?;
            ensure!(enrolled == MOST, "{enrolled} are enrolled; {} are not: {:?}", rest.len(), rest.first());
            Ok(())
        })?;
        let (_, rest) = states()?;
        ensure!(rest.len() == 1 && rest[0].contains("this node has 1024 pods in the mesh already"), "{rest:?}");
        for to in scene.far.at_each(TALK) {
            client.assert_reaches(to, &[to])?;
        }
        client.assert_reaches(far, &[far])?;

        let (_, rest) = states()?;
        let left_out = (0..MOST).find(|n| rest[0].contains(&format!("\"crowd-{n}\""))).context("who is left out?")?;
        let goes = usize::from(left_out == 0);
        let others = [crowd(&scene.far, 0..goes), crowd(&scene.far, goes + 1..MOST)].concat();
        scene.mesh.manifests().write("crowd.yaml", &others)?;
        eventually(LONG, || {
            let (enrolled, rest) = states()?;
            ensure!(enrolled == MOST && rest.is_empty(), "{enrolled} are enrolled, not {rest:?}");
            Ok(())
        })?;
        client.assert_reaches(far, &[far])
    });
}
