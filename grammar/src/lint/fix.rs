//! Fixing what is mechanical: edits to a new text that means the same.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::diagnostic::{Diagnostic, Edit};
use crate::source::Span;
use crate::syntax::{self, Node, keyword};

/// How often a text is looked at again, since one fix can show what another has to do.
const ROUNDS: usize = 10;

/// How many sets of fixes are tried in one round, when some of them break the file.
const TRIALS: usize = 64;

/// What is wrong with a text.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    /// How many mistakes keep it from being built.
    pub errors: usize,
    /// What could be fixed, or takes a person.
    pub warnings: Vec<Diagnostic>,
}

/// Applies edits to a text. Of two that overlap, the one that starts later is left out.
#[must_use]
pub fn fix(text: &str, edits: &[Edit]) -> String {
    let mut edits: Vec<&Edit> = edits.iter().collect();
    edits.sort_by_key(|edit| edit.span);
    let mut fixed = String::with_capacity(text.len());
    let mut done = 0;
    for edit in edits {
        let range = edit.span.range();
        if let Some(kept) = text.get(done..range.start)
            && text.is_char_boundary(range.end)
        {
            fixed.push_str(kept);
            fixed.push_str(&edit.text);
            done = range.end;
        }
    }
    fixed.push_str(text.get(done..).unwrap_or_default());
    fixed
}

/// Fixes a text until nothing that can be fixed is left. `look` finds what is wrong with a text,
/// without what the user does not want to hear of; a round after which it finds more mistakes than
/// before is taken back.
pub fn fix_all(text: &str, look: &mut dyn FnMut(&str) -> Looked) -> String {
    let mut text = text.to_owned();
    let mut found = look(&text);
    for _ in 0..ROUNDS {
        let Some(next) = round(&text, &found.warnings) else {
            break;
        };
        let after = look(&next);
        if after.errors > found.errors {
            break;
        }
        (text, found) = (next, after);
    }
    text
}

/// Applies what can be applied at once; `None` if that is nothing.
fn round(text: &str, warnings: &[Diagnostic]) -> Option<String> {
    let before = syntax::parse(text).ok()?.nodes;
    let mut trials = TRIALS;
    let mut good: Vec<&[Edit]> = Vec::new();
    let mut open = vec![apart(warnings)];
    while let Some(set) = open.pop() {
        if set.is_empty() || trials == 0 {
            continue;
        }
        trials -= 1;
        let edits: Vec<Edit> = good
            .iter()
            .chain(&set)
            .copied()
            .flatten()
            .cloned()
            .collect();
        if keeps_meaning(text, &before, &fix(text, &edits), &edits) {
            good.extend(set);
        } else if set.len() > 1 {
            let (first, second) = set.split_at(set.len() / 2);
            open.extend([second.to_vec(), first.to_vec()]);
        }
    }
    let edits: Vec<Edit> = good.into_iter().flatten().cloned().collect();
    let fixed = fix(text, &edits);
    (fixed != text).then_some(fixed)
}

/// The fixes that do not touch each other, first come first served: a fix is done as a whole or
/// waits for the next round.
fn apart(warnings: &[Diagnostic]) -> Vec<&[Edit]> {
    let mut taken = BTreeMap::new();
    let mut chosen = Vec::new();
    for fix in warnings.iter().map(|warning| warning.fix.as_slice()) {
        let free = |edit: &Edit| {
            let Span { start, end } = edit.span;
            let before = taken.range(..=end).next_back();
            start <= end && before.is_none_or(|(_, taken_end)| *taken_end < start)
        };
        if !fix.is_empty() && fix.iter().all(free) {
            taken.extend(fix.iter().map(|edit| (edit.span.start, edit.span.end)));
            chosen.push(fix);
        }
    }
    chosen
}

/// Whether a fixed text still says what it said: it parses, instructions that no edit touched are
/// the same in the same order, and those of which only case and blanks were changed are the same
/// but for case. What else a fix makes of the instruction it touches is up to its rule.
fn keeps_meaning(text: &str, before: &[Node], fixed: &str, edits: &[Edit]) -> bool {
    if crate::parse(fixed).is_err() {
        return false;
    }
    let Ok(after) = syntax::parse(fixed) else {
        return false;
    };
    let mut edits: Vec<&Edit> = edits.iter().collect();
    edits.sort_by_key(|edit| edit.span);
    let mut moved = 0;
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for edit in edits {
        let range = edit.span.range();
        let quiet = is_quiet(text.get(range.clone()).unwrap_or_default(), &edit.text);
        let start = range.start.saturating_add_signed(moved);
        let end = start + edit.text.len();
        moved += edit.text.len().cast_signed() - range.len().cast_signed();
        old.push(Place { range, quiet });
        new.push(Place {
            range: start..end,
            quiet,
        });
    }
    said(before, &old) == said(&after.nodes, &new)
}

/// Where an edit was made.
struct Place {
    range: Range<usize>,
    /// Whether only case or blanks were changed.
    quiet: bool,
}

fn is_quiet(old: &str, new: &str) -> bool {
    old.eq_ignore_ascii_case(new) || (old.trim().is_empty() && new.trim().is_empty())
}

/// What instructions say, but those that were really changed.
fn said(nodes: &[Node], places: &[Place]) -> Vec<Vec<String>> {
    let mut said = Vec::new();
    for node in nodes {
        let span = node.span.range();
        // An edit right behind an instruction may be its last word; one right before it is not.
        let first = places.partition_point(|place| place.range.end <= span.start);
        let touching = places[first..]
            .iter()
            .take_while(|place| place.range.start <= span.end);
        let (mut touched, mut quiet) = (false, true);
        for place in touching {
            touched = true;
            quiet &= place.quiet;
        }
        match (touched, quiet) {
            (false, _) => said.push(words(node)),
            (true, true) => said.push(words(node).iter().map(|word| word.to_lowercase()).collect()),
            (true, false) => {}
        }
    }
    said
}

/// All that an instruction says, whatever the places.
fn words(node: &Node) -> Vec<String> {
    let mut words = vec![keyword(node).to_owned(), node.json.to_string()];
    for flag in &node.flags {
        let value = flag.value.as_ref().map(|value| value.value.clone());
        words.extend(std::iter::once(flag.name.clone()).chain(value));
    }
    words.extend(node.args.iter().map(|word| word.value.clone()));
    for heredoc in &node.heredocs {
        words.extend([heredoc.name.clone(), heredoc.content.clone()]);
    }
    words.extend(node.sub.iter().flat_map(|sub| self::words(sub)));
    words
}
