//! Why connections are refused or end badly.

use std::fmt::Write as _;

use loam_core::reason::Reason;

use crate::cell;

/// The page.
pub(crate) fn page() -> String {
    let mut text =
        "# Reasons\n\nWhen a connection is refused or ends badly, the access log has `reason=` and the metric \
                    `loam_connection_ends` the same word. The list is closed. `response_flags` is what Istio's metrics \
                    have for it.\n\n| reason | response_flags | what happened | what to do |\n|---|---|---|---|\n"
            .to_owned();
    for reason in Reason::ALL {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| `{}` | `{}` | {} | {} |",
            reason.as_str(),
            reason.response_flags(),
            cell(reason.meaning()),
            cell(reason.remedy()),
        );
    }
    text
}
