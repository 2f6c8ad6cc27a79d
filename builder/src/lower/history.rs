//! The texts that history holds of instructions (A16.3).

use kiln_registry::spec::config::Healthcheck;

/// Items in quotes, a blank between them: `["a" "b"]`.
pub(super) fn quoted(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
    format!("[{}]", items.join(" "))
}

/// Items as they are, a blank between them: `[a b]`.
pub(super) fn plain(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// A text in double quotes, with escapes as Go writes them.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x0b' => quoted.push_str("\\v"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A health check with all its fields: `{Test:[CMD-SHELL x] Interval:30s ...}`.
pub(super) fn healthcheck(check: &Healthcheck) -> String {
    format!(
        "{{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        plain(&check.test),
        duration(check.interval),
        duration(check.timeout),
        duration(check.start_period),
        duration(check.start_interval),
        check.retries
    )
}

/// Nanoseconds in Go's form: `1m30s`, `1.5s`, `500ms`, `0s`.
fn duration(nanoseconds: i64) -> String {
    const SECOND: u64 = 1_000_000_000;
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => decimal(total, 1_000, "µs"),
        1_000_000..SECOND => decimal(total, 1_000_000, "ms"),
        _ => {
            let seconds = total / SECOND;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let rest = decimal(total % (60 * SECOND), SECOND, "s");
            match (hours, minutes) {
                (0, 0) => rest,
                (0, minutes) => format!("{minutes}m{rest}"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}"),
            }
        }
    };
    format!("{sign}{text}")
}

/// A number of units with the decimals that it needs.
fn decimal(value: u64, unit: u64, name: &str) -> String {
    let width = unit.to_string().len() - 1;
    let fraction = format!("{:0width$}", value % unit);
    match fraction.trim_end_matches('0') {
        "" => format!("{}{name}", value / unit),
        fraction => format!("{}.{fraction}{name}", value / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A16.3
    #[test]
    fn durations_read_like_go() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (500_000_000, "500ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (60_000_000_000, "1m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (3_661_000_000_001, "1h1m1.000000001s"),
        ] {
            assert_eq!(duration(nanoseconds), text);
        }
    }

    /// A16.3
    #[test]
    fn quotes_read_like_go() {
        let items = ["a b".to_owned(), "say \"é\"\n\\\x01\u{85}".to_owned()];
        assert_eq!(quoted(&items), r#"["a b" "say \"é\"\n\\\x01\u0085"]"#);
        assert_eq!(quoted(&[]), "[]");
        assert_eq!(plain(&items[..1]), "[a b]");
    }
}
