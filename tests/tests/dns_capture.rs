//! What programs ask name servers goes to the pod's own listener, whatever their sockets look like, and they see the
//! server that they asked.
//!
//! A stand-in that answers every question with one address takes the ztunnel's place, so that each answer says whether
//! the question was captured: name servers on the network give another one.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use loam_tests::lab::Lab;
use loam_tests::manifests::PodFacts;
use loam_tests::mesh::{Mesh, Options};
use loam_tests::process::Process;
use loam_tests::scene::SHORT;
use loam_tests::topology::Pod;
use loam_tests::{eventually, in_lab};
use serde::Deserialize;

/// The answer to what was captured.
const CAPTURED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The answer of the name server on the network.
const NETWORK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The answer of a resolver inside the pod.
const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

/// Name servers that nobody routes to: whoever hears from them was captured.
const NOWHERE: &str = "10.96.0.53:53";
const NOWHERE_TOO: &str = "10.96.0.54:53";
const NOWHERE6: &str = "[fd00:96::53]:53";

/// What takes longer than this was waited for.
const AT_ONCE_MS: f64 = 500.0;

/// What the tool says of a question.
#[derive(Debug, Deserialize)]
struct Asked {
    ms: f64,
    error: Option<String>,
    addresses: Vec<Ipv4Addr>,
    from: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
}

/// A pod that asks, one that answers on the network, and who stands in for the ztunnel.
struct Stage {
    mesh: Mesh,
    client: Pod,
    server: Pod,
}

fn answer(pod: &Pod, with: Ipv4Addr, listen: &[SocketAddr]) -> Result<Process> {
    let mut arguments = vec!["answer".to_owned(), "--with".into(), with.to_string()];
    arguments.extend(listen.iter().flat_map(|addr| ["--listen".to_owned(), addr.to_string()]));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let process = pod.tool(&arguments)?;
    process.wait_for_output("serving", SHORT)?;
    Ok(process)
}

fn annotated(mesh: &Mesh, pod: &Pod, annotations: &[(&str, &str)]) -> Result<()> {
    let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    mesh.manifests().pod_with(pod, &PodFacts { annotations, ..PodFacts::default() })
}

impl Stage {
    fn new(lab: &Lab) -> Result<(Self, Process)> {
        let mesh =
            Mesh::start_with(lab, &Options { keeper: vec!["--grace-ms".into(), "300".into()], ..Options::default() })?;
        let client = lab.node(0).pod("client", "demo", "client")?;
        let server = lab.node(1).pod("server", "plain", "server")?;
        answer(&server, NETWORK, &server.at_each(53))?;
        let stage = Self { mesh, client, server };
        let stand_in = stage.stand_in()?;
        // It has no resolv.conf that anybody knows, and so has to ask for it.
        annotated(&stage.mesh, &stage.client, &[("ambient.istio.io/dns-capture", "true")])?;
        stage.mesh.manifests().namespace("demo", false)?;
        Ok((stage, stand_in))
    }

    /// Takes the ztunnel's place on the client's node.
    fn stand_in(&self) -> Result<Process> {
        let node = self.mesh.node(0).node();
        let run_dir = node.dir().join("run").display().to_string();
        let process = node.tool(&["answer", "--with", &CAPTURED.to_string(), "--for-pods", &run_dir])?;
        process.wait_for_output("serving", SHORT)?;
        Ok(process)
    }

    fn enrol(&self) -> Result<()> {
        self.mesh.manifests().namespace("demo", true)?;
        self.mesh.wait_for_state(&[&self.client], "enrolled")
    }

    fn un_enrol(&self) -> Result<()> {
        self.mesh.manifests().namespace("demo", false)?;
        self.mesh.wait_until_not_enrolled(&[&self.client])
    }

    fn ask(&self, arguments: &[&str]) -> Result<Vec<Asked>> {
        ask(&self.client, arguments)
    }

    /// One question, which `with` must answer.
    fn assert_answered(&self, with: Ipv4Addr, arguments: &[&str]) -> Result<Asked> {
        let mut all = self.ask(arguments)?;
        ensure!(all.iter().all(|asked| asked.addresses == [with]), "{arguments:?}: {all:?}, not {with}");
        all.pop().context("nothing was asked")
    }

    /// One question, which must be refused without a wait.
    fn assert_refused(&self, arguments: &[&str]) -> Result<()> {
        for asked in self.ask(arguments)? {
            ensure!(asked.error.as_deref() == Some("ConnectionRefused"), "{arguments:?}: {asked:?}");
            ensure!(asked.ms < AT_ONCE_MS, "{arguments:?}: only after {} ms", asked.ms);
        }
        Ok(())
    }

