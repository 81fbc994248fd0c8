//! Who plays: Bookinfo over two nodes, a visitor inside the mesh and one outside.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use loam_tests::manifests::Service;
use loam_tests::{Lab, Mesh, Pod, Process, bin, topology};
use serde::Deserialize;

/// The namespace that joins the mesh.
pub(crate) const NAMESPACE: &str = "bookinfo";
/// The namespace that does not.
const OUTSIDE: &str = "outside";
/// Port of all four services, and of their addresses.
pub(crate) const PORT: u16 = 9080;

/// Everybody.
#[derive(Debug)]
pub(crate) struct Cast {
    pub(crate) productpage: Pod,
    details: Pod,
    reviews: [Pod; 3],
    ratings: Pod,
    /// Inside the mesh, once its namespace is.
    pub(crate) visitor: Pod,
    /// Never inside the mesh.
    pub(crate) outsider: Pod,
}

/// The addresses of the four services.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) productpage: Service,
    details: Service,
    pub(crate) reviews: Service,
    ratings: Service,
}

/// Who stands behind addresses on the wire.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a> {
    pub(crate) cast: &'a Cast,
    pub(crate) shop: &'a Shop,
}

impl Names<'_> {
    /// Name of the pod or service at an address.
    pub(crate) fn of(&self, ip: IpAddr) -> String {
        let Shop { productpage, details, reviews, ratings } = self.shop;
        let service = [productpage, details, reviews, ratings].into_iter().find(|s| s.vips.contains(&ip));
        let name = self.cast.name_of(ip).or(service.map(|s| s.name.as_str()));
        name.map_or_else(|| ip.to_string(), str::to_owned)
    }

    /// Whether the address is that of a service, or of a pod that joins the mesh.
    pub(crate) fn is_member(&self, ip: IpAddr) -> bool {
        let Shop { productpage, details, reviews, ratings } = self.shop;
        self.cast.is_member(ip) || [productpage, details, reviews, ratings].iter().any(|s| s.vips.contains(&ip))
    }
}

