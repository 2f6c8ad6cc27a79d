//! Why a step is not in the cache: its description is compared with that of its counterpart in the
//! build before.
//!
//! - [`description`] is what went into the definition key of a step, in the user's words; the store
//!   keeps it under that key (`store::builds`).
//! - [`files`] is the list of files that a copy selected, packed.
//! - `matching` finds the counterpart of each step, [`explain`] compares them, and [`reason`] says
//!   it to people and programs.
//!
//! All of it is pure: records in, reasons out. Values of variables whose names sound like secrets are
//! neither kept nor shown; only that they changed is.

pub mod description;
pub mod files;
mod matching;
pub mod reason;

use std::collections::BTreeMap;

use kiln_registry::digest::Digest;

use crate::graph::{Graph, VertexId};
use description::{Description, Part, Source, SourceKind, Variable, is_view};
use reason::{Difference, MountChange};

/// A step of this build: its definition key, and what went into that.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its definition key.
    pub key: Digest,
    /// What went into it.
    pub description: Description,
}

/// What is known of a step against the build before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The index of its counterpart in the build before.
    pub counterpart: Option<usize>,
    /// How it differs from that. Whether files differ is a [`Difference::Files`] without details.
    pub differences: Vec<Difference>,
    /// The step where the change began that it only follows.
    cause: Option<(String, bool)>,
}

/// Compares the steps of a build with those of the build before; ids are in order, inputs first.
#[must_use]
pub fn explain(
    graph: &Graph,
    before: &[(Digest, Description)],
    now: &BTreeMap<VertexId, Step>,
) -> BTreeMap<VertexId, Explanation> {
    let list: Vec<_> = now
        .values()
        .map(|step| (step.key, &step.description))
        .collect();
    let counterparts = matching::matched(before, &list);
    let by_key: BTreeMap<&Digest, usize> = before
        .iter()
        .enumerate()
        .map(|(index, (key, _))| (key, index))
        .collect();
    let mut explained: BTreeMap<VertexId, Explanation> = BTreeMap::new();
    for ((id, step), counterpart) in now.iter().zip(counterparts) {
        let mut explanation = Explanation {
            counterpart,
            ..Explanation::default()
        };
        if let Some((_, old)) = counterpart.and_then(|index| before.get(index)) {
            let mut differences = Vec::new();
            let compared = Inputs {
                graph,
                id: *id,
                explained: &explained,
                now,
                before,
                by_key: &by_key,
            };
            let own = instruction(old, &step.description);
            compared.compare(&old.inputs, &step.description.inputs, &mut differences);
            let inherited = match differences.first() {
                Some(Difference::Step { step, new }) if own.is_empty() => {
                    Some((step.clone(), *new))
                }
                _ => None,
            };
            differences.extend(own);
            explanation.cause = inherited;
            explanation.differences = differences;
        }
        explained.insert(*id, explanation);
    }
    explained
}

/// The inputs of a step that is being explained.
struct Inputs<'a> {
    graph: &'a Graph,
    id: VertexId,
    explained: &'a BTreeMap<VertexId, Explanation>,
    now: &'a BTreeMap<VertexId, Step>,
    before: &'a [(Digest, Description)],
    by_key: &'a BTreeMap<&'a Digest, usize>,
}

impl Inputs<'_> {
    fn compare(&self, before: &[Source], now: &[Source], found: &mut Vec<Difference>) {
        for (index, new) in now.iter().enumerate() {
            match before.get(index) {
                Some(old) if old.key == new.key => {}
                Some(old) => self.one(index, old, new, found),
                None => push(
                    found,
                    Difference::Input {
                        base: index == 0,
                        from: "nothing".to_owned(),
                        to: new.name.clone(),
                    },
                ),
            }
        }
        for old in before.iter().skip(now.len()) {
            push(
                found,
                Difference::Input {
                    base: false,
                    from: old.name.clone(),
                    to: "nothing".to_owned(),
                },
            );
        }
    }

    fn one(&self, index: usize, old: &Source, new: &Source, found: &mut Vec<Difference>) {
        let difference = match (old.kind, new.kind) {
            (SourceKind::Image, SourceKind::Image) => {
                let digests = old.image.zip(new.image);
                let names = (old.name.clone(), new.name.clone());
                digests.map(|digests| Difference::Image {
                    base: index == 0,
                    names,
                    digests,
                })
            }
            (SourceKind::Step, SourceKind::Step) => return self.step(index, old, new, found),
            (SourceKind::Url, SourceKind::Url) | (SourceKind::Git, SourceKind::Git) => {
                Some(Difference::Source {
                    address: new.name.clone(),
                })
            }
            _ => Some(Difference::Input {
                base: index == 0,
                from: old.name.clone(),
                to: new.name.clone(),
            }),
        };
        found.extend(difference);
    }

    /// A step that this one stands on or reads.
    fn step(&self, index: usize, old: &Source, new: &Source, found: &mut Vec<Difference>) {
        let input = self.graph.vertex(self.id).inputs.get(index);
        let Some((input, step)) = input.and_then(|id| Some((id, self.now.get(id)?))) else {
            return push(
                found,
                Difference::Step {
                    step: new.name.clone(),
                    new: false,
                },
            );
        };
        let explanation = self.explained.get(input);
        if let Some(explanation) = explanation {
            // What a mount shows is no step of its own: its files are this step's.
            if is_view(self.graph, *input) && !explanation.differences.is_empty() {
                for difference in &explanation.differences {
                    push(found, difference.clone());
                }
                return;
            }
            if let Some((step, new)) = explanation.cause.clone() {
                return push(found, Difference::Step { step, new });
            }
        }
        // It is just what it was, but this step did not stand on it.
        let unchanged = explanation.is_some_and(|explanation| {
            explanation.counterpart.is_some() && explanation.differences.is_empty()
        });
        let former = old.key.and_then(|key| self.by_key.get(&key));
        match former.and_then(|index| self.before.get(*index)) {
            Some((key, former)) if unchanged && *key != step.key => push(
                found,
                Difference::Input {
                    base: index == 0,
                    from: former_name(former, &step.description),
                    to: new.name.clone(),
                },
            ),
            _ => push(
                found,
                Difference::Step {
                    step: new.name.clone(),
                    new: explanation.is_some_and(|known| known.counterpart.is_none()),
                },
            ),
        }
    }
}

