use proptest::prelude::*;
use regex::{NoExpand, Regex};

use super::*;

/// The same pattern as a regular expression.
fn regex(pattern: &str, anchor: &str, greedy: bool) -> Regex {
    let run = if greedy { ".*" } else { ".*?" };
    let source: String = pattern
        .chars()
        .map(|letter| match letter {
            '*' => run.to_owned(),
            '?' => ".".to_owned(),
            letter => regex::escape(letter.encode_utf8(&mut [0; 4])),
        })
        .collect();
    Regex::new(&format!("(?s){anchor}{source}")).unwrap()
}

fn turned(text: &str) -> String {
    text.chars().rev().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn finds_what_a_regular_expression_finds(text in "[abé*?]{0,6}", value in "[abé\n]{0,12}") {
        let pattern = Pattern::parse(&text).unwrap();
        for longest in [false, true] {
            let found = regex(&text, "^", longest).find(&value).map_or(0, |found| found.end());
            prop_assert_eq!(pattern.without_prefix(&value, longest), &value[found..]);
            let back = turned(&value);
            let found = regex(&turned(&text), "^", longest).find(&back).map_or(0, |found| found.end());
            let rest = &value[..value.len() - found];
            prop_assert_eq!(pattern.without_suffix(&value, longest), rest);
        }
        let all = regex(&text, "", true).replace_all(&value, NoExpand("<>"));
        prop_assert_eq!(pattern.replace(&value, "<>", true, 1000).unwrap(), all);
        let first = regex(&text, "", true).replace(&value, NoExpand("<>"));
        prop_assert_eq!(pattern.replace(&value, "<>", false, 1000).unwrap(), first);
    }
}