/// What the traffic generator sums up.
#[derive(Debug, Deserialize)]
pub(crate) struct Summary {
    pub(crate) requests: u64,
    pub(crate) ok: u64,
    pub(crate) latency_ms: Latency,
    pub(crate) failures: std::collections::BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Cast {
    /// Makes the pods, spread so that calls cross nodes.
    pub(crate) fn create(lab: &Lab) -> Result<Self> {
        let pod = |node: usize, name: &str, app: &str| lab.node(node).pod(name, NAMESPACE, &format!("bookinfo-{app}"));
        Ok(Self {
            productpage: pod(0, "productpage-v1", "productpage")?,
            details: pod(1, "details-v1", "details")?,
            reviews: [
                pod(0, "reviews-v1", "reviews")?,
                pod(1, "reviews-v2", "reviews")?,
                pod(1, "reviews-v3", "reviews")?,
            ],
            ratings: pod(0, "ratings-v1", "ratings")?,
            visitor: pod(0, "visitor", "visitor")?,
            outsider: lab.node(1).pod("outsider", OUTSIDE, "outsider")?,
        })
    }

    /// The pods that join the mesh.
    pub(crate) fn members(&self) -> Vec<&Pod> {
        let Self { productpage, details, reviews: [v1, v2, v3], ratings, visitor, outsider: _ } = self;
        vec![productpage, details, v1, v2, v3, ratings, visitor]
    }

    /// The pods of reviews that are compared: the first version and the last.
    pub(crate) fn versions(&self) -> [&Pod; 2] {
        let [old, _, new] = &self.reviews;
        [old, new]
    }

    /// All pods.
    pub(crate) fn everyone(&self) -> Vec<&Pod> {
        let mut all = self.members();
        all.push(&self.outsider);
        all
    }

    /// Name of the pod at an address.
    fn name_of(&self, ip: IpAddr) -> Option<&str> {
        self.everyone().into_iter().find(|p| p.addresses().contains(&ip)).map(Pod::name)
    }

    /// Whether the address is that of a pod that joins the mesh.
    fn is_member(&self, ip: IpAddr) -> bool {
        self.members().iter().any(|p| p.addresses().contains(&ip))
    }

    /// Declares services and pods, outside the mesh as yet, and makes service addresses work without it.
    pub(crate) fn declare(&self, lab: &Lab, mesh: &Mesh) -> Result<Shop> {
        let manifests = mesh.manifests();
        manifests.namespace(NAMESPACE, false)?;
        manifests.namespace(OUTSIDE, false)?;
        for pod in self.everyone() {
            manifests.pod(pod)?;
        }
        let service = |name: &str, pods: &[&Pod]| -> Result<Service> {
            let service = manifests.service(NAMESPACE, name, &[(PORT, PORT)], pods)?;
            topology::route_service(lab, service.vips[0], pods)?;
            Ok(service)
        };
        let [v1, v2, v3] = &self.reviews;
        Ok(Shop {
            productpage: service("productpage", &[&self.productpage])?,
            details: service("details", &[&self.details])?,
            reviews: service("reviews", &[v1, v2, v3])?,
            ratings: service("ratings", &[&self.ratings])?,
        })
    }

    /// Starts the four services. They are told service addresses, never learn of the mesh, and are never restarted.
    /// The three reviewers are given back.
    pub(crate) fn perform(&self, shop: &Shop) -> Result<Vec<Process>> {
        let address = |service: &Service| service.at(PORT).to_string();
        let (details, reviews, ratings) = (address(&shop.details), address(&shop.reviews), address(&shop.ratings));
        start(&self.productpage, &["productpage", "--details", &details, "--reviews", &reviews])?;
        start(&self.details, &["details"])?;
        let reviews = self.reviews.iter().zip(["v1", "v2", "v3"]);
        let reviewers = reviews
            .map(|(pod, version)| start(pod, &["reviews", "--version", version, "--ratings", &ratings]))
            .collect::<Result<_>>()?;
        start(&self.ratings, &["ratings"])?;
        Ok(reviewers)
    }
}

fn start(pod: &Pod, arguments: &[&str]) -> Result<Process> {
    let program = bin::path("loam-bookinfo")?;
    let mut argv = vec![program.to_str().context("the path of the programs is not text")?];
    argv.extend(arguments);
    argv.extend(["--pod-name", pod.name()]);
    let process = pod.spawn(arguments[0], &argv)?;
    loam_tests::eventually(Duration::from_secs(10), || {
        anyhow::ensure!(process.is_running(), "{} ended: {}", pod.name(), process.stderr());
        anyhow::ensure!(process.stderr().contains("listens"), "{} does not listen", pod.name());
        Ok(())
    })?;
    Ok(process)
}

/// Starts requests for the product page.
pub(crate) fn visit(pod: &Pod, to: SocketAddr, rate: u32, seconds: u32) -> Result<Process> {
    traffic(pod, &format!("http://{to}/productpage"), rate, seconds)
}

/// Starts requests for whatever is at `url`.
pub(crate) fn traffic(pod: &Pod, url: &str, rate: u32, seconds: u32) -> Result<Process> {
    let program = bin::path("loam-bookinfo")?;
    let program = program.to_str().context("the path of the programs is not text")?;
    let (rate, seconds) = (rate.to_string(), seconds.to_string());
    pod.spawn("traffic", &[program, "traffic", "--json", "--url", url, "--rate", &rate, "--seconds", &seconds])
}

/// Waits for the end of a visit, which may have failures to tell.
pub(crate) fn summary(visit: &Process, seconds: u32) -> Result<Summary> {
    let output = visit.output(Duration::from_secs(u64::from(seconds) + 15))?;
    serde_json::from_str(output.stdout.trim()).with_context(|| format!("{} said {:?}", visit.name(), output.stderr))
}
