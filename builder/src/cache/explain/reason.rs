//! Reasons of misses, in the user's words and for programs.

use std::fmt;

use kiln_registry::digest::Digest;
use serde_json::{Value, json};

use super::files::FileChanges;
use crate::store::Eviction;

/// Differences that a message names before it says how many more there are.
const CLAUSES: usize = 4;
/// Characters of a value that a message shows.
const SHOWN: usize = 60;

/// Why a step has to be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The user said so; the flag.
    Forced(&'static str),
    /// The same step was executed before, and its result is gone: why, and since how many seconds.
    Evicted(Eviction, Option<u64>),
    /// There was no such step.
    NeverBuilt,
    /// Something is not as it was.
    Changed(Vec<Difference>),
    /// The same step before it was executed again and left other files.
    OtherResult {
        /// The step before it.
        step: String,
    },
    /// Nothing changed, and yet there is no result: another build of it did not come to its end.
    Unfinished,
}

/// One difference between a step and its counterpart in the build before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Something that the instruction says.
    Part {
        /// What it is.
        what: String,
        /// The values, where they may be shown.
        values: Option<(String, String)>,
    },
    /// A variable.
    Variable {
        /// Its name.
        name: String,
        /// Whether an `ARG` sets it, not an `ENV`.
        argument: bool,
        /// Its value before; `None` where it was not set.
        from: Option<String>,
        /// Its value now.
        to: Option<String>,
        /// Whether its values are not to be shown.
        secret: bool,
    },
    /// An image that it stands on or reads.
    Image {
        /// Whether it stands on it.
        base: bool,
        /// The names before and now.
        names: (String, String),
        /// The digests before and now.
        digests: (Digest, Digest),
    },
    /// A step that it stands on or reads, or the one where that begins.
    Step {
        /// That step.
        step: String,
        /// Whether there was no such step.
        new: bool,
    },
    /// It stands on, or reads, something else.
    Input {
        /// Whether it stands on it.
        base: bool,
        /// What it was.
        from: String,
        /// What it is.
        to: String,
    },
    /// A download or a repository gave something else.
    Source {
        /// Its address.
        address: String,
    },
    /// A mount.
    Mount {
        /// Where it appears.
        target: String,
        /// What happened to it.
        change: MountChange,
    },
    /// The files that it copies; nothing is known of them where they were too many.
    Files(Option<FileChanges>),
}

/// What happened to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountChange {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It has other options.
    Changed,
}

impl MountChange {
    fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forced(flag) => f.write_str(flag),
            Self::Evicted(why, seconds) => evicted(f, *why, *seconds),
            Self::NeverBuilt => f.write_str("never built"),
            Self::Changed(differences) => {
                for (index, difference) in differences.iter().take(CLAUSES).enumerate() {
                    let comma = if index > 0 { "; " } else { "" };
                    write!(f, "{comma}{difference}")?;
                }
                match differences.len().saturating_sub(CLAUSES) {
                    0 => Ok(()),
                    1 => f.write_str("; 1 more change"),
                    more => write!(f, "; {more} more changes"),
                }
            }
            Self::OtherResult { step } => write!(f, "{step} was executed again"),
            Self::Unfinished => f.write_str("never finished"),
        }
    }
}

fn evicted(f: &mut fmt::Formatter<'_>, why: Eviction, seconds: Option<u64>) -> fmt::Result {
    let since = seconds.map_or_else(String::new, |seconds| format!(" {}", ago(seconds)));
    match why {
        Eviction::Removed => write!(f, "evicted by gc{since}"),
        Eviction::Damaged => write!(f, "its files were damaged, and removed{since}"),
        Eviction::Unsafe => write!(f, "lost when the machine stopped, before{since}"),
        Eviction::Lost => f.write_str("its files are gone from the store"),
        Eviction::Failed => write!(f, "it failed{since}"),
    }
}

/// A time that has passed.
fn ago(seconds: u64) -> String {
    let units = [
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let unit = units.iter().find(|(length, _)| seconds >= *length);
    unit.map_or_else(
        || "just now".to_owned(),
        |(length, noun)| {
            let count = seconds / length;
            let end = if count == 1 { "" } else { "s" };
            format!("{count} {noun}{end} ago")
        },
    )
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Part { what, values: None } => write!(f, "{what} changed"),
            Self::Part {
                what,
                values: Some((from, to)),
            } => write!(f, "{what} {} -> {}", value(Some(from)), value(Some(to))),
            Self::Variable {
                name,
                argument,
                from,
                to,
                secret,
            } => {
                let keyword = if *argument { "ARG" } else { "ENV" };
                if *secret {
                    return write!(f, "{keyword} {name} changed");
                }
                let (from, to) = (value(from.as_deref()), value(to.as_deref()));
                write!(f, "{keyword} {name} {from} -> {to}")
            }
            Self::Image {
                base,
                names: (from, to),
                digests,
            } => {
                let what = if *base { "base image" } else { "image" };
                if from == to {
                    let (before, now) = (short(&digests.0), short(&digests.1));
                    write!(f, "{what} {} moved {before} -> {now}", familiar(to))
                } else {
                    write!(f, "{what} {} -> {}", familiar(from), familiar(to))
                }
            }
            Self::Step { step, new: false } => write!(f, "{step} changed"),
            Self::Step { step, new: true } => write!(f, "{step} is new"),
            Self::Input { base, from, to } => {
                let verb = if *base { "stands on" } else { "reads" };
                write!(f, "{verb} {} instead of {}", familiar(to), familiar(from))
            }
            Self::Source { address } => write!(f, "{address} gave something else"),
            Self::Mount { target, change } => write!(f, "mount {target} {}", change.word()),
            Self::Files(Some(changes)) => f.write_str(&changes.text()),
            Self::Files(None) => f.write_str("the copied files changed"),
        }
    }
}

