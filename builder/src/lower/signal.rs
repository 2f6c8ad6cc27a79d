//! Names of signals, for `STOPSIGNAL` (A9.5).

const NAMES: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Whether the text names a signal of Linux: `SIGTERM`, `term`, `15`, `RTMIN+3`.
pub(super) fn is_valid(text: &str) -> bool {
    if let Ok(number) = text.parse::<u16>() {
        return number != 0;
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |digits: &str, highest: u8| {
        let number = digits.parse::<u8>();
        number.is_ok_and(|number| (1..=highest).contains(&number))
    };
    if let Some(digits) = name.strip_prefix("RTMIN+") {
        return offset(digits, 15);
    }
    if let Some(digits) = name.strip_prefix("RTMAX-") {
        return offset(digits, 14);
    }
    NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A9.5
    #[test]
    fn signals_are_known() {
        for good in [
            "SIGTERM",
            "TERM",
            "term",
            "9",
            "SIGRTMIN+3",
            "RTMAX-14",
            "SIGRTMAX",
        ] {
            assert!(is_valid(good), "{good}");
        }
        for bad in [
            "", "0", "-9", "SIGFOO", "RTMIN+16", "RTMAX-0", "SIG", "TERM ",
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
