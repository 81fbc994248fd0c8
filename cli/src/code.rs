//! Every failure has a number that never changes its meaning.

use std::fmt;

/// How the process ends: part of the interface, as codes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It could not be done or found out.
    Failed = 1,
    /// It was found out, and the answer is no: a check failed, there are differences, the wait is over.
    No = 3,
    /// The command line is wrong.
    Usage = 64,
}

/// Declares codes, so that the list in the documents cannot miss one.
macro_rules! codes {
    ($($(#[doc = $meaning:literal])+ $name:ident = $number:literal, $exit:ident, $remedy:literal;)+) => {
        /// What went wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $($(#[doc = $meaning])+ $name,)+
        }

        impl Code {
            /// All of them, by number.
            pub const ALL: &[Code] = &[$(Code::$name),+];

            /// The number.
            pub fn number(self) -> u16 {
                match self { $(Code::$name => $number),+ }
            }

            /// What it means, for the documents.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$name => concat!($($meaning),+).trim_ascii()),+ }
            }

            /// What to do about it in general, for the documents.
            pub fn remedy(self) -> &'static str {
                match self { $(Code::$name => $remedy),+ }
            }

            /// How the process ends.
            pub fn exit(self) -> Exit {
                match self { $(Code::$name => Exit::$exit),+ }
            }
        }
    };
}

codes! {
    /// The command line is wrong.
    Usage = 1001, Usage, "`loam help`";
    /// Nothing says where a cluster is.
    NoKubeconfig = 1101, Failed, "`loam --kubeconfig PATH ...`, or set `KUBECONFIG`";
    /// The file that says where a cluster is cannot be used.
    BadKubeconfig = 1102, Failed, "`kubectl config get-contexts`, then `loam --context NAME ...`";
    /// The API server does not answer.
    Unreachable = 1103, Failed, "`kubectl cluster-info`";
    /// The API server does not know who asks.
    Unauthorized = 1104, Failed, "`kubectl auth whoami`, then sign in again";
    /// Who asks may not.
    Forbidden = 1105, Failed, "an administrator grants the permission that is named";
    /// The API server refuses, or answers with what is no answer.
    Refused = 1106, Failed, "what the API server says";
    /// There is no such namespace.
    NoNamespace = 1201, Failed, "`kubectl get namespaces`";
    /// There is no such node, or the mesh does not run on it.
    NoNode = 1202, Failed, "`loam status` lists the nodes";
    /// The mesh runs on several nodes, and none was named.
    WhichNode = 1203, Failed, "`--node NAME`";
    /// No pod of the controller is ready.
    NoController = 1204, Failed, "`loam check`";
    /// What was named is not known to that node.
    NotKnown = 1205, No, "`loam config diff --node NAME` tells whether the controller knows it";
    /// A program in a pod does not answer.
    Silent = 1206, Failed, "the logs of that pod";
    /// A program in a pod answers with what this version cannot read.
    Unreadable = 1207, Failed, "`loam version`, then the program of the mesh's version";
    /// There is no such waypoint.
    NoWaypoint = 1208, Failed, "`loam waypoint list -A`";
    /// The mesh is not installed.
    NotInstalled = 1301, No, "`loam install`";
    /// The API server does not know the Gateway API.
    NoGatewayApi = 1302, Failed, "the definitions of the Gateway API, which the chart does not bring along";
    /// The version of Kubernetes is too old.
    OldKubernetes = 2001, No, "a newer Kubernetes";
    /// A permission is missing.
    MissingPermission = 2002, No, "an administrator grants the permission that is named";
    /// A kind of object is not known to the API server.
    MissingKind = 2003, No, "`loam upgrade`";
    /// Another mesh is installed, or its parts have our names.
    OtherMesh = 2004, No, "uninstall the other mesh first";
    /// The kernel of a node is too old.
    OldKernel = 2005, No, "a newer kernel, or a node that is not in the mesh";
    /// The pods of the mesh are not let in to their namespace.
    PodSecurity = 2006, No, "the label of the namespace that is named";
    /// The controller is not ready.
    ControllerDown = 2007, No, "the events of its pods";
    /// The mesh is not ready on a node.
    NodeDown = 2008, No, "the events of the pod on that node";
    /// Parts of the mesh have different versions.
    Skew = 2009, No, "`loam upgrade`";
    /// Pods that belong to the mesh are not captured.
    NotCaptured = 2010, No, "`loam status` says why for each";
    /// There is no node that the mesh could run on.
    NoLinux = 2011, No, "a node with Linux";
    /// NetworkPolicies keep tunnels of the mesh from pods.
    TunnelsBlocked = 2012, No, "`loam status` names the policies; add port 15008 to their rules";
    /// A label does not mean what it seems to mean.
    WrongLabel = 2013, No, "the label that is named";
    /// Another installation of this mesh is in the cluster.
    OtherInstallation = 2014, No, "one installation for a cluster";
    /// The namespace is never enrolled.
    NeverEnrolled = 3001, Failed, "another namespace";
    /// Not all pods were captured in time.
    Late = 3002, No, "`loam status` says what each waits for";
    /// What a node knows is not what the controller serves.
    Differences = 3003, No, "restart the proxy of that node when they stay";
    /// The namespace has another waypoint.
    OtherWaypoint = 3004, Failed, "`--overwrite`";
    /// A Gateway that is no waypoint has the name.
    OtherGateway = 3005, Failed, "another `--name`";
    /// A waypoint is not programmed.
    NotProgrammed = 3006, No, "`loam waypoint status` says why";
    /// Helm is not installed.
    NoHelm = 4001, Failed, "install Helm 3 and see that `helm version` works";
    /// Helm failed.
    Helm = 4002, Failed, "what Helm says";
    /// The mesh is already installed.
    Installed = 4003, Failed, "`loam upgrade`";
    /// Namespaces are still enrolled.
    StillEnrolled = 4004, Failed, "`loam uninstall --unenroll`";
    /// A file cannot be written or read.
    Files = 5001, Failed, "what the system says";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LOAM-{}", self.number())
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The codes as a table of Markdown.
pub fn markdown() -> String {
    let row = |code: &Code| {
        let status = code.exit() as u8;
        format!("| {code} | {} | {} | {status} |\n", code.meaning(), code.remedy())
    };
    let rows: String = Code::ALL.iter().map(row).collect();
    format!("| code | what it means | what helps | exit status |\n|---|---|---|---|\n{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_in_order() {
        let numbers: Vec<u16> = Code::ALL.iter().map(|code| code.number()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }

    /// `LOAM_BLESS=1 cargo test` writes the table anew.
    #[test]
    fn the_documents_have_every_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pages/troubleshooting.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- codes: cli/src/code.rs -->\n", "<!-- end of codes -->");
        let (before, rest) = text.split_once(begin).unwrap();
        let (table, after) = rest.split_once(end).unwrap();
        if std::env::var_os("LOAM_BLESS").is_some() {
            std::fs::write(path, format!("{before}{begin}{}{end}{after}", markdown())).unwrap();
            return;
        }
        assert_eq!(table, markdown(), "LOAM_BLESS=1 cargo test -p loam-cli writes the table");
    }
}
