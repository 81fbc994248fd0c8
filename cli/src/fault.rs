//! Why a command did not do what it was asked for: what was tried, why it failed, what to type next.

use std::fmt::Write as _;

use loam_kube::{AskError, ClientError, ForwardError, Permission};
use loam_rt::explain;

use crate::code::Code;

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which.
    pub code: Code,
    /// What was tried, and on what.
    pub what: String,
    /// Why it failed.
    pub why: String,
    /// What to type, a command for each line; `loam` stands for this program.
    pub remedy: String,
}

impl Fault {
    /// A failure.
    pub fn new(code: Code, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, what: what.into(), why: why.into(), remedy: remedy.into() }
    }

    /// For a person. `program` is what they typed to come here.
    pub fn text(&self, program: &str) -> String {
        let mut text = format!("error {}: {}\n", self.code, self.what);
        let mut part = |name: &str, lines: &str| {
            for (i, line) in lines.lines().enumerate() {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "  {:<5}{line}", if i == 0 { name } else { "" });
            }
        };
        part("why:", &self.why);
        part("do:", &typed(&self.remedy, program));
        text
    }
}

/// Commands as they are typed where this program is called `program`.
pub fn typed(commands: &str, program: &str) -> String {
    let line = |line: &str| match line.strip_prefix("loam ") {
        Some(rest) => format!("{program} {rest}"),
        None => line.to_owned(),
    };
    commands.lines().map(line).collect::<Vec<_>>().join("\n")
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        let why = explain(&error);
        match error {
            ClientError::NotInCluster(_) => Self::new(
                Code::NoKubeconfig,
                "find the cluster",
                "neither --kubeconfig nor KUBECONFIG is given, ~/.kube/config is not there, and this is no pod",
                "kubectl config view",
            ),
            ClientError::Kubeconfig(from, _) => {
                Self::new(Code::BadKubeconfig, format!("read {from}"), why, "kubectl config get-contexts")
            }
            ClientError::Client(url, _) => {
                Self::new(Code::BadKubeconfig, format!("prepare to ask {url}"), why, "kubectl config view --minify")
            }
        }
    }
}

impl From<AskError> for Fault {
    fn from(error: AskError) -> Self {
        let text = error.to_string();
        let (what, why) = text.split_once(": ").unwrap_or((&text, "it does not say why"));
        match error {
            AskError::Unreachable(_) => Self::new(Code::Unreachable, what, why, "kubectl cluster-info"),
            AskError::Unauthorized(_) => Self::new(Code::Unauthorized, what, why, "kubectl auth whoami"),
            AskError::Forbidden { permission, .. } => Self::new(Code::Forbidden, what, why, grant(&permission, why)),
            AskError::Missing(_) | AskError::Conflict(_) | AskError::Refused(_) => {
                Self::new(Code::Refused, what, why, "kubectl get --raw /readyz?verbose")
            }
        }
    }
}

impl From<ForwardError> for Fault {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Ask(error) => error.into(),
            ForwardError::Silent(text) => {
                let (what, why) = text.split_once(": ").unwrap_or((&text, "it does not say why"));
                Self::new(Code::Silent, what, why, logs(what))
            }
            ForwardError::Status { what, status, text } => {
                let remedy = logs(&what);
                Self::new(Code::Silent, what, format!("the answer is {status}: {text}"), remedy)
            }
        }
    }
}

/// The command that shows the logs of the pod in `... of pod NAMESPACE/NAME`.
fn logs(what: &str) -> String {
    let (namespace, pod) = what.rsplit(' ').next().and_then(|name| name.split_once('/')).unwrap_or_default();
    format!("kubectl logs --namespace {namespace} {pod} --all-containers --tail 50")
}

/// What an administrator types to give a right to the user whom the API server names in its refusal.
pub fn grant(permission: &Permission, refusal: &str) -> String {
    let Permission { verb, group, resource, namespace } = permission;
    let user = refusal.split_once("User \"").and_then(|(_, rest)| rest.split_once('"')).map(|(user, _)| user);
    let full = match (*group, resource.split_once('/')) {
        ("", _) => (*resource).to_owned(),
        (group, None) => format!("{resource}.{group}"),
        (group, Some((resource, part))) => format!("{resource}.{group}/{part}"),
    };
    let name = format!("loam-{verb}-{}", resource.replace('/', "-"));
    let (role, binding, within) = match namespace {
        Some(namespace) => ("role", "rolebinding", format!(" --namespace {namespace}")),
        None => ("clusterrole", "clusterrolebinding", String::new()),
    };
    let user = user.map_or_else(
        || "\"$(kubectl config view --minify -o jsonpath='{.contexts[0].context.user}')\"".to_owned(),
        |user| format!("'{user}'"),
    );
    format!(
        "kubectl create {role} {name} --verb={verb} --resource={full}{within}\n\
         kubectl create {binding} {name} --{role}={name} --user={user}{within}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_right_names_what_an_administrator_types() {
        let permission = Permission {
            verb: "create",
            group: "",
            resource: "pods/portforward",
            namespace: Some("istio-system".into()),
        };
        let message = "get /x from port 1 of pod a/b: pods \"b\" is forbidden: User \"jane\" cannot create";
        let fault = Fault::from(AskError::Forbidden { permission, message: message.into() });
        assert_eq!(
            fault.remedy,
            "kubectl create role loam-create-pods-portforward --verb=create --resource=pods/portforward \
             --namespace istio-system\n\
             kubectl create rolebinding loam-create-pods-portforward --role=loam-create-pods-portforward --user='jane' \
             --namespace istio-system"
        );
        let permission = Permission { verb: "list", group: "apps", resource: "daemonsets", namespace: None };
        assert!(grant(&permission, "User \"jane\"").contains("--resource=daemonsets.apps\n"));
    }

    #[test]
    fn every_part_is_told_and_the_program_is_called_what_it_was_called() {
        let fault = Fault::new(Code::NotInstalled, "look", "nothing\nthere", "loam install\nkubectl get ns");
        let expected =
            "error LOAM-1301: look\n  why: nothing\n       there\n  do:  kubectl loam install\n       kubectl get ns\n";
        assert_eq!(fault.text("kubectl loam"), expected);
    }
}
