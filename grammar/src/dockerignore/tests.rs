use super::*;

fn cleaned(text: &str) -> Vec<String> {
    let file = IgnoreFile::parse(text).unwrap();
    let line = |pattern: &Pattern| {
        let sign = if pattern.negated { "!" } else { "" };
        format!("{}:{sign}{}", pattern.line, pattern.text)
    };
    file.patterns().iter().map(line).collect()
}

#[test]
fn reads_lines_as_a14_2_says() {
    assert_eq!(
        cleaned("\u{feff}# c\r\n/a/\r\n\n  ! b \n #x\n a/../b/./c// \n!/d\n/\n"),
        ["2:a", "4:!b", "5:#x", "6:b/c", "7:!d", "8:/"]
    );
    assert!(IgnoreFile::parse("").unwrap().is_empty());
}

#[test]
fn says_which_line_decided() {
    let file = IgnoreFile::parse("# build output\n**/bin\n!keep/bin\n").unwrap();
    let decided = |path: &[u8]| {
        let verdict = file.verdict(path);
        let index = verdict.decided_by?;
        Some((file.patterns().get(index)?.line, verdict.excluded))
    };
    assert_eq!(decided(b"a/bin/x"), Some((2, true)));
    assert_eq!(decided(b"keep/bin/x"), Some((3, false)));
    assert_eq!(decided(b"src"), None);
}

#[test]
fn takes_names_that_are_no_text() {
    let file = IgnoreFile::parse("*.o\ndir\n?\n").unwrap();
    assert!(file.verdict(b"\xff\xfe.o").excluded);
    assert!(file.verdict(b"dir/\xff").excluded);
    assert!(file.verdict(b"\xff").excluded);
    assert!(!file.verdict(b"\xff\xff").excluded);
}

#[test]
fn never_excludes_the_root() {
    let file = IgnoreFile::parse("**\n.\n").unwrap();
    assert!(!file.excludes(".") && !file.excludes(""), "A14.3");
}

#[test]
fn enters_an_excluded_directory_only_for_something_below() {
    let file = IgnoreFile::parse("*\n!src/*/keep\n!docs\n").unwrap();
    assert!(file.may_include_below(b"src"));
    assert!(file.may_include_below(b"src/a"));
    assert!(!file.may_include_below(b"src/a/keep"));
    assert!(!file.may_include_below(b"lib"));
    assert!(
        !file.may_include_below(b"docs"),
        "docs itself is back, not excluded"
    );
    let file = IgnoreFile::parse("*\n!**/keep\n").unwrap();
    assert!(file.may_include_below(b"any/where"));
}

#[test]
fn bounds_what_it_takes() {
    let line = "x".repeat(MAX_PATTERN + 1);
    assert_eq!(
        IgnoreFile::parse(&line).unwrap_err(),
        IgnoreError::TooLong { line: 1 }
    );
    let lines = "x\n".repeat(MAX_PATTERNS + 1);
    assert_eq!(IgnoreFile::parse(&lines).unwrap_err(), IgnoreError::TooMany);
    // What the engine behind it can hold is bounded too, whatever is written.
    let wild = IgnoreFile::parse(&"?*".repeat(MAX_PATTERN / 2)).unwrap();
    assert!(wild.excludes(&"a".repeat(3_000)));
}

#[test]
fn exclude_flags_are_the_same_language() {
    let patterns = ["*.txt".to_owned(), "!keep.txt".to_owned()];
    let exclude = ExcludePatterns::parse(&patterns).unwrap();
    assert!(exclude.list().excludes("a.txt") && !exclude.list().excludes("keep.txt"));
}
