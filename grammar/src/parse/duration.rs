//! Durations as Go writes them: `1m30s`, `500ms`, `1.5h` (A9.4).

/// Reads a duration in nanoseconds; `None` for anything that Go's `time.ParseDuration` refuses.
pub(super) fn parse(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_i128;
    while !rest.is_empty() {
        let number = rest
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .unwrap_or(rest.len());
        let (digits, after) = rest.split_at(number);
        let unit = after
            .find(|letter: char| letter.is_ascii_digit() || letter == '.')
            .unwrap_or(after.len());
        let (name, after) = after.split_at(unit);
        total = total.checked_add(scale(digits, unit_size(name)?)?)?;
        i64::try_from(total).ok()?;
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

fn unit_size(name: &str) -> Option<i128> {
    Some(match name {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

fn scale(digits: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let mut total = match whole {
        "" => 0,
        whole => i128::from(whole.parse::<u64>().ok()?).checked_mul(unit)?,
    };
    let mut place = unit;
    for digit in fraction.bytes() {
        // Digits below a nanosecond are dropped.
        total += place * i128::from(digit - b'0') / 10;
        place /= 10;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_what_go_reads() {
        for (text, nanoseconds) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("5s", Some(5_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("500ms", Some(500_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            (".5s", Some(500_000_000)),
            ("1.s", Some(1_000_000_000)),
            ("1.000000001s", Some(1_000_000_001)),
            ("3µs", Some(3_000)),
            ("-1s", Some(-1_000_000_000)),
            ("", None),
            ("-", None),
            ("1", None),
            ("s", None),
            (".s", None),
            ("1..5s", None),
            ("1 s", None),
            ("1d", None),
            ("9999999h", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(parse(text), nanoseconds, "{text:?} (A9.4)");
        }
    }
}
