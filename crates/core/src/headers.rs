//! Headers of a CONNECT that tell the other side who is at this end. They serve logs and metrics only: what they say
//! is never used to decide.

pub mod baggage;
pub mod forwarded;
pub mod traceparent;

/// Longest value of one such header that is read.
pub const MAX_HEADER_BYTES: usize = 4096;

/// Why a header was not understood. It is then treated as absent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Longer than [`MAX_HEADER_BYTES`].
    #[error("{name} of {bytes} bytes is longer than {MAX_HEADER_BYTES}")]
    TooLong {
        /// The header.
        name: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// Not of the form that the header must have.
    #[error("{name}: {why}")]
    Malformed {
        /// The header.
        name: &'static str,
        /// The rule it breaks.
        why: &'static str,
    },
}

fn bounded<'a>(name: &'static str, value: &'a str) -> Result<&'a str, HeaderError> {
    match value.len() {
        bytes if bytes > MAX_HEADER_BYTES => Err(HeaderError::TooLong { name, bytes }),
        _ => Ok(value),
    }
}
