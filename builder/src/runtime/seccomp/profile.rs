//! Profiles as docker writes them, parsed and reduced to what they mean on one machine.

use rustix::system::uname;
use serde::Deserialize;

use super::error::ProfileError;
use super::syscalls::{Abi, FOREIGN, Table};
use crate::runtime::privileges::CAPABILITY_NAMES;

/// Largest error number that a filter can answer with.
const MAX_ERRNO: u32 = 4095;
const EPERM: u32 = 1;

/// What a profile says on one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::runtime) struct Profile {
    /// What happens to calls that no rule is about.
    pub(in crate::runtime) default: Action,
    /// The calling conventions that it lets in; the machine's own is the first.
    pub(in crate::runtime) abis: Vec<Abi>,
    /// Flags for the kernel, `SECCOMP_FILTER_FLAG_*`.
    pub(in crate::runtime) flags: u32,
    /// In the order written.
    pub(in crate::runtime) rules: Vec<Rule>,
    /// Names of calls that kiln does not know.
    pub(in crate::runtime) unknown: Vec<String>,
}

/// What happens to some calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::runtime) struct Rule {
    /// The calls.
    pub(in crate::runtime) names: Vec<String>,
    /// What happens to them.
    pub(in crate::runtime) action: Action,
    /// If all of these hold; when two are about one argument, if one of them holds, as runc reads
    /// it.
    pub(in crate::runtime) conditions: Vec<Condition>,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runtime) enum Action {
    /// It is made.
    Allow,
    /// It is made, and the kernel's log tells.
    Log,
    /// A tracer is told this number; without one it fails with ENOSYS.
    Trace(u16),
    /// It fails with this error.
    Errno(u16),
    /// The process gets SIGSYS.
    Trap,
    /// The thread is killed.
    KillThread,
    /// The process is killed.
    KillProcess,
}

impl Action {
    fn parse(name: &str, errno: Option<u32>, place: &str) -> Result<Self, ProfileError> {
        let number = errno.unwrap_or(EPERM);
        let data = u16::try_from(number).ok().filter(|_| number <= MAX_ERRNO);
        let data = data.ok_or_else(|| {
            ProfileError::invalid(
                place,
                format!("{number} is no error number: up to {MAX_ERRNO}"),
            )
        });
        let action = match name {
            "SCMP_ACT_ALLOW" => Self::Allow,
            "SCMP_ACT_LOG" => Self::Log,
            "SCMP_ACT_TRACE" => return data.map(Self::Trace),
            "SCMP_ACT_ERRNO" => return data.map(Self::Errno),
            "SCMP_ACT_TRAP" => Self::Trap,
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Self::KillThread,
            "SCMP_ACT_KILL_PROCESS" => Self::KillProcess,
            "SCMP_ACT_NOTIFY" => {
                let problem = "SCMP_ACT_NOTIFY asks another program, which kiln does not do: \
                               use SCMP_ACT_ERRNO or SCMP_ACT_ALLOW";
                return Err(ProfileError::invalid(place, problem));
            }
            other => {
                let problem = format!(
                    "unknown action `{other}`: one of SCMP_ACT_ALLOW, SCMP_ACT_ERRNO, \
                     SCMP_ACT_KILL_PROCESS, SCMP_ACT_KILL_THREAD, SCMP_ACT_KILL, SCMP_ACT_TRAP, \
                     SCMP_ACT_LOG, SCMP_ACT_TRACE"
                );
                return Err(ProfileError::invalid(place, problem));
            }
        };
        Ok(action)
    }

