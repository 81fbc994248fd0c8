//! Policies as people write them, and what becomes of them where connections are judged: at L4.
//!
//! In doubt it is denied. A manifest that is wrong changes nothing: the last valid version stays in force, and the
//! status says so. Where there never was one, the manifest is read in the closed way: what cannot be understood allows
//! nothing in an ALLOW policy and is no limit in a DENY policy, and where not even the action can be understood,
//! everything is denied that the policy may be about. The last valid version lives as long as the controller does.

pub mod mtls;
pub mod pattern;
pub mod reader;
pub mod status;
pub mod translate;

#[cfg(test)]
mod tests;
