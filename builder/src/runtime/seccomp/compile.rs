//! From the rules of a profile to a verdict for every number of every calling convention.

use std::collections::BTreeMap;

use libc::sock_filter;

use super::error::ProfileError;
use super::filter::{self, Numbers, Section, Verdict};
use super::profile::{Action, Comparison, Condition, Profile, Rule};
use super::syscalls::{Abi, COMBINED, Table};

/// What the kernel takes (`BPF_MAXINSNS`).
const LONGEST: usize = 4096;

const ENOSYS: u16 = 38;

/// The filter program of a profile.
///
/// # Errors
/// Rules that contradict each other, and a program that is too long.
pub(super) fn program(profile: &Profile) -> Result<Vec<sock_filter>, ProfileError> {
    let table = Table::get();
    let mut sections: Vec<Section> = Vec::new();
    for abi in &profile.abis {
        let numbers = numbers(profile, table, *abi)?;
        match sections.last_mut() {
            Some(last) if *abi == Abi::X32 => last.x32 = Some(numbers),
            _ => sections.push(Section {
                audit: abi.audit(),
                // Without its rules, what is marked as x32 is no call of x86-64.
                x32: (*abi == Abi::X86_64).then(Numbers::none),
                numbers,
            }),
        }
    }
    let program = filter::program(&sections);
    match program.len() {
        length if length > LONGEST => Err(ProfileError::TooLong {
            length,
            limit: LONGEST,
        }),
        _ => Ok(program),
    }
}

/// Calls by their numbers, in order.
#[derive(Default)]
struct Calls(BTreeMap<u32, Call>);

impl Calls {
    fn of(&mut self, number: u32) -> &mut Call {
        self.0.entry(number).or_default()
    }
}

/// The rules for one call.
#[derive(Default)]
struct Call {
    /// What happens whatever the arguments are; goes before all conditions, as in libseccomp.
    always: Option<Action>,
    /// What happens if conditions hold, in order.
    chain: Vec<(Vec<Condition>, Action)>,
}

impl Call {
    fn add(&mut self, name: &str, rule: &Rule) -> Result<(), ProfileError> {
        if !rule.conditions.is_empty() {
            let alternatives = alternatives(&rule.conditions);
            self.chain
                .extend(alternatives.map(|conditions| (conditions, rule.action)));
            return Ok(());
        }
        match self.always.replace(rule.action) {
            Some(first) if first != rule.action => Err(ProfileError::Conflict {
                name: name.to_owned(),
                first: first.name(),
                second: rule.action.name(),
            }),
            _ => Ok(()),
        }
    }

    fn verdict(self, default: Action) -> Verdict {
        match self.always {
            Some(action) => Verdict::Always(filter::answer(action)),
            None => Verdict::Chain(
                self.chain
                    .into_iter()
                    .map(|(conditions, action)| (conditions, filter::answer(action)))
                    .collect(),
                filter::answer(default),
            ),
        }
    }
}

/// One list of conditions that have to hold together, or several lists of one condition when two of
/// them are about one argument.
fn alternatives(conditions: &[Condition]) -> impl Iterator<Item = Vec<Condition>> {
    let mut seen = [false; 6];
    let repeated = conditions.iter().any(|condition| {
        let seen = seen.get_mut(condition.index as usize);
        seen.is_some_and(|seen| std::mem::replace(seen, true))
    });
    let size = if repeated { 1 } else { conditions.len().max(1) };
    conditions.chunks(size).map(<[Condition]>::to_vec)
}

fn numbers(profile: &Profile, table: &Table, abi: Abi) -> Result<Numbers, ProfileError> {
    let mut calls = Calls::default();
    for rule in &profile.rules {
        for name in &rule.names {
            if let Some(number) = table.number(name, abi) {
                calls.of(number).add(name, rule)?;
            }
            if abi == Abi::X86 {
                combined(&mut calls, table, name, rule)?;
            }
        }
    }
    let default = filter::answer(profile.default);
    // A call above the newest that the profile knows does not exist as far as the step can see, so
    // that programs fall back to an older one; runc does the same.
    let unknown = match profile.default.allows() {
        true => default,
        false => filter::answer(Action::Errno(ENOSYS)),
    };
    let calls = calls.0.into_iter();
    let calls = calls.map(|(number, call)| (number, call.verdict(profile.default)));
    Ok(Numbers::new(calls.collect(), default, unknown))
}

/// Lets a rule hold for the older way of making a call too. Its arguments are behind a pointer there:
/// a rule that refuses some of them refuses all, one that allows some allows none.
fn combined(calls: &mut Calls, table: &Table, name: &str, rule: &Rule) -> Result<(), ProfileError> {
    if !rule.conditions.is_empty() && rule.action.allows() {
        return Ok(());
    }
    let found = COMBINED.binary_search_by_key(&name, |(part, ..)| part);
    let Some((_, gate, which)) = found.ok().and_then(|index| COMBINED.get(index)) else {
        return Ok(());
    };
    let Some(number) = table.number(gate, Abi::X86) else {
        return Ok(());
    };
    let condition = Condition {
        index: 0,
        comparison: Comparison::MaskedEqual,
        // `ipc` has a version in the upper half.
        value: if *gate == "ipc" { 0xffff } else { 0xffff_ffff },
        masked: *which,
    };
    let rule = Rule {
        names: Vec::new(),
        action: rule.action,
        conditions: vec![condition],
    };
    calls.of(number).add(name, &rule)
}