    /// As profiles name it.
    pub(in crate::runtime) fn name(self) -> &'static str {
        match self {
            Self::Allow => "SCMP_ACT_ALLOW",
            Self::Log => "SCMP_ACT_LOG",
            Self::Trace(_) => "SCMP_ACT_TRACE",
            Self::Errno(_) => "SCMP_ACT_ERRNO",
            Self::Trap => "SCMP_ACT_TRAP",
            Self::KillThread => "SCMP_ACT_KILL_THREAD",
            Self::KillProcess => "SCMP_ACT_KILL_PROCESS",
        }
    }

    /// The number that goes with it.
    pub(in crate::runtime) fn errno(self) -> Option<u16> {
        match self {
            Self::Trace(number) | Self::Errno(number) => Some(number),
            _ => None,
        }
    }

    /// Whether the call may be made.
    pub(super) fn allows(self) -> bool {
        matches!(self, Self::Allow | Self::Log | Self::Trace(_))
    }
}

/// A condition on an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runtime) struct Condition {
    /// Which argument, from 0.
    pub(in crate::runtime) index: u32,
    /// How it is compared.
    pub(in crate::runtime) comparison: Comparison,
    /// What with; the mask of a masked comparison.
    pub(in crate::runtime) value: u64,
    /// What the masked argument has to be.
    pub(in crate::runtime) masked: u64,
}

/// Comparisons of 64-bit arguments, without sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runtime) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    MaskedEqual,
}

/// Comparisons by the names of profiles.
const COMPARISONS: [(&str, Comparison); 7] = [
    ("SCMP_CMP_NE", Comparison::NotEqual),
    ("SCMP_CMP_LT", Comparison::Less),
    ("SCMP_CMP_LE", Comparison::LessOrEqual),
    ("SCMP_CMP_EQ", Comparison::Equal),
    ("SCMP_CMP_GE", Comparison::GreaterOrEqual),
    ("SCMP_CMP_GT", Comparison::Greater),
    ("SCMP_CMP_MASKED_EQ", Comparison::MaskedEqual),
];

impl Comparison {
    /// As profiles name it.
    pub(in crate::runtime) fn name(self) -> &'static str {
        let mut known = COMPARISONS.iter();
        known
            .find(|(_, one)| *one == self)
            .map_or("", |(name, _)| name)
    }
}

/// What the conditions of a profile are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::runtime) struct Host {
    pub(super) abi: Abi,
    pub(super) kernel: (u32, u32),
    /// The capabilities that a step may have.
    pub(super) capabilities: &'static [&'static str],
}

impl Host {
    /// This machine, and a step on it.
    pub(super) fn current() -> Result<Self, ProfileError> {
        let abi = match std::env::consts::ARCH {
            "x86_64" => Abi::X86_64,
            "aarch64" => Abi::Aarch64,
            "riscv64" => Abi::Riscv64,
            other => return Err(ProfileError::Machine(other)),
        };
        let release = uname().release().to_string_lossy().into_owned();
        Ok(Self {
            abi,
            // Whatever runs this is newer than any profile asks for.
            kernel: version(&release).unwrap_or((u32::MAX, 0)),
            capabilities: &CAPABILITY_NAMES,
        })
    }

    /// As profiles name the machine in `includes` and `excludes`.
    fn name(&self) -> &'static str {
        match self.abi {
            Abi::X86_64 => "amd64",
            Abi::X32 => "x32",
            Abi::X86 => "x86",
            Abi::Aarch64 => "arm64",
            Abi::Arm => "arm",
            Abi::Riscv64 => "riscv64",
        }
    }
}

/// `6.18.4-extra` as 6 and 18.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, digits.parse().ok()?))
}

