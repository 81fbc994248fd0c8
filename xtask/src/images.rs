//! Container images without a container engine: one per component, each with its programs, their libraries, and users.

pub(crate) mod layer;
pub(crate) mod layout;
pub(crate) mod libraries;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use loam_tests::bin;

use crate::term::Term;
use crate::{build, setup};
use layer::Layer;
use layout::Image;

/// Where our images are published.
pub(crate) const REGISTRY: &str = "ghcr.io/loam-mesh";

/// The users of every image: root; the proxy's, by which the agent knows it; and the others'.
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\n\
                      loam:x:1337:1337:loam:/:/sbin/nologin\n\
                      nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nloam:x:1337:\nnonroot:x:65532:\n";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Build as it is shipped; without it as tests run it
    #[arg(long)]
    release: bool,
    /// Registry and prefix of the names
    #[arg(long, default_value = REGISTRY)]
    registry: String,
    /// Tag of the names
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// Where to write them; target/images when left out
    #[arg(long)]
    out: Option<PathBuf>,
}

/// One of our images.
struct Component {
    name: &'static str,
    /// The first is what runs.
    programs: &'static [&'static str],
    user: &'static str,
}

/// What the manifests of the Gateway API's conformance suite run in their pods, under the name that they give.
pub(crate) const ECHO: &str = "registry.k8s.io/gateway-api/conformance/echo-advanced:v0.1.0";
/// Its program, and the names by which it is called. The first is what runs.
const ECHO_PROGRAM: &str = "loam-echo";
const ECHO_NAMES: [&str; 2] = ["server", "client"];
/// Where the images go that only tests use, below those that are published.
const FOR_TESTS: &str = "tests";

const COMPONENTS: [Component; 6] = [
    Component { name: "loam-controller", programs: &["loam-controller"], user: "65532:65532" },
    Component { name: "loam-agent", programs: &["loam-agent", "loam-cni"], user: "0:0" },
    Component { name: "loam-ztunnel", programs: &["loam-ztunnel"], user: "1337:1337" },
    Component { name: "loam-waypoint", programs: &["loam-waypoint"], user: "1337:1337" },
    Component { name: "loam-bookinfo", programs: &["loam-bookinfo"], user: "65532:65532" },
    // What end-to-end tests run in pods.
    Component { name: "loam-lab", programs: &["loam-lab"], user: "65532:65532" },
];

/// Builds and writes them.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let term = Term::new();
    setup::ensure()?;
    if arguments.release {
        bin::choose_dir(build::released_programs(term)?)?;
    } else {
        build::programs(term)?;
    }
    let out = arguments.out.clone().unwrap_or_else(|| directory("images"));
    write(term, &out, &arguments.registry, &arguments.tag)?;
    write_for_tests(term, &out).map(drop)
}

/// `name` in the directory that cargo builds into.
pub(crate) fn directory(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    // What runs elsewhere is told of it too.
    std::path::absolute(&target).unwrap_or(target).join(name)
}

/// Writes the images of the built programs; gives their files.
pub(crate) fn write(term: Term, out: &Path, registry: &str, tag: &str) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    let mut files = Vec::new();
    for component in &COMPONENTS {
        let file = out.join(format!("{}.tar", component.name));
        let reference = format!("{registry}/{}:{tag}", component.name);
        term.step(&format!("{reference} in {}", file.display()), || component.image(&reference, out)?.write(&file))?;
        files.push(file);
    }
    Ok(files)
}

/// Writes the images that only tests use; gives their files.
pub(crate) fn write_for_tests(term: Term, out: &Path) -> Result<Vec<PathBuf>> {
    let out = out.join(FOR_TESTS);
    std::fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    let file = out.join(format!("{ECHO_PROGRAM}.tar"));
    term.step(&format!("{ECHO} in {}", file.display()), || {
        let component = Component { name: ECHO_PROGRAM, programs: &[ECHO_PROGRAM], user: "65532:65532" };
        let mut image = component.image(ECHO, &out)?;
        let own = image.layers.last_mut().context("an image without a layer")?;
        for name in ECHO_NAMES {
            own.link(&format!("/usr/local/bin/{name}"), &format!("/usr/local/bin/{ECHO_PROGRAM}"));
        }
        image.entrypoint = vec![format!("/usr/local/bin/{}", ECHO_NAMES[0])];
        image.write(&file)
    })?;
    Ok(vec![file])
}

impl Component {
    fn image(&self, reference: &str, out: &Path) -> Result<Image> {
        let mut below = base();
        let mut own = Layer::default();
        for program in self.programs {
            let built = bin::path(program)?;
            for library in libraries::of(&built)? {
                below.program(&library.display().to_string(), &library)?;
            }
            let stripped = out.join(format!("{program}.stripped"));
            strip(&built, &stripped)?;
            own.program(&format!("/usr/local/bin/{program}"), &stripped)?;
            std::fs::remove_file(&stripped)?;
        }
        let first = self.programs.first().context("an image without a program")?;
        Ok(Image {
            reference: reference.to_owned(),
            // What changes less is below: a node then has it already.
            layers: vec![below, own],
            entrypoint: vec![format!("/usr/local/bin/{first}")],
            user: self.user.to_owned(),
        })
    }
}

/// What every image has.
pub(crate) fn base() -> Layer {
    let mut layer = Layer::default();
    layer.file("/etc/passwd", PASSWD, 0o644);
    layer.file("/etc/group", GROUP, 0o644);
    layer.file("/etc/nsswitch.conf", "hosts: files dns\n", 0o644);
    layer.directory("/tmp", 0o1777);
    layer.directory("/run", 0o755);
    layer
}

/// A copy without what only a debugger reads.
pub(crate) fn strip(program: &Path, copy: &Path) -> Result<()> {
    let status = Command::new("strip").arg("--strip-debug").arg("-o").arg(copy).arg(program).status();
    if !status.context("run strip of binutils")?.success() {
        bail!("strip {} failed", program.display());
    }
    Ok(())
}
