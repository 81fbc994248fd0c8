//! Which pod a process belongs to, as the names of its cgroups say.

use crate::pods::Uid;

/// What the kubelet calls the cgroup above those of all pods.
const ROOT: &str = "kubepods";

/// The pod that the content of a file `/proc/PID/cgroup` names; none if it names no pod, or two.
pub fn pod(text: &str) -> Option<Uid> {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut pods = paths.filter_map(|path| path.split('/').find_map(of_name));
    let pod = pods.next()?;
    pods.all(|other| other == pod).then_some(pod)
}

/// The pod of a cgroup called `kubepods-burstable-pod<uid>.slice`, with `_` for `-`, where systemd makes cgroups, and
/// `pod<uid>` elsewhere. Of a path the first such name counts, since whatever is below a pod's cgroup may be named by the
/// pod. What comes before may be `..`, as seen from a cgroup namespace.
fn of_name(name: &str) -> Option<Uid> {
    // Some runtimes append themselves and the container.
    let name = name.split(':').next().unwrap_or(name);
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => {
            let (above, uid) = slice.rsplit_once("-pod")?;
            if !above.split('-').any(|part| part == ROOT) {
                return None;
            }
            uid.replace('_', "-")
        }
        None => name.strip_prefix("pod")?.to_owned(),
    };
    is_uid(&uid).then_some(uid)
}

fn is_uid(text: &str) -> bool {
    let fits = |(at, byte): (usize, u8)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0a1b2c3d-0000-4000-8000-000000000001";
    const TWO: &str = "0a1b2c3d-0000-4000-8000-000000000002";

    /// `1` and `2` in braces stand for the two pods, `_1` and `_2` for how systemd spells them.
    fn of(text: &str) -> Option<&'static str> {
        let systemd = |uid: &str| uid.replace('-', "_");
        let text = text.replace("{1}", ONE).replace("{2}", TWO);
        let text = text.replace("{_1}", &systemd(ONE)).replace("{_2}", &systemd(TWO));
        pod(&text).map(|uid| if uid == ONE { "1" } else { "2" })
    }

    #[test]
    fn a_process_is_its_pods_however_the_node_names_cgroups_and_wherever_they_are_seen_from() {
        for text in [
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_1}.slice/cri-containerd-c.scope",
            "0::/kubepods.slice/kubepods-pod{_1}.slice/crio-c.scope/container",
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
             kubelet-kubepods-besteffort-pod{_1}.slice/cri-containerd-c.scope",
            "0::/kubepods/besteffort/pod{1}/c",
            "0::/kubepods/pod{1}/c",
            "0::/kubelet/kubepods/burstable/pod{1}/c",
            "0::/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{_1}.slice/cri-containerd-c.scope",
            "0::/../../pod{1}/c",
            "0::/system.slice/containerd.service/kubepods-burstable-pod{_1}.slice:cri-containerd:c",
            "12:cpuset:/\n11:cpu,cpuacct:/kubepods/burstable/pod{1}/c\n1:name=systemd:/kubepods/burstable/pod{1}/c\n",
            // What a container makes below its own cgroup is its own.
            "0::/kubepods/burstable/pod{1}/c/kubepods/pod{2}/c",
            "0::/../../kubepods-burstable-pod{_1}.slice/c.scope/kubepods-burstable-pod{_2}.slice",
        ] {
            assert_eq!(of(text), Some("1"), "{text}");
        }
    }

    #[test]
    fn what_names_no_pod_or_two_is_no_pods() {
        for text in [
            "",
            "0::/",
            "0::/init.scope",
            "0::/system.slice/kubelet.service",
            "0::/kubepods.slice/kubepods-burstable.slice",
            "0::/pod{1}x/c",
            "0::/podium/c",
            "0::/user.slice/user-1000-pod{_1}.slice",
            "0::/kubepods/pod0a1b2c3d000040008000000000000001/c",
            "2:cpu:/kubepods/pod{1}/c\n1:name=systemd:/kubepods/pod{2}/c",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
