//! The way in for pods that are just being made: the runtime calls our plugin, the plugin asks here, and the sandbox is
//! ready when its pod is captured.

pub mod chain;
pub mod install;
pub mod serve;
pub mod waiting;

pub use serve::Question;
