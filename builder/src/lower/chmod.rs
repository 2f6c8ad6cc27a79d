//! The value of `--chmod`: checked here, applied by the step (A11.8).

/// Whether a mode is octal from 0 to 07777, or symbolic like `u=rwX,go=rX`.
pub(super) fn is_valid(mode: &str) -> bool {
    if mode.starts_with(|c: char| c.is_ascii_digit()) {
        return u32::from_str_radix(mode, 8).is_ok_and(|bits| bits <= 0o7777);
    }
    mode.split(',').all(is_clause)
}

/// One clause: who, and one or more operators with what they set.
fn is_clause(clause: &str) -> bool {
    let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    if !actions.starts_with(['+', '-', '=']) {
        return false;
    }
    actions
        .split(['+', '-', '='])
        .skip(1)
        .all(|what| matches!(what, "u" | "g" | "o") || what.chars().all(|c| "rwxXst".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A11.8
    #[test]
    fn modes_are_checked() {
        for good in [
            "0",
            "644",
            "0755",
            "7777",
            "04755",
            "u=rwX,go=rX",
            "+x",
            "a-w",
            "g=u",
            "u=rw+x",
            "o=",
            "u+s,o+t",
        ] {
            assert!(is_valid(good), "{good}");
        }
        for bad in [
            "", "64a", "10000", "8", "rw", "u", "u=q", "u=rw,", "z+x", "-1",
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
