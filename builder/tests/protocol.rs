//! `kiln debug` through the binary: `testdata/protocol/<verb>.jsonl` holds a case on each line,
//! `{"in":request,"out":answer}`; a request that is a string is sent as that text, so that it may be
//! malformed. Answers are compared letter by letter. `KILN_UPDATE=1` rewrites them, and adds them to
//! lines that are `{"in":request}` alone: read the difference before committing it. Lines that begin
//! with `#` name the rule that the cases below them test.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use serde::de::IgnoredAny;

/// One line of a file that is a case.
struct Case {
    line: usize,
    /// The request as the file has it.
    written: String,
    /// The request as it is sent.
    request: String,
    answer: Option<String>,
}

fn file(verb: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../testdata/protocol/{verb}.jsonl"))
}

/// Reads `{"in":request,"out":answer}`, both as they are written.
fn case(line: usize, text: &str) -> Case {
    let rest = text.strip_prefix(r#"{"in":"#).expect(text);
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
    values.next().expect(text).expect(text);
    let (written, rest) = rest.split_at(values.byte_offset());
    let answer = rest.strip_prefix(r#","out":"#);
    let answer = answer.map(|rest| rest.strip_suffix('}').expect(text).to_owned());
    let request = if written.starts_with('"') {
        serde_json::from_str(written).unwrap()
    } else {
        written.to_owned()
    };
    Case {
        line,
        written: written.to_owned(),
        request,
        answer,
    }
}

fn kiln(verb: &str) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["debug", verb])
        // Nothing but standard input counts.
        .env_clear()
        .env("KILN_ROOT", "/nonexistent/kiln")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, input, output)
}

/// Sends lines and gives what comes back, line by line.
fn ask(verb: &str, input: Vec<u8>) -> Vec<String> {
    let (mut child, mut stdin, stdout) = kiln(verb);
    let writer = thread::spawn(move || stdin.write_all(&input).unwrap());
    let answers = stdout.lines().map(Result::unwrap).collect();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success(), "{verb} ended badly");
    answers
}

/// Runs the cases of a verb, of which there are at least so many.
fn run(verb: &str, least: usize) {
    let text = fs::read_to_string(file(verb)).unwrap();
    let is_case = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let cases: Vec<Case> = (1..)
        .zip(text.lines())
        .filter(|(_, line)| is_case(line))
        .map(|(number, line)| case(number, line))
        .collect();
    assert!(cases.len() >= least, "{verb}: only {} cases", cases.len());
    let lines: Vec<&str> = cases.iter().map(|case| case.request.as_str()).collect();
    let answers = ask(verb, (lines.join("\n") + "\n").into_bytes());
    assert_eq!(answers.len(), cases.len(), "{verb}: one answer a request");
    if std::env::var_os("KILN_UPDATE").is_some() {
        let mut answered = cases.iter().zip(&answers);
        let lines = text.lines().map(|line| match is_case(&line) {
            true => {
                let (case, answer) = answered.next().unwrap();
                format!("{{\"in\":{},\"out\":{answer}}}\n", case.written)
            }
            false => format!("{line}\n"),
        });
        fs::write(file(verb), lines.collect::<String>()).unwrap();
        return;
    }
    let mut wrong = String::new();
    for (case, answer) in cases.iter().zip(&answers) {
        if case.answer.as_ref() != Some(answer) {
            let expected = case.answer.as_deref().unwrap_or("an answer");
            wrong += &format!(
                "{verb}.jsonl:{}: {}\n  expected {expected}\n  got      {answer}\n",
                case.line, case.request
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn words() {
    run("words", 60);
}

#[test]
fn parse() {
    run("parse", 80);
}

#[test]
fn ignore() {
    run("ignore", 60);
}

#[test]
fn reference() {
    run("reference", 50);
}

#[test]
fn every_line_is_answered_at_once() {
    let (mut child, mut stdin, mut stdout) = kiln("words");
    for word in ["a", "b"] {
        writeln!(stdin, "{{\"text\":\"{word}\"}}").unwrap();
        let mut answer = String::new();
        stdout.read_line(&mut answer).unwrap();
        let expected = format!("{{\"words\":[\"{word}\"],\"matched\":[],\"unmatched\":[]}}\n");
        assert_eq!(answer, expected);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_line_that_is_too_long_is_refused_and_passed_over() {
    let answers = |length: usize| {
        let mut input = b"{\"text\":\"".to_vec();
        input.resize(length - 2, b' ');
        input.extend(b"\"}\n{\"text\":\"next\"}");
        ask("words", input)
    };
    let next = r#"{"words":["next"],"matched":[],"unmatched":[]}"#;
    let [long, after] = &answers(64 << 20)[..] else {
        panic!("two lines have two answers");
    };
    assert!(
        long.contains("the expanded text is longer than 1048576 bytes"),
        "{long:.200}"
    );
    assert_eq!(after, next);
    let refused = r#"{"error":"the line is longer than 67108864 bytes"}"#;
    assert_eq!(answers((64 << 20) + 1), [refused, next]);
    assert_eq!(answers((64 << 20) + 70_000), [refused, next]);
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let answers = ask("words", b"{\"text\":\"\xff\"}\n{\"text\":\"a\"}\n".to_vec());
    assert_eq!(answers.len(), 2);
    assert!(answers[0].starts_with(r#"{"error":"invalid request: invalid utf-8"#));
    assert_eq!(answers[1], r#"{"words":["a"],"matched":[],"unmatched":[]}"#);
    assert!(ask("words", Vec::new()).is_empty());
}
