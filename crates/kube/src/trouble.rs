//! Why an API server did not do what it was asked for.

use std::time::Duration;

use loam_manifest::Kind;
use loam_rt::explain;

use crate::resource::{group, plural};

/// What went wrong.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The version that was asked for is forgotten: all must be listed again.
    Gone,
    /// A watch ended as soon as it had begun.
    Ended,
    /// The server does not know the kind.
    Missing,
    /// It may not be asked, or it failed. The message says what was tried and why it failed.
    Failed(String),
}

impl Trouble {
    /// There was no answer.
    pub(crate) fn of(verb: &str, kind: Kind, error: &kube::Error) -> Self {
        let why = match error {
            // It says only that something lies beneath.
            kube::Error::Service(beneath) => explain(&**beneath),
            other => explain(other),
        };
        Self::Failed(format!("{verb} {}: {why}", plural(kind)))
    }

    /// The answer was no.
    pub(crate) fn of_status(verb: &str, kind: Kind, code: u16, message: &str) -> Self {
        let what = plural(kind);
        match code {
            410 => Self::Gone,
            404 => Self::Missing,
            403 => Self::Failed(format!(
                "{verb} {what}: forbidden; a ClusterRole of this program's service account must have the rule \
                 {{apiGroups: [{:?}], resources: [{what}], verbs: [list, watch]}}: {message}",
                group(kind)
            )),
            401 => Self::Failed(format!("{verb} {what}: the API server does not accept the token: {message}")),
            code => Self::Failed(format!("{verb} {what}: the API server answers {code}: {message}")),
        }
    }

    pub(crate) fn late(verb: &str, kind: Kind, after: Duration) -> Self {
        Self::Failed(format!("{verb} {}: no answer within {} s", plural(kind), after.as_secs()))
    }
}
