//! Which step of the build before a step is to be compared with.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kiln_registry::digest::Digest;

use super::description::Description;

/// How alike the instructions of two steps have to be, in parts of a hundred, unless they are at the
/// same place.
const ALIKE: usize = 40;
/// Beyond so many steps without a counterpart nobody looks for the most similar one.
const MOST: usize = 500;

/// For each step of this build the index of its counterpart in the build before: the same step, the
/// same instruction in its stage, the same in another stage, at last the most similar one of its
/// stage. Each has at most one.
pub(super) fn matched(
    before: &[(Digest, Description)],
    now: &[(Digest, &Description)],
) -> Vec<Option<usize>> {
    let mut matching = Matching {
        found: vec![None; now.len()],
        taken: BTreeSet::new(),
    };
    matching.equal(before, now, |key, _| key.to_string());
    matching.equal(before, now, |_, step| {
        format!("{}\n{}", step.stage(), step.text)
    });
    matching.equal(before, now, |_, step| step.text.clone());
    matching.alike(before, now);
    matching.found
}

struct Matching {
    found: Vec<Option<usize>>,
    taken: BTreeSet<usize>,
}

impl Matching {
    /// Pairs steps that have the same name, in their order.
    fn equal(
        &mut self,
        before: &[(Digest, Description)],
        now: &[(Digest, &Description)],
        name: impl Fn(&Digest, &Description) -> String,
    ) {
        let mut free: BTreeMap<String, VecDeque<usize>> = BTreeMap::new();
        for (index, (key, step)) in before.iter().enumerate() {
            if !self.taken.contains(&index) {
                free.entry(name(key, step)).or_default().push_back(index);
            }
        }
        for (place, (key, step)) in self.found.iter_mut().zip(now) {
            if place.is_none()
                && let Some(index) = free.get_mut(&name(key, step)).and_then(VecDeque::pop_front)
            {
                *place = Some(index);
                self.taken.insert(index);
            }
        }
    }

    /// Pairs what is left with the most similar step of the same keyword and stage, or of the same
    /// number where stages have other names now.
    fn alike(&mut self, before: &[(Digest, Description)], now: &[(Digest, &Description)]) {
        let left = self.found.iter().filter(|found| found.is_none()).count();
        if left > MOST || before.len() - self.taken.len() > MOST {
            return;
        }
        for (place, (_, step)) in self.found.iter_mut().zip(now) {
            if place.is_some() {
                continue;
            }
            let mut best: Option<(usize, usize)> = None;
            for (index, (_, other)) in before.iter().enumerate() {
                if self.taken.contains(&index) || other.keyword() != step.keyword() {
                    continue;
                }
                let same_stage = other.stage() == step.stage();
                let same_number = other.number() == step.number();
                let likeness = likeness(&other.text, &step.text);
                let enough = match (same_stage, same_number) {
                    (true, true) => 0,
                    (true, false) | (false, true) => ALIKE,
                    (false, false) => 100,
                };
                let score = likeness + usize::from(same_stage) * 20 + usize::from(same_number) * 20;
                if likeness >= enough && best.is_none_or(|(known, _)| score > known) {
                    best = Some((score, index));
                }
            }
            if let Some((_, index)) = best {
                *place = Some(index);
                self.taken.insert(index);
            }
        }
    }
}

/// How many of the words of two instructions are the same, in parts of a hundred.
fn likeness(one: &str, other: &str) -> usize {
    let words = |text: &str| -> BTreeSet<String> {
        let words = text.split_whitespace().take(1_000);
        words.map(ToOwned::to_owned).collect()
    };
    let (one, other) = (words(one), words(other));
    let common = one.intersection(&other).count();
    let all = one.union(&other).count();
    (common * 100).checked_div(all).unwrap_or(0)
}
