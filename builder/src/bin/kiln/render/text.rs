//! Small texts: sizes, times, and foreign text made safe for a terminal.

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

/// A text without the passwords and tokens in the addresses that it holds. What hides them is as
/// long as they are, so that places in the text stay where they were.
pub(crate) fn masked(text: &str) -> String {
    let mut clean = text.to_owned();
    for (scheme, _) in text.match_indices("://") {
        let start = scheme + 3;
        let end = text[start..]
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>'))
            .map_or(text.len(), |length| start + length);
        let address = &text[start..end];
        let authority = &address[..address.find(['/', '?', '#']).unwrap_or(address.len())];
        if let Some((user, _)) = authority.rsplit_once('@') {
            let secret = user.find(':').map_or(0, |colon| colon + 1);
            hide(&mut clean, start + secret, start + user.len());
        }
        for (name, _) in address.match_indices(['?', '&']) {
            let parameter = address[name + 1..]
                .split(['&', '#'])
                .next()
                .unwrap_or_default();
            if let Some((key, value)) = parameter.split_once('=').filter(|(key, _)| secret(key)) {
                let from = start + name + 1 + key.len() + 1;
                hide(&mut clean, from, from + value.len());
            }
        }
    }
    clean
}

/// Hides a part of a text; the name of a variable is no secret, nor is git's usual user.
fn hide(text: &mut String, from: usize, to: usize) {
    let part = &text[from..to];
    if !part.starts_with('$') && part != "git" {
        text.replace_range(from..to, &"*".repeat(to - from));
    }
}

/// Whether the parameter of an address sounds as if it were a secret.
fn secret(name: &str) -> bool {
    const WORDS: [&str; 7] = [
        "token",
        "secret",
        "passw",
        "signature",
        "sig",
        "key",
        "auth",
    ];
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
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
    fn secrets_in_addresses_are_hidden_where_they_stand() {
        let cases = [
            ("ADD https://u:geheim@h/x /y", "ADD https://u:******@h/x /y"),
            (
                "https://ghp_1@h/x http://a:b@h",
                "https://*****@h/x http://a:*@h",
            ),
            (
                "x://h/p?a=1&X-Amz-Signature=ff&b=2#c",
                "x://h/p?a=1&X-Amz-Signature=**&b=2#c",
            ),
            (
                "ssh://git@h/r https://u:$PASS@h",
                "ssh://git@h/r https://u:$PASS@h",
            ),
            ("https://h/p@v1?ref=main", "https://h/p@v1?ref=main"),
            ("\"http://u:p@ss@h\" ://", "\"http://u:****@h\" ://"),
        ];
        for (text, shown) in cases {
            assert_eq!(masked(text), shown);
        }
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
