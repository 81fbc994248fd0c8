use std::cell::RefCell;

use super::*;

const CONFIG: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "type": "loam-cni", "socket": "/run/loam/cni.sock",
    "agent": {"namespace": "istio-system", "name": "ztunnel"}, "outside": ["kube-system"],
    "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/proc/self/ns/net"}],
                   "ips": [{"address": "10.0.0.7/24", "interface": 0}, {"address": "fd00::7/64"}], "dns": {}}}"#;

/// Calls with an agent that gives this answer, or is not there; and what it was asked.
fn called(command: &str, pod: &str, config: &str, answer: Option<&str>) -> (Result<Option<Value>, Failure>, Vec<Ask>) {
    let (namespace, name) = pod.split_once('/').unwrap_or_default();
    let environment = Environment {
        command: command.into(),
        netns: "/proc/self/ns/net".into(),
        args: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=u-1"),
    };
    let asked = RefCell::new(Vec::new());
    let outcome = call(&environment, config.as_bytes(), |socket, question| {
        asked.borrow_mut().push(question.clone());
        let why = std::io::Error::from(std::io::ErrorKind::NotFound);
        match answer {
            Some(error) => Ok(Answer { error: error.into() }),
            None => Err(AskError { socket: socket.into(), why }),
        }
    });
    (outcome, asked.into_inner())
}

fn code(outcome: Result<Option<Value>, Failure>) -> u32 {
    outcome.map_or_else(|failure| failure.code, |_| 0)
}

#[test]
fn a_pod_that_is_in_the_mesh_gets_what_the_plugins_before_gave_it() {
    let (outcome, asked) = called("ADD", "shop/web", CONFIG, Some(""));
    let config: Value = serde_json::from_str(CONFIG).unwrap();
    assert_eq!(outcome, Ok(Some(config["prevResult"].clone())));
    let [Ask::Add(sandbox)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((&*sandbox.namespace, &*sandbox.name, &*sandbox.uid), ("shop", "web", "u-1"));
    assert_eq!(sandbox.addresses, ["10.0.0.7", "fd00::7"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(sandbox.inode, inode(Path::new("/proc/self/ns/net")));
    assert_ne!(sandbox.inode, 0);
}

#[test]
fn a_sandbox_fails_and_is_tried_again_without_the_agent_or_its_consent() {
    for (answer, says) in [(None, "/run/loam/cni.sock"), (Some("waiting for the ztunnel"), "waiting for the ztunnel")] {
        let failure = called("ADD", "shop/web", CONFIG, answer).0.unwrap_err();
        assert_eq!(failure.code, code::TRY_AGAIN);
        assert!(failure.msg.contains(says) && failure.msg.contains("shop/web"), "{}", failure.msg);
    }
}

#[test]
fn the_agents_own_pods_and_those_that_are_never_in_the_mesh_start_without_it_and_nobody_elses() {
    for (pod, is_free) in [
        ("kube-system/coredns-x4k2p", true),
        ("istio-system/ztunnel-x4k2p", true),
        ("istio-system/ztunnel", false),
        ("istio-system/ztunnel-canary-x4k2p", false),
        ("istio-system/ztunnel-x4k2", false),
        ("istio-system/istiod-x4k2p", false),
        ("shop/ztunnel-x4k2p", false),
    ] {
        let (outcome, asked) = called("ADD", pod, CONFIG, None);
        assert_eq!((outcome.is_ok(), asked.is_empty()), (is_free, is_free), "{pod}");
    }
}

#[test]
fn a_sandbox_always_goes() {
    let no_socket = CONFIG.replace("socket", "other");
    for (config, answer) in [(CONFIG, Some("")), (CONFIG, None), (CONFIG, Some("no")), (&no_socket, None), ("{", None)]
    {
        assert_eq!(called("DEL", "shop/web", config, answer).0, Ok(None), "{config}");
        assert_eq!(called("DEL", "", config, answer).0, Ok(None), "{config}");
    }
    assert!(matches!(called("DEL", "shop/web", CONFIG, None).1[..], [Ask::Delete(_)]));
}

#[test]
fn what_is_wrong_with_a_call_has_its_code() {
    let without = |part: &str| CONFIG.replace(part, "other");
    for (command, pod, config, expected) in [
        ("ADD", "shop/web", without("prevResult"), code::INVALID_CONFIGURATION),
        ("ADD", "shop/web", without("socket"), code::INVALID_CONFIGURATION),
        ("ADD", "", CONFIG.to_owned(), code::INVALID_ENVIRONMENT),
        ("ADD", "shop/web", "{".to_owned(), code::DECODING_FAILURE),
        ("ADD", "shop/web", CONFIG.replace("1.0.0", "0.2.0"), code::INCOMPATIBLE_VERSION),
        ("CHECK", "shop/web", without("prevResult"), code::INVALID_CONFIGURATION),
        ("STATUS", "", "{".to_owned(), code::DECODING_FAILURE),
        ("MIX", "shop/web", CONFIG.to_owned(), code::INVALID_ENVIRONMENT),
    ] {
        assert_eq!(code(called(command, pod, &config, Some("")).0), expected, "{command} {pod} {config}");
    }
}

#[test]
fn a_check_says_what_the_agent_says_and_upkeep_asks_nobody() {
    assert_eq!(called("CHECK", "shop/web", CONFIG, Some("")).0, Ok(None));
    assert_eq!(code(called("CHECK", "shop/web", CONFIG, Some("not captured")).0), code::NOT_CAPTURED);
    assert_eq!(code(called("CHECK", "shop/web", CONFIG, None).0), code::TRY_AGAIN);
    for command in ["STATUS", "GC"] {
        assert_eq!(called(command, "", CONFIG, None), (Ok(None), vec![]), "{command}");
    }
}

#[test]
fn an_entry_is_read_back_as_what_it_was_made_from() {
    let agent = DaemonSet { namespace: "n".into(), name: "d".into() };
    let mut entry = entry(Path::new("/run/x.sock"), &agent, &["kube-system"]);
    entry["cniVersion"] = "1.0.0".into();
    let config = read(entry.to_string().as_bytes()).unwrap();
    assert_eq!((config.socket, config.agent), (Some("/run/x.sock".into()), Some(agent)));
    assert_eq!(config.outside, ["kube-system"]);
}

#[test]
fn an_entry_of_the_version_before_or_after_is_understood() {
    for (what, config) in [
        (
            "before the agent's own pods were named",
            CONFIG.replace("\"agent\"", "\"former\"").replace("\"outside\"", "\"else\""),
        ),
        ("with what is not known yet", CONFIG.replace("\"socket\"", "\"patience\": {\"seconds\": 3}, \"socket\"")),
    ] {
        let (outcome, asked) = called("ADD", "shop/web", &config, Some(""));
        assert!(outcome.is_ok(), "{what}: {outcome:?}");
        assert!(matches!(&asked[..], [Ask::Add(_)]), "{what}: {asked:?}");
    }
}