    /// Starts to ask over sockets that are made before the file is there.
    fn start_asking(&self, file: &Path, arguments: &[&str]) -> Result<Process> {
        let file = file.display().to_string();
        let all = [&["ask", "--name", "web.shop", "--wait-for", &file], arguments].concat();
        let process = self.client.tool(&all)?;
        process.wait_for_output("waiting", SHORT)?;
        Ok(process)
    }
}

fn ask(pod: &Pod, arguments: &[&str]) -> Result<Vec<Asked>> {
    pod.report(&[&["ask", "--name", "web.shop"], arguments].concat(), SHORT)
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn every_shape_of_socket_is_answered_and_sees_the_server_it_asked() {
    in_lab(|lab| {
        let (stage, _stand_in) = Stage::new(lab)?;
        stage.enrol()?;
        let own = stage.client.v4().to_string();
        let own6 = stage.client.v6().map(|v6| v6.to_string());
        let bound = format!("{own}:0");
        let mut shapes: Vec<(Vec<&str>, &str, Option<&str>)> = vec![
            (vec!["--over", "connected", NOWHERE], NOWHERE, Some(&own)),
            (vec!["--over", "connected", "--bind", &bound, NOWHERE], NOWHERE, Some(&own)),
            (vec!["--over", "connected", "--mapped", NOWHERE], "[::ffff:10.96.0.53]:53", None),
            (vec!["--over", "unconnected", NOWHERE], NOWHERE, None),
            (vec!["--over", "unconnected", "--bind", &bound, NOWHERE], NOWHERE, Some(&own)),
            (vec!["--over", "unconnected", "--mapped", NOWHERE], "[::ffff:10.96.0.53]:53", None),
            (vec!["--over", "tcp", NOWHERE], NOWHERE, Some(&own)),
            (vec!["--over", "tcp", "--bind", &bound, NOWHERE], NOWHERE, Some(&own)),
            (vec!["--over", "tcp", "--mapped", NOWHERE], "[::ffff:10.96.0.53]:53", None),
            (vec!["--over", "tcp", "--device", "eth0", NOWHERE], NOWHERE, Some(&own)),
        ];
        if let Some(own6) = &own6 {
            shapes.push((vec!["--over", "connected", NOWHERE6], NOWHERE6, Some(own6)));
            shapes.push((vec!["--over", "unconnected", NOWHERE6], NOWHERE6, None));
            shapes.push((vec!["--over", "tcp", NOWHERE6], NOWHERE6, Some(own6)));
        }
        for (arguments, server, local) in shapes {
            let asked = stage.assert_answered(CAPTURED, &arguments)?;
            let server: SocketAddr = server.parse()?;
            let tcp = arguments.contains(&"tcp");
            ensure!(tcp || asked.from == Some(server), "{arguments:?}: answered from {:?}", asked.from);
            let unconnected = arguments.contains(&"unconnected");
            ensure!(unconnected || asked.peer == Some(server), "{arguments:?}: getpeername gives {:?}", asked.peer);
            if let Some(local) = local {
                let shown = asked.local.context("no getsockname")?;
                ensure!(
                    shown.ip().to_string() == local && shown.port() != 0,
                    "{arguments:?}: getsockname gives {shown}"
                );
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_socket_that_asks_two_servers_hears_from_both() {
    in_lab(|lab| {
        let (stage, _stand_in) = Stage::new(lab)?;
        stage.enrol()?;
        for servers in [[NOWHERE, NOWHERE_TOO], [NOWHERE_TOO, NOWHERE]] {
            let [first, second] = servers;
            let all = stage.ask(&["--over", "unconnected", "--count", "5", first, second])?;
            ensure!(all.len() == 10, "{all:?}");
            for (asked, server) in all.iter().zip(servers.iter().cycle()) {
                ensure!(asked.addresses == [CAPTURED] && asked.from == server.parse().ok(), "{server}: {asked:?}");
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn the_c_library_resolves_through_the_listener() {
    in_lab(|lab| {
        let (stage, _stand_in) = Stage::new(lab)?;
        stage.enrol()?;
        let conf = lab.work().join("resolv.conf");
        fs::write(&conf, "nameserver 10.96.0.53\nsearch demo.svc.cluster.local\noptions ndots:5\n")?;
        let script = format!("mount --bind {} /etc/resolv.conf && exec getent -s dns ahostsv4 web", conf.display());
        let found = stage.client.run(&["unshare", "-m", "sh", "-c", &script])?.success()?;
        ensure!(found.starts_with(&CAPTURED.to_string()), "{found}");
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn what_is_not_the_meshs_to_answer_is_left_alone() {
    in_lab(|lab| {
        let (stage, _stand_in) = Stage::new(lab)?;
        let other = lab.node(0).pod("other", "plain", "other")?;
        let off = lab.node(0).pod("off", "demo", "off")?;
        annotated(&stage.mesh, &off, &[("ambient.istio.io/dns-capture", "false")])?;
        stage.enrol()?;
        stage.mesh.wait_for_state(&[&off], "enrolled")?;
        let server = stage.server.at(53).to_string();
        for over in ["connected", "unconnected", "tcp"] {
            let asked = ask(&other, &["--over", over, &server])?;
            ensure!(asked[0].addresses == [NETWORK], "outside of the mesh: {asked:?}");
        }
        for over in ["connected", "unconnected"] {
            let asked = ask(&off, &["--over", over, &server])?;
            ensure!(asked[0].addresses == [NETWORK], "switched off: {asked:?}");
            // A socket that is bound to an interface says by which way it asks.
            stage.assert_answered(NETWORK, &["--over", over, "--device", "eth0", &server])?;
        }
        let own = stage.client.at(53);
        // A socket on port 53 is a name server's, which answers others from there.
        stage.assert_answered(NETWORK, &["--over", "unconnected", "--bind", &own.to_string(), &server])?;
        let loopback: SocketAddr = "127.0.0.53:53".parse()?;
        answer(&stage.client, INSIDE, &[own, loopback])?;
        for resolver in [own, loopback] {
            stage.assert_answered(INSIDE, &["--over", "connected", &resolver.to_string()])?;
            stage.assert_answered(INSIDE, &["--over", "unconnected", &resolver.to_string()])?;
        }
        stage.assert_answered(INSIDE, &["--over", "tcp", &loopback.to_string()])?;
        eventually(SHORT, || {
            let [on, off] = [&stage.client, &off].map(|pod| stage.mesh.pod_status(pod));
            let (on, off) = (on?, off?);
            ensure!(on["kernel"]["dns"] == true && off["kernel"]["dns"] == false, "{on} {off}");
            Ok(())
        })
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn sockets_older_than_the_enrolment_go_on_and_those_of_the_mesh_are_refused_after_it() {
    in_lab(|lab| {
        let (stage, _stand_in) = Stage::new(lab)?;
        let server = stage.server.at(53).to_string();
        let files = ["before", "during"].map(|name| lab.work().join(name));
        let old = stage.start_asking(&files[0], &["--over", "connected", &server])?;
        let unconnected = stage.start_asking(&files[0], &["--over", "unconnected", &server])?;
        stage.enrol()?;
        fs::write(&files[0], "")?;
        let old: Vec<Asked> = old.report(SHORT)?;
        ensure!(old[0].addresses == [NETWORK] && old[0].from == server.parse().ok(), "{old:?}");
        let unconnected: Vec<Asked> = unconnected.report(SHORT)?;
        ensure!(unconnected[0].addresses == [CAPTURED], "{unconnected:?}");

        let meshed = stage.start_asking(&files[1], &["--over", "connected", &server])?;
        let unconnected = stage.start_asking(&files[1], &["--over", "unconnected", &server])?;
        stage.un_enrol()?;
        stage.mesh.wait_until_forgotten(&[&stage.client])?;
        fs::write(&files[1], "")?;
        let meshed: Vec<Asked> = meshed.report(SHORT)?;
        ensure!(meshed[0].error.as_deref() == Some("ConnectionRefused") && meshed[0].ms < AT_ONCE_MS, "{meshed:?}");
        let unconnected: Vec<Asked> = unconnected.report(SHORT)?;
        ensure!(unconnected[0].addresses == [NETWORK], "{unconnected:?}");
        stage.assert_answered(NETWORK, &["--over", "connected", &server])?;
        stage.enrol()?;
        for over in ["connected", "unconnected", "tcp"] {
            stage.assert_answered(CAPTURED, &["--over", over, &server])?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_dead_ztunnel_refuses_at_once_and_the_next_one_answers() {
    in_lab(|lab| {
        let (stage, stand_in) = Stage::new(lab)?;
        stage.enrol()?;
        let file = lab.work().join("dead");
        let connected = stage.start_asking(&file, &["--over", "connected", NOWHERE])?;
        stand_in.kill()?;
        // Within the grace a question waits; after it nobody does.
        eventually(SHORT, || stage.assert_refused(&["--over", "unconnected", NOWHERE]))?;
        stage.assert_refused(&["--over", "connected", NOWHERE])?;
        stage.assert_refused(&["--over", "tcp", NOWHERE])?;
        fs::write(&file, "")?;
        let connected: Vec<Asked> = connected.report(SHORT)?;
        let refused = connected[0].error.as_deref() == Some("ConnectionRefused") && connected[0].ms < AT_ONCE_MS;
        ensure!(refused, "a socket that was connected before: {connected:?}");
        let _next = stage.stand_in()?;
        for over in ["connected", "unconnected", "tcp"] {
            eventually(SHORT, || stage.assert_answered(CAPTURED, &["--over", over, NOWHERE]).map(drop))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn names_resolve_while_the_agent_restarts_and_a_lost_hook_comes_back() {
    in_lab(|lab| {
        let (stage, _stand_in) = Stage::new(lab)?;
        stage.enrol()?;
        let node = stage.mesh.node(0);
        let links = || -> Result<String> {
            let status = node.status()?;
            ensure!(status["hooks"]["links"].as_array().is_some_and(|links| links.len() == 10), "{status}");
            ensure!(status["hooks"]["repaired"].as_array().is_some_and(Vec::is_empty), "{status}");
            Ok(status["hooks"].to_string())
        };
        let before = eventually(SHORT, links)?;
        let file = lab.work().join("go");
        fs::write(&file, "")?;
        let asking =
            stage.start_asking(&file, &["--over", "unconnected", "--count", "200", "--every-ms", "10", NOWHERE])?;
        let former = node.agent_pid()?;
        node.kill_agent()?;
        eventually(SHORT, || {
            ensure!(node.agent_pid()? != former && node.status()?["keeper"] == true, "the agent is not back");
            Ok(())
        })?;
        let all: Vec<Asked> = asking.report(SHORT)?;
        ensure!(all.len() == 200 && all.iter().all(|asked| asked.addresses == [CAPTURED]), "{all:?}");
        ensure!(eventually(SHORT, links)? == before, "the hooks are not those that were there");

        fs::remove_file(node.bpffs().join("loam/sendmsg4"))?;
        eventually(SHORT, || {
            stage.assert_answered(CAPTURED, &["--over", "unconnected", "--timeout-ms", "200", NOWHERE]).map(drop)
        })
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn switching_a_pod_off_and_on_loses_no_question() {
    in_lab(|lab| {
        let (stage, _stand_in) = Stage::new(lab)?;
        stage.enrol()?;
        let server = stage.server.at(53).to_string();
        let file = lab.work().join("go");
        fs::write(&file, "")?;
        let asking =
            stage.start_asking(&file, &["--over", "unconnected", "--count", "300", "--every-ms", "10", &server])?;
        for (switch, expected) in [("false", NETWORK), ("true", CAPTURED), ("false", NETWORK)] {
            annotated(&stage.mesh, &stage.client, &[("ambient.istio.io/dns-capture", switch)])?;
            for over in ["connected", "unconnected"] {
                eventually(SHORT, || stage.assert_answered(expected, &["--over", over, &server]).map(drop))?;
            }
        }
        let all: Vec<Asked> = asking.report(SHORT)?;
        let lost: Vec<&Asked> = all.iter().filter(|asked| asked.addresses.len() != 1).collect();
        ensure!(all.len() == 300 && lost.is_empty(), "{} of {}: {lost:?}", lost.len(), all.len());
        Ok(())
    });
}

#[test]
#[ignore = "network ring: cargo xtask test --ring net"]
fn a_busy_port_is_said_of_its_pod_alone() {
    in_lab(|lab| {
        let (stage, _stand_in) = Stage::new(lab)?;
        let busy = lab.node(0).pod("busy", "demo", "busy")?;
        let taken = answer(&busy, INSIDE, &["127.0.0.1:15053".parse()?])?;
        annotated(&stage.mesh, &busy, &[("ambient.istio.io/dns-capture", "true")])?;
        stage.enrol()?;
        stage.assert_answered(CAPTURED, &["--over", "connected", NOWHERE])?;
        eventually(SHORT, || {
            let status = stage.mesh.pod_status(&busy)?;
            let reason = status["reason"].as_str().unwrap_or_default();
            ensure!(status["state"] == "failed" && reason.contains("port 15053, on which questions"), "{status}");
            Ok(())
        })?;
        taken.kill()?;
        stage.mesh.wait_for_state(&[&busy], "enrolled")
    });
}
