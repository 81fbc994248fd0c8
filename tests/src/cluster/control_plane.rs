//! The processes of the control plane and how they are called.

use std::path::Path;

use super::address;
use crate::lab;

/// A part of the control plane, by the name of its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
}

impl Part {
    pub(super) const ALL: [Self; 4] = [Self::Etcd, Self::ApiServer, Self::ControllerManager, Self::Scheduler];

    /// Name of its program.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }

    /// Its arguments in the cluster whose files are in `work`.
    pub(super) fn arguments(self, work: &Path) -> Vec<String> {
        let work = work.display();
        let pki = format!("{work}/pki");
        match self {
            Self::Etcd => vec![
                "--name=loam".into(),
                format!("--data-dir={work}/etcd"),
                // The cluster does not outlive the machine, so it need not wait for the disk.
                "--unsafe-no-fsync".into(),
                "--log-level=warn".into(),
                "--listen-client-urls=http://127.0.0.1:2379".into(),
                "--advertise-client-urls=http://127.0.0.1:2379".into(),
                "--listen-peer-urls=http://127.0.0.1:2380".into(),
                "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
                "--initial-cluster=loam=http://127.0.0.1:2380".into(),
            ],
            Self::ApiServer => api_server(&pki),
            Self::ControllerManager => {
                let mut arguments = caller(&format!("{work}/controller-manager.kubeconfig"));
                arguments.extend([
                    format!("--root-ca-file={pki}/ca.crt"),
                    format!("--client-ca-file={pki}/ca.crt"),
                    format!("--requestheader-client-ca-file={pki}/front-ca.crt"),
                    format!("--cluster-signing-cert-file={pki}/ca.crt"),
                    format!("--cluster-signing-key-file={pki}/ca.key"),
                    format!("--service-account-private-key-file={pki}/service-accounts.key"),
                    "--use-service-account-credentials=true".into(),
                    // With the defaults a namespace waits five seconds for its service account.
                    "--kube-api-qps=200".into(),
                    "--kube-api-burst=400".into(),
                    "--allocate-node-cidrs=false".into(),
                    // A node that is gone is seen in the time of a test.
                    "--node-monitor-grace-period=16s".into(),
                    format!("--cluster-cidr={}", address::pods()),
                    format!("--service-cluster-ip-range={}", address::services()),
                ]);
                arguments
            }
            Self::Scheduler => caller(&format!("{work}/scheduler.kubeconfig")),
        }
    }
}

/// What the two that only call the API server have in common.
fn caller(kubeconfig: &str) -> Vec<String> {
    vec![
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
    ]
}

fn api_server(pki: &str) -> Vec<String> {
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--advertise-address={}", lab::FABRIC_V4),
        format!("--secure-port={}", address::API_PORT),
        format!("--service-cluster-ip-range={}", address::services()),
        format!("--client-ca-file={pki}/ca.crt"),
        format!("--tls-cert-file={pki}/api-server.crt"),
        format!("--tls-private-key-file={pki}/api-server.key"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={pki}/service-accounts.pub"),
        format!("--service-account-signing-key-file={pki}/service-accounts.key"),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--anonymous-auth=false".into(),
        "--allow-privileged=true".into(),
        format!("--kubelet-client-certificate={pki}/api-server-as-client.crt"),
        format!("--kubelet-client-key={pki}/api-server-as-client.key"),
        format!("--kubelet-certificate-authority={pki}/ca.crt"),
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!("--requestheader-client-ca-file={pki}/front-ca.crt"),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        format!("--proxy-client-cert-file={pki}/front.crt"),
        format!("--proxy-client-key-file={pki}/front.key"),
        // It reaches webhooks at their pods: service addresses are translated on the nodes only.
        "--enable-aggregator-routing=true".into(),
    ]
}
