//! The bookshop on a Kubernetes cluster.

use std::time::Duration;

use anyhow::ensure;
use loam_tests::bookshop::Bookshop;
use loam_tests::eventually;
use loam_tests::testing::on_cluster;

/// Until kube-proxy has told every node about new endpoints.
const PROGRAMMED: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn every_page_of_the_bookshop_reaches_visitors_on_every_node() {
    on_cluster(|kubectl| {
        let shop = Bookshop::open(kubectl)?;
        let nodes = shop.nodes()?;
        ensure!(nodes.len() > 1, "all pods are on {nodes:?}, so nothing goes from node to node");
        for node in &nodes {
            eventually(PROGRAMMED, || shop.visit(node, 1)?.success())?;
            let visit = shop.visit(node, 30)?;
            visit.success()?;
            ensure!(visit.reviewed_by.len() == 3, "not every version of reviews took part: {visit:?}");
        }
        ensure!(shop.restarts()? == 0, "a container was started again");
        shop.close()
    });
}
