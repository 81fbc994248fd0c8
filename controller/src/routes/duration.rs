//! Durations of the Gateway API (GEP-2257): `1h30m`, `10s`, `500ms`.

use std::time::Duration;

/// Most parts of one duration.
const MAX_PARTS: usize = 4;
/// Most digits of a part.
const MAX_DIGITS: usize = 5;

/// Reads a duration.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{} is no duration such as 10s or 1m30s", crate::resource::quoted(text));
    let (mut rest, mut millis, mut parts) = (text, 0_u64, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = behind.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, behind) = behind.split_at(unit);
        let unit = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return Err(wrong()),
        };
        parts += 1;
        if digits > MAX_DIGITS || parts > MAX_PARTS {
            return Err(wrong());
        }
        millis += number * unit;
        rest = behind;
    }
    if parts == 0 { Err(wrong()) } else { Ok(Duration::from_millis(millis)) }
}

/// Reads a limit, of which `0s` means that there is none.
pub(super) fn limit(text: &str) -> Result<Option<Duration>, String> {
    duration(text).map(|limit| Some(limit).filter(|limit| !limit.is_zero()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_the_gateway_api_writes_them() {
        let millis = |text| duration(text).map(|d| d.as_millis()).ok();
        assert_eq!([millis("10s"), millis("1h2m3s4ms"), millis("0s")], [Some(10_000), Some(3_723_004), Some(0)]);
        for wrong in ["", "10", "s", "1.5s", "-1s", "1d", "100000s", "1s1s1s1s1s", "1 s", "1S"] {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
        assert_eq!((limit("0s"), limit("0h0m")), (Ok(None), Ok(None)));
    }
}