/// A value as part of a message, on one line and not too long.
fn value(value: Option<&str>) -> String {
    let Some(text) = value else {
        return "(unset)".to_owned();
    };
    if text.is_empty() {
        return "(empty)".to_owned();
    }
    let mut shown: String = text
        .chars()
        .take(SHOWN)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// A digest that still can be told from others.
fn short(digest: &Digest) -> String {
    format!("sha256:{}", digest.short())
}

/// The name of an image without what docker's users leave out.
fn familiar(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

impl Reason {
    /// The reason for programs: a code, the text, and what else is known.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut json = json!({ "code": self.code(), "text": self.to_string() });
        match self {
            Self::Evicted(_, Some(seconds)) => json["seconds"] = json!(seconds),
            Self::Changed(differences) => {
                json["changes"] = differences.iter().map(Difference::json).collect();
            }
            Self::OtherResult { step } => json["step"] = json!(step),
            Self::Forced(_) | Self::Evicted(_, None) | Self::NeverBuilt | Self::Unfinished => {}
        }
        json
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Forced("--no-cache") => "no-cache",
            Self::Forced(_) => "no-cache-filter",
            Self::Evicted(why, _) => match why {
                Eviction::Removed => "evicted",
                Eviction::Damaged => "damaged",
                Eviction::Unsafe => "unsafe",
                Eviction::Lost => "lost",
                Eviction::Failed => "failed",
            },
            Self::NeverBuilt => "never-built",
            Self::Changed(_) => "changed",
            Self::OtherResult { .. } => "other-result",
            Self::Unfinished => "unfinished",
        }
    }
}

impl Difference {
    fn json(&self) -> Value {
        let text = self.to_string();
        match self {
            Self::Part { what, values } => {
                let (from, to) = values.clone().unzip();
                json!({ "code": "instruction", "text": text, "what": what, "from": from, "to": to })
            }
            Self::Variable {
                name,
                argument,
                from,
                to,
                secret,
            } => {
                let code = if *argument { "arg" } else { "env" };
                json!({ "code": code, "text": text, "name": name, "from": from, "to": to, "secret": secret })
            }
            Self::Image {
                base,
                names,
                digests,
            } => json!({
                "code": if *base { "base-image" } else { "image" },
                "text": text,
                "name": names.1,
                "former_name": names.0,
                "from": digests.0.to_string(),
                "to": digests.1.to_string(),
            }),
            Self::Step { step, new } => {
                json!({ "code": "step", "text": text, "step": step, "new": new })
            }
            Self::Input { from, to, .. } => {
                json!({ "code": "input", "text": text, "from": from, "to": to })
            }
            Self::Source { address } => {
                json!({ "code": "source", "text": text, "address": address })
            }
            Self::Mount { target, change } => {
                json!({ "code": "mount", "text": text, "target": target, "change": change.word() })
            }
            Self::Files(changes) => {
                let mut json = json!({ "code": "files", "text": text });
                if let Some(changes) = changes {
                    json["total"] = json!(changes.total);
                    json["changed"] = json!(changes.changes.len());
                    json["files"] = changes.details().map(|detail| json!(detail)).collect();
                }
                json
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_largest_unit() {
        let table = [
            (0, "just now"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (7_300, "2 hours ago"),
            (172_800, "2 days ago"),
        ];
        for (seconds, text) in table {
            assert_eq!(ago(seconds), text);
        }
        let reason = Reason::Evicted(Eviction::Removed, Some(172_800));
        assert_eq!(reason.to_string(), "evicted by gc 2 days ago");
        assert_eq!(reason.json()["code"], "evicted");
        assert_eq!(reason.json()["seconds"], 172_800);
    }

    #[test]
    fn secrets_are_not_shown_and_long_values_are_cut() {
        let variable = |value: &str, secret| Difference::Variable {
            name: "NAME".to_owned(),
            argument: true,
            from: None,
            to: Some(value.to_owned()),
            secret,
        };
        let text = variable("1.3", false).to_string();
        assert_eq!(text, "ARG NAME (unset) -> 1.3");
        assert_eq!(variable("", true).to_string(), "ARG NAME changed");
        let long = variable(&"x".repeat(500), false).to_string();
        assert!(long.chars().count() < 100, "{long}");
        let control = variable("\u{1b}[2J", false).to_string();
        assert!(!control.contains('\u{1b}'));
    }

    #[test]
    fn a_reason_with_many_differences_names_a_few() {
        let many = (0..6).map(|number| Difference::Step {
            step: format!("step {number}/6"),
            new: false,
        });
        let reason = Reason::Changed(many.collect());
        let text = "step 0/6 changed; step 1/6 changed; step 2/6 changed; step 3/6 changed; 2 more changes";
        assert_eq!(reason.to_string(), text);
        assert_eq!(reason.json()["changes"].as_array().map(Vec::len), Some(6));
    }
}
