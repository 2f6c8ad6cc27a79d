use super::*;

fn nothing(_: &str) -> Option<String> {
    None
}

#[test]
fn bounds_the_depth() {
    let nested = |depth: usize| "${A:-".repeat(depth) + "x" + &"}".repeat(depth);
    assert_eq!(
        expand(&nested(MAX_DEPTH), '\\', &nothing).unwrap().text,
        "x"
    );
    let refused = expand(&nested(MAX_DEPTH + 1), '\\', &nothing);
    assert_eq!(refused, Err(WordError::TooDeep));
    let refused = expand(&"${A:-".repeat(1_000_000), '\\', &nothing);
    assert_eq!(refused, Err(WordError::TooDeep));
}

#[test]
fn depth_is_of_nesting_not_of_number() {
    let text = "${A:-x}".repeat(MAX_DEPTH * 10);
    assert_eq!(
        expand(&text, '\\', &nothing).unwrap().text.len(),
        MAX_DEPTH * 10
    );
}

#[test]
fn bounds_the_length() {
    let half = |_: &str| Some("x".repeat(MAX_LENGTH / 2));
    assert_eq!(expand("$A$B", '\\', &half).unwrap().text.len(), MAX_LENGTH);
    let too_long = Err(WordError::TooLong(MAX_LENGTH));
    assert_eq!(expand("$A${B}c", '\\', &half), too_long);
    assert_eq!(expand("\"$A$B$C\"", '\\', &half), too_long);
    assert_eq!(expand("${A//x/yyy}", '\\', &half), too_long);
    assert_eq!(expand("${A/x/${A}${A}}", '\\', &half), too_long);
}

#[test]
fn bounds_the_work_of_patterns() {
    let long = |_: &str| Some("a".repeat(1 << 20));
    let word = format!("${{A//*{}b/}}", "?".repeat(4_000));
    let refused = expand(&word, '\\', &long).unwrap_err();
    assert_eq!(refused, WordError::TooMuch);
    let word = format!("${{A//{}b/}}", "*a".repeat(50));
    assert_eq!(expand(&word, '\\', &long).unwrap().text.len(), 1 << 20);
}

#[test]
fn bounds_the_use_of_long_values() {
    let long = |_: &str| Some("a".repeat(1 << 20));
    for piece in ["${A:+}", "${A##*}", "${A//*/}", "\"${A%%*}\""] {
        let refused = expand(&piece.repeat(1000), '\\', &long);
        assert_eq!(refused, Err(WordError::TooMuch), "{piece}");
        assert_eq!(
            expand(&piece.repeat(10), '\\', &long).unwrap().text.len() >> 20,
            0
        );
    }
}

/// Found by fuzzing: a result that is thrown away costs as well.
#[test]
fn bounds_the_work_on_results() {
    let short = |_: &str| Some("a".repeat(1 << 10));
    let word = "${A:+${A//a/${A//a/aaaaaaaa}}}#${A##*}".repeat(100);
    let refused = expand_heredoc(&word, '\\', &short);
    assert!(refused.is_err(), "{}", refused.unwrap().text.len());
    let dropped = "${A#${A//a/${A//a/aaaaaaaa}}}".repeat(100);
    let refused = expand_heredoc(&dropped, '\\', &short).unwrap_err();
    assert_eq!(refused.source, WordError::TooMuch);
}

#[test]
fn errors_keep_their_cause() {
    use std::error::Error as _;
    let error = expand(r"${A#\x}", '\\', &nothing).unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), r"invalid escape '\x'");
}