/// The file. A field that is not here is a mistake: one letter less in `args`, and a rule would
/// hold always.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    default_action: Option<String>,
    default_errno_ret: Option<u32>,
    /// A name for the number, which podman's profiles add.
    #[serde(rename = "defaultErrno")]
    _default_errno: Option<String>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<Architectures>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Calls>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Architectures {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Calls {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    /// See [`Document::_default_errno`].
    #[serde(rename = "errno")]
    _errno: Option<String>,
    args: Option<Vec<Argument>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    /// Of use to libseccomp only.
    #[serde(rename = "priority")]
    _priority: Option<u32>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Profile {
    /// Reads a profile for a machine.
    ///
    /// # Errors
    /// [`ProfileError`] that names the place.
    pub(super) fn parse(text: &str, host: &Host) -> Result<Self, ProfileError> {
        let document: Document = serde_json::from_str(text)?;
        if document.listener_path.is_some() || document.listener_metadata.is_some() {
            let problem = "asks another program, which kiln does not do: leave it out";
            return Err(ProfileError::invalid("listenerPath", problem));
        }
        let Some(default) = &document.default_action else {
            let problem = "missing: it says what happens to calls that are not listed";
            return Err(ProfileError::invalid("defaultAction", problem));
        };
        let default = Action::parse(default, document.default_errno_ret, "defaultAction")?;
        let abis = document.abis(host)?;
        let flags = flags(document.flags.as_deref())?;
        let (mut rules, mut unknown) = (Vec::new(), Vec::new());
        let table = Table::get();
        for (number, calls) in document.syscalls.into_iter().flatten().enumerate() {
            let place = format!("syscalls[{number}]");
            let Some(rule) = calls.rule(host, &place)? else {
                continue;
            };
            let foreign = rule.names.iter().filter(|name| !table.knows(name));
            unknown.extend(foreign.cloned());
            // It says nothing new, but would contradict rules with conditions.
            if rule.action != default {
                rules.push(rule);
            }
        }
        unknown.sort_unstable();
        unknown.dedup();
        Ok(Self {
            default,
            abis,
            flags,
            rules,
            unknown,
        })
    }
}

impl Document {
    /// The calling conventions that it names, as far as the machine has them; its own always.
    fn abis(&self, host: &Host) -> Result<Vec<Abi>, ProfileError> {
        let listed = self.architectures.as_deref().unwrap_or_default();
        let map = self.arch_map.as_deref().unwrap_or_default();
        if !listed.is_empty() && !map.is_empty() {
            let problem = "given together with `architectures`: use one of them";
            return Err(ProfileError::invalid("archMap", problem));
        }
        let mut named = Vec::new();
        for (index, name) in listed.iter().enumerate() {
            named.extend(architecture(name, &format!("architectures[{index}]"))?);
        }
        for (index, entry) in map.iter().enumerate() {
            let place = format!("archMap[{index}]");
            let own = architecture(&entry.architecture, &place)?;
            for name in entry.sub_architectures.iter().flatten() {
                let sub = architecture(name, &format!("{place}.subArchitectures"))?;
                named.extend(sub.filter(|_| own == Some(host.abi)));
            }
        }
        let family = host.abi.family().iter().copied();
        Ok(family
            .filter(|abi| *abi == host.abi || named.contains(abi))
            .collect())
    }
}

/// An architecture; none for one that kiln does not run on.
fn architecture(name: &str, place: &str) -> Result<Option<Abi>, ProfileError> {
    match Abi::named(name) {
        None if !FOREIGN.contains(&name) => {
            let problem = format!("unknown architecture `{name}`: for example SCMP_ARCH_X86_64");
            Err(ProfileError::invalid(place, problem))
        }
        abi => Ok(abi),
    }
}

fn flags(names: Option<&[String]>) -> Result<u32, ProfileError> {
    let Some(names) = names else {
        // What runc does when a profile does not say.
        return flag("SECCOMP_FILTER_FLAG_SPEC_ALLOW").ok_or(ProfileError::Machine("flags"));
    };
    let mut flags = 0;
    for (index, name) in names.iter().enumerate() {
        flags |= flag(name).ok_or_else(|| {
            let problem = format!(
                "`{name}` is not supported: SECCOMP_FILTER_FLAG_TSYNC, SECCOMP_FILTER_FLAG_LOG \
                 and SECCOMP_FILTER_FLAG_SPEC_ALLOW are"
            );
            ProfileError::invalid(format!("flags[{index}]"), problem)
        })?;
    }
    Ok(flags)
}

fn flag(name: &str) -> Option<u32> {
    match name {
        // There is one thread only.
        "SECCOMP_FILTER_FLAG_TSYNC" => Some(0),
        "SECCOMP_FILTER_FLAG_LOG" => Some(2),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Some(4),
        _ => None,
    }
}

impl Calls {
    /// The rule, if it holds on the machine. A mistake is one on every machine.
    fn rule(self, host: &Host, place: &str) -> Result<Option<Rule>, ProfileError> {
        let names = match (self.name, self.names) {
            (Some(_), Some(names)) if !names.is_empty() => {
                let problem = "both `name` and `names`: use one of them";
                return Err(ProfileError::invalid(place, problem));
            }
            (Some(name), _) => vec![name],
            (None, names) => names.unwrap_or_default(),
        };
        if names.is_empty() {
            return Err(ProfileError::invalid(
                place,
                "no `names`: list system calls",
            ));
        }
        let action = Action::parse(&self.action, self.errno_ret, &format!("{place}.action"))?;
        let mut conditions = Vec::new();
        for (index, argument) in self.args.into_iter().flatten().enumerate() {
            conditions.push(argument.condition(&format!("{place}.args[{index}]"))?);
        }
        let includes = self.includes.unwrap_or_default();
        let included = includes.facts(host, &format!("{place}.includes"))?;
        let excludes = self.excludes.unwrap_or_default();
        let excluded = excludes.facts(host, &format!("{place}.excludes"))?;
        let holds = included.all() && !excluded.any();
        Ok(holds.then_some(Rule {
            names,
            action,
            conditions,
        }))
    }
}

impl Argument {
    fn condition(self, place: &str) -> Result<Condition, ProfileError> {
        if self.index > 5 {
            let problem = format!("argument {}: a call has six, numbered from 0", self.index);
            return Err(ProfileError::invalid(format!("{place}.index"), problem));
        }
        let mut known = COMPARISONS.iter();
        let Some((_, comparison)) = known.find(|(name, _)| *name == self.op) else {
            let names = COMPARISONS.map(|(name, _)| name).join(", ");
            let problem = format!("unknown comparison `{}`: one of {names}", self.op);
            return Err(ProfileError::invalid(format!("{place}.op"), problem));
        };
        Ok(Condition {
            index: self.index,
            comparison: *comparison,
            value: self.value,
            masked: self.value_two,
        })
    }
}

/// What of a [`Filter`] is true; `None` for what it does not ask.
struct Facts {
    arches: Option<bool>,
    kernel: Option<bool>,
    /// One for each capability.
    caps: Vec<bool>,
}

impl Facts {
    fn each(&self) -> impl Iterator<Item = bool> {
        let others = self.arches.into_iter().chain(self.kernel);
        others.chain(self.caps.iter().copied())
    }

    fn all(&self) -> bool {
        self.each().all(|fact| fact)
    }

    fn any(&self) -> bool {
        self.each().any(|fact| fact)
    }
}

impl Filter {
    fn facts(&self, host: &Host, place: &str) -> Result<Facts, ProfileError> {
        let has = |cap: &String| host.capabilities.contains(&cap.as_str());
        let kernel = match &self.min_kernel {
            None => None,
            Some(text) => {
                let asked = version(text).ok_or_else(|| {
                    let problem = format!("`{text}` is no version of Linux: for example 4.8");
                    ProfileError::invalid(format!("{place}.minKernel"), problem)
                })?;
                Some(host.kernel >= asked)
            }
        };
        let arches = self.arches.as_deref().unwrap_or_default();
        Ok(Facts {
            arches: (!arches.is_empty()).then(|| arches.iter().any(|name| name == host.name())),
            kernel,
            caps: self.caps.iter().flatten().map(has).collect(),
        })
    }
}
