//! `traceparent`: the trace that a connection belongs to (W3C Trace Context, version 00).

use std::fmt;
use std::str::FromStr;

use super::HeaderError;

const NAME: &str = "traceparent";
/// `00-<32 hex>-<16 hex>-<2 hex>`
const BYTES: usize = 55;

/// The place of a connection in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Traceparent {
    trace: u128,
    parent: u64,
    flags: u8,
}

impl Traceparent {
    /// The begin of a trace, from random numbers; zero, which means "none" on the wire, becomes one.
    pub fn new(trace: u128, parent: u64) -> Self {
        Self { trace: trace.max(1), parent: parent.max(1), flags: 0 }
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.parent, self.flags)
    }
}

impl FromStr for Traceparent {
    type Err = HeaderError;

    fn from_str(value: &str) -> Result<Self, HeaderError> {
        let malformed = |why| HeaderError::Malformed { name: NAME, why };
        let hex = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut parts = value.split('-');
        let (version, trace, parent, flags) = (parts.next(), parts.next(), parts.next(), parts.next());
        let (Some("00"), Some(trace), Some(parent), Some(flags), None, BYTES) =
            (version, trace, parent, flags, parts.next(), value.len())
        else {
            return Err(malformed("is not 00-<32 hex>-<16 hex>-<2 hex>"));
        };
        if (trace.len(), parent.len()) != (32, 16) || ![trace, parent, flags].into_iter().all(hex) {
            return Err(malformed("is not 00-<32 hex>-<16 hex>-<2 hex>"));
        }
        let number = |_| malformed("has a part that is not a number");
        let (trace, parent) =
            (u128::from_str_radix(trace, 16).map_err(number)?, u64::from_str_radix(parent, 16).map_err(number)?);
        if trace == 0 || parent == 0 {
            return Err(malformed("has an id of zeros"));
        }
        Ok(Self { trace, parent, flags: u8::from_str_radix(flags, 16).map_err(number)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_back_as_it_was_written() {
        let text = Traceparent::new(0xabc, 7).to_string();
        assert_eq!(text, "00-00000000000000000000000000000abc-0000000000000007-00");
        assert_eq!(text.parse::<Traceparent>().unwrap().to_string(), text);
    }

    #[test]
    fn junk_is_refused() {
        let zeros = format!("00-{}-{}-00", "0".repeat(32), "1".repeat(16));
        for text in [
            "",
            "00",
            &zeros,
            &format!("01-{}-{}-00", "1".repeat(32), "1".repeat(16)),
            &format!("00-{}-{}-0", "1".repeat(32), "1".repeat(16)),
            &format!("00-{}-{}-00-", "1".repeat(32), "1".repeat(16)),
            &format!("00-{}-{}-00", "1".repeat(31), "1".repeat(17)),
            &format!("00-{}-{}-00", "A".repeat(32), "1".repeat(16)),
            &format!("00-+{}-{}-00", "1".repeat(31), "1".repeat(16)),
        ] {
            assert!(text.parse::<Traceparent>().is_err(), "{text:?} was accepted");
        }
    }
}
