//! The flags that each instruction takes (A4.2, A4.3).

use crate::ast::Word;
use crate::diagnostic::{Diagnostic, did_you_mean, shorten, suggest};
use crate::syntax::{Flag, Node};

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// `--name`, `--name=true` or `--name=false`.
    Switch,
    /// One `--name=value`.
    Value,
    /// Any number of `--name=value`.
    Values,
}

/// The flags of an instruction, checked against what it takes.
#[derive(Debug)]
pub(super) struct Flags<'n> {
    given: &'n [Flag],
}

impl<'n> Flags<'n> {
    /// Checks flags against what the instruction takes.
    pub(super) fn check(
        node: &'n Node,
        known: &[(&'static str, Takes)],
    ) -> Result<Self, Diagnostic> {
        let given = &node.flags;
        for (index, flag) in given.iter().enumerate() {
            let Some((name, takes)) = known.iter().find(|(name, _)| *name == flag.name) else {
                return Err(unknown(node, flag, known));
            };
            let repeated = given[..index].iter().any(|before| before.name == *name);
            if repeated && *takes != Takes::Values {
                let message = format!("duplicate flag specified: {name}");
                return Err(Diagnostic::error(message, flag.span));
            }
            let missing = match (&flag.value, takes) {
                (None, takes) => *takes != Takes::Switch,
                (Some(value), Takes::Switch) => value.value.is_empty(),
                (Some(_), _) => false,
            };
            if missing {
                let message = format!("missing a value on flag: {name}");
                let hint = format!("write --{name}=VALUE, without a blank");
                return Err(Diagnostic::error(message, flag.span).with_hint(hint));
            }
        }
        Ok(Self { given })
    }

    fn all(&self, name: &'static str) -> impl Iterator<Item = &'n Flag> {
        self.given.iter().filter(move |flag| flag.name == name)
    }

    /// The value of a flag given at most once.
    pub(super) fn value(&self, name: &'static str) -> Option<Word> {
        self.all(name).find_map(|flag| flag.value.clone())
    }

    /// The values of a flag that can be repeated.
    pub(super) fn values(&self, name: &'static str) -> Vec<Word> {
        self.all(name)
            .filter_map(|flag| flag.value.clone())
            .collect()
    }

    /// The value of a switch; `None` if it is not given.
    pub(super) fn switch(&self, name: &'static str) -> Result<Option<bool>, Diagnostic> {
        let Some(flag) = self.all(name).next() else {
            return Ok(None);
        };
        let Some(value) = &flag.value else {
            return Ok(Some(true));
        };
        match value.value.to_ascii_lowercase().as_str() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => {
                let value = shorten(&value.value);
                let message = format!("expecting boolean value for flag {name}, not: {value}");
                Err(Diagnostic::error(message, flag.span))
            }
        }
    }
}

fn unknown(node: &Node, flag: &Flag, known: &[(&'static str, Takes)]) -> Diagnostic {
    let near = suggest(&flag.name, known.iter().map(|(name, _)| *name));
    let message = format!(
        "unknown flag: --{} for {}{}",
        shorten(&flag.name),
        node.keyword.value.to_uppercase(),
        did_you_mean(near.map(|name| format!("--{name}")).as_deref())
    );
    Diagnostic::error(message, flag.span)
}

/// Refuses every flag.
pub(super) fn none(node: &Node) -> Result<(), Diagnostic> {
    Flags::check(node, &[]).map(drop)
}