/// The name of a step that is not there any more: its number alone may be another's now.
fn former_name(former: &Description, now: &Description) -> String {
    if former.text == now.text {
        format!("the former {}", former.name())
    } else {
        format!("`{}`", former.text)
    }
}

fn push(found: &mut Vec<Difference>, difference: Difference) {
    if !found.contains(&difference) {
        found.push(difference);
    }
}

/// What the instruction itself says otherwise than before, and the files it copies.
fn instruction(old: &Description, new: &Description) -> Vec<Difference> {
    let mut found = Vec::new();
    parts(&old.parts, &new.parts, &mut found);
    variables(&old.variables, &new.variables, &mut found);
    mounts(&old.mounts, &new.mounts, &mut found);
    if let (Some(before), Some(after)) = (old.files, new.files)
        && before != after
    {
        found.push(Difference::Files(None));
    }
    found
}

fn parts(old: &[Part], new: &[Part], found: &mut Vec<Difference>) {
    for part in new {
        let before = old.iter().find(|old| old.what == part.what);
        if before.is_none_or(|before| before.mark != part.mark) {
            let values = before.and_then(|before| before.value.clone().zip(part.value.clone()));
            // Two long values may only differ behind the place where they are cut.
            let values = values.filter(|(from, to)| from != to);
            found.push(Difference::Part {
                what: part.what.clone(),
                values,
            });
        }
    }
}

fn variables(old: &[Variable], new: &[Variable], found: &mut Vec<Difference>) {
    let before: BTreeMap<&str, &Variable> =
        old.iter().map(|one| (one.name.as_str(), one)).collect();
    let after: BTreeMap<&str, &Variable> = new.iter().map(|one| (one.name.as_str(), one)).collect();
    let mut difference = |name: &str, from: Option<&&Variable>, to: Option<&&Variable>| {
        let one = to.or(from);
        found.push(Difference::Variable {
            name: name.to_owned(),
            argument: one.is_some_and(|one| one.argument),
            from: from.and_then(|one| one.value.clone()),
            to: to.and_then(|one| one.value.clone()),
            secret: one.is_some_and(|one| one.value.is_none()),
        });
    };
    for (name, variable) in &after {
        let known = before.get(name);
        if known.is_none_or(|known| known.mark != variable.mark) {
            difference(name, known, Some(variable));
        }
    }
    for (name, variable) in &before {
        if !after.contains_key(name) {
            difference(name, Some(variable), None);
        }
    }
    let order =
        |list: &[Variable]| -> Vec<String> { list.iter().map(|one| one.name.clone()).collect() };
    if found.is_empty() && order(old) != order(new) {
        found.push(Difference::Part {
            what: "the order of variables".to_owned(),
            values: None,
        });
    }
}

fn mounts(old: &[(String, u64)], new: &[(String, u64)], found: &mut Vec<Difference>) {
    let mut change = |target: &str, change| {
        let target = target.to_owned();
        push(found, Difference::Mount { target, change });
    };
    for (target, mark) in new {
        match old.iter().find(|(known, _)| known == target) {
            None => change(target, MountChange::Added),
            Some((_, known)) if known != mark => change(target, MountChange::Changed),
            Some(_) => {}
        }
    }
    for (target, _) in old {
        if !new.iter().any(|(known, _)| known == target) {
            change(target, MountChange::Removed);
        }
    }
}
