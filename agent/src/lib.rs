//! The agent of a node and its keeper: two processes of one program.
//!
//! The agent ([`app`]) knows which pods belong to the mesh, prepares their network namespaces, attaches the kernel
//! programs and verifies all of it; it may end at any time. The [`keeper`] owns what must not end with it.
//!
//! With the source `kubernetes` the service account needs these rules in the whole cluster, and no others:
//!
//! | apiGroups | resources | verbs |
//! |---|---|---|
//! | `""` | namespaces, pods | list, watch |
//! | `networking.k8s.io` | networkpolicies | list, watch |
//! | `""` | pods/status | patch |
//! | `""` | events | create |
//!
//! Without the one about networkpolicies it does all but to name those that keep tunnels from a pod.
//!
//! The annotation on a pod is written through `pods/status` as well, so nobody who gets hold of the account can change
//! what a pod runs.
//!
//! The container needs the capabilities BPF, CHOWN, DAC_OVERRIDE, NET_ADMIN, NET_RAW, SYS_ADMIN and SYS_PTRACE, and no
//! AppArmor or SELinux profile between it and the node's processes, which it must see (`hostPID`). It is not privileged.
//! From the node it needs:
//!
//! | path on the node | what for |
//! |---|---|
//! | `/sys/fs/bpf` | pins that outlive the container. A bpf file system must be mounted there already |
//! | `/sys/fs/cgroup` | the root of cgroup v2, at another place than the container's own; `--cgroup` says where |
//! | `/opt/cni/bin`, `/etc/cni/net.d` | the CNI plugin; `--cni-bin-dir` and `--cni-conf-dir` say where they are |
//! | `/run/loam` | the sockets, the status and the records of pods; the ztunnel's container has it, too |

pub mod app;
pub mod cleanup;
pub mod cni;
pub mod config;
pub mod enrol;
pub mod keeper;
pub mod keeper_link;
pub mod kubelet;
pub mod netns;
pub mod notices;
pub mod pods;
pub mod processes;
pub mod redirect;
pub mod status;
pub mod sys;
