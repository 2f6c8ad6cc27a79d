//! Small texts: sizes, times, and foreign text made safe for a terminal.

pub(crate) use kiln_builder::event::masked;

/// A size as docker shows it: decimal units, four significant digits (D11.6).
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    #[expect(clippy::cast_precision_loss, reason = "only four digits are shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{}", UNITS[unit])
}

/// How long ago a time (RFC 3339) was, as docker says it: `2 weeks ago`, or `N/A`.
pub(crate) fn ago(created: Option<&str>) -> String {
    let Some(time) = created.and_then(|text| text.parse::<jiff::Timestamp>().ok()) else {
        return "N/A".to_owned();
    };
    let seconds = jiff::Timestamp::now().as_second() - time.as_second();
    format!("{} ago", duration(seconds.max(0)))
}

/// A span of seconds in docker's words.
fn duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, 2..48) => format!("{hours} hours"),
        (_, _, 48..336) => format!("{} days", hours / 24),
        (_, _, 336..1440) => format!("{} weeks", hours / 24 / 7),
        (_, _, 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Foreign text for a terminal: no control characters but tabs, invalid UTF-8 replaced. Colours
/// that programs print are cut, too: what they would do to the next line is unknown. Passwords in
/// addresses are hidden.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = masked(&String::from_utf8_lossy(bytes));
    let mut clean = String::with_capacity(text.len());
    let mut characters = text.trim_end_matches('\r').chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            // An escape sequence `ESC [ ... letter` goes as a whole.
            '\u{1b}' if characters.peek() == Some(&'[') => {
                characters.next();
                while characters
                    .next_if(|c| !('\u{40}'..='\u{7e}').contains(c))
                    .is_some()
                {}
                characters.next();
            }
            '\t' => clean.push('\t'),
            c if c.is_control() => {}
            c => clean.push(c),
        }
    }
    clean
}

/// The first line of a text, with dots where more follows.
pub(crate) fn one_line(text: &str) -> String {
    match text.split_once('\n') {
        Some((first, _)) => format!("{} ...", printable(first.as_bytes())),
        None => printable(text.as_bytes()),
    }
}

/// A text of at most `width` characters, cut with dots.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d11_6_sizes_and_times_are_docker_s() {
        let sizes = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (45_670_000, "45.7MB"),
            (1_000_000_000, "1GB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        let times = [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (3_600, "About an hour"),
            (7_200, "2 hours"),
            (86_400, "24 hours"),
            (3 * 86_400, "3 days"),
            (15 * 86_400, "2 weeks"),
            (70 * 86_400, "2 months"),
            (800 * 86_400, "2 years"),
        ];
        for (seconds, text) in times {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(ago(None), "N/A");
    }

    #[test]
    fn foreign_text_cannot_command_a_terminal() {
        assert_eq!(
            printable(b"\x1b[31mred\x1b[0m\x07 \xff\ttab\r"),
            "red \u{fffd}\ttab"
        );
        assert_eq!(one_line("RUN <<EOF\nrm -rf /\nEOF"), "RUN <<EOF ...");
        assert_eq!(cut("abcdef", 4), "abc…");
    }
}
