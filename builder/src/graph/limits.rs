//! What a process may use of the machine (B4.5), as the command line says it: pure text in, numbers
//! out. A limit is part of a step's identity (A15.2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The limits of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// `--ulimit`, by name, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// What control groups limit.
    #[serde(skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// `--shm-size`, bytes, where it is not the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
}

impl Limits {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A resource limit of a process, `setrlimit`'s.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ulimit {
    /// Its name as `ulimit` has it, `nofile` for one.
    pub name: String,
    /// The limit that holds; `u64::MAX` is none.
    pub soft: u64,
    /// How far the process may raise it; `u64::MAX` is none.
    pub hard: u64,
}

/// What control groups limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Memory, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<Amount>,
    /// Weight against others when processors are short; 1024 is usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// How often the quota is given anew, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_period: Option<u64>,
    /// Processor time in each period, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<u64>,
    /// Processors to run on, as `0-3,5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use, as `0-1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_mems: Option<String>,
    /// Processes and threads at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

/// A number, or no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Amount {
    /// At most this.
    AtMost(u64),
    /// Without a limit.
    Unlimited,
}

/// A limit that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Its value cannot be read.
    #[error("invalid value `{value}` for --{name}: expected {expected}")]
    Value {
        /// The flag, without dashes.
        name: String,
        /// What was given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// There is no such resource.
    #[error("unknown resource `{0}` in --resource")]
    Resource(String),
    /// There is no such limit.
    #[error("unknown limit `{0}` in --ulimit")]
    Ulimit(String),
    /// Two limits that exclude each other.
    #[error("--{0} and --{1} cannot be given together")]
    Conflict(&'static str, &'static str),
    /// A limit that means nothing alone.
    #[error("--{0} needs --{1}")]
    Needs(&'static str, &'static str),
    /// A limit that is lower than another that it includes.
    #[error("--{0} is lower than --{1}")]
    Lower(&'static str, &'static str),
    /// `--ulimit` with a soft limit above the hard one.
    #[error("the soft limit of --ulimit `{0}` is above the hard one")]
    SoftAboveHard(String),
}

/// The names of limits that `setrlimit` has.
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// The names that `--resource` takes; each is a flag of its own, too.
const RESOURCES: [&str; 9] = [
    "memory",
    "memory-swap",
    "cpus",
    "cpu-period",
    "cpu-quota",
    "cpu-shares",
    "cpuset-cpus",
    "cpuset-mems",
    "pids-limit",
];

/// The least that docker takes: below, not even a shell starts.
const LEAST_MEMORY: u64 = 6 << 20;
/// The period that `--cpus` stands for, microseconds; the kernel's own.
const PERIOD: u64 = 100_000;

impl Ulimit {
    /// Reads `NAME=SOFT[:HARD]`; `-1` and `unlimited` are no limit.
    ///
    /// # Errors
    /// [`LimitError`]
    pub fn parse(text: &str) -> Result<Self, LimitError> {
        let invalid = || LimitError::Value {
            name: "ulimit".to_owned(),
            value: text.to_owned(),
            expected: "NAME=SOFT[:HARD]",
        };
        let (name, values) = text.split_once('=').ok_or_else(invalid)?;
        if !ULIMITS.contains(&name) {
            return Err(LimitError::Ulimit(name.to_owned()));
        }
        let number = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            _ => text.parse().map_err(|_| invalid()),
        };
        let (soft, hard) = match values.split_once(':') {
            Some((soft, hard)) => (number(soft)?, number(hard)?),
            None => (number(values)?, number(values)?),
        };
        if soft > hard {
            return Err(LimitError::SoftAboveHard(text.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            soft,
            hard,
        })
    }

    /// Reads several, of which the last of each name counts.
    ///
    /// # Errors
    /// [`LimitError`]
    pub fn parse_all<'a>(
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Self>, LimitError> {
        let mut limits = BTreeMap::new();
        for text in texts {
            let limit = Self::parse(text)?;
            limits.insert(limit.name.clone(), limit);
        }
        Ok(limits.into_values().collect())
    }
}

impl Resources {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads settings by the names of their flags (`memory-swap`), of which the last of each name
    /// counts. A zero is as good as not given, as docker has it.
    ///
    /// # Errors
    /// [`LimitError`]
    pub fn parse<'a>(
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, LimitError> {
        let mut values = BTreeMap::new();
        for (name, value) in settings {
            let known = RESOURCES.iter().find(|known| **known == name);
            let name = *known.ok_or_else(|| LimitError::Resource(name.to_owned()))?;
            values.insert(name, value);
        }
        if values.contains_key("cpus") {
            for other in ["cpu-period", "cpu-quota"] {
                if values.contains_key(other) {
                    return Err(LimitError::Conflict("cpus", other));
                }
            }
        }
        let mut resources = Self::default();
        for (name, value) in values {
            resources.set(name, value)?;
        }
        resources.check()?;
        Ok(resources)
    }

    fn set(&mut self, name: &'static str, value: &str) -> Result<(), LimitError> {
        let invalid = |expected| LimitError::Value {
            name: name.to_owned(),
            value: value.to_owned(),
            expected,
        };
        let number = |range: std::ops::RangeInclusive<u64>, expected| match value.parse() {
            Ok(0) => Ok(None),
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(invalid(expected)),
        };
        let endless = value == "-1";
        match name {
            "memory" => {
                let expected = "a size of 6 MiB or more, as 512m or 2g";
                self.memory = match size(value) {
                    Some(0) => None,
                    Some(bytes) if bytes >= LEAST_MEMORY => Some(bytes),
                    _ => return Err(invalid(expected)),
                };
            }
            "memory-swap" => {
                let expected = "a size, as 512m or 2g, or -1 for no limit";
                self.memory_swap = match size(value) {
                    _ if endless => Some(Amount::Unlimited),
                    Some(0) => None,
                    Some(bytes) => Some(Amount::AtMost(bytes)),
                    None => return Err(invalid(expected)),
                };
            }
            "cpus" => {
                let quota = hundredths(value).ok_or_else(|| invalid("a number, as 1.5"))?;
                self.cpu_quota = (quota > 0).then_some(quota * PERIOD / 100);
                self.cpu_period = (quota > 0).then_some(PERIOD);
            }
            "cpu-period" => {
                self.cpu_period = number(1000..=1_000_000, "1000 to 1000000 microseconds")?;
            }
            "cpu-quota" if endless => self.cpu_quota = None,
            "cpu-quota" => {
                let most = u64::MAX / 1000;
                self.cpu_quota = number(1000..=most, "1000 or more microseconds, or -1")?;
            }
            "cpu-shares" => self.cpu_shares = number(2..=262_144, "a weight from 2 to 262144")?,
            "cpuset-cpus" | "cpuset-mems" => {
                let list = match value {
                    "" => None,
                    list if is_list(list) => Some(list.to_owned()),
                    _ => return Err(invalid("a list, as 0-3 or 0,2")),
                };
                match name {
                    "cpuset-cpus" => self.cpuset_cpus = list,
                    _ => self.cpuset_mems = list,
                }
            }
            _ if endless => self.pids = None,
            _ => self.pids = number(1..=4_194_304, "a number, or -1 for no limit")?,
        }
        Ok(())
    }

    fn check(&self) -> Result<(), LimitError> {
        match (self.memory, self.memory_swap) {
            (None, Some(_)) => Err(LimitError::Needs("memory-swap", "memory")),
            (Some(memory), Some(Amount::AtMost(both))) if both < memory => {
                Err(LimitError::Lower("memory-swap", "memory"))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a size as docker does: a number, also with a fraction, and `b`, `k`, `m`, `g` or `t`,
/// perhaps followed by `b` or `ib`; always in powers of 1024.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start();
    let shift = match unit.strip_suffix("ib").or(unit.strip_suffix('b')) {
        Some("") if unit != "b" => return None,
        Some(prefix) => prefix,
        None => unit,
    };
    let shift = match shift {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let thousandth = format!("{fraction:0<9}").parse::<u128>().ok()?;
    let part = u64::try_from((thousandth << shift) / 1_000_000_000).ok()?;
    whole.checked_mul(1 << shift)?.checked_add(part)
}

/// A number with at most two digits behind its point, times hundred.
fn hundredths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 2 {
        return None;
    }
    let whole: u64 = match whole {
        "" if fraction.is_empty() => return None,
        "" => 0,
        _ => whole.parse().ok().filter(|whole| *whole < 1_000_000)?,
    };
    Some(whole * 100 + format!("{fraction:0<2}").parse::<u64>().ok()?)
}

/// Whether it is a list of numbers and ranges.
fn is_list(text: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.split(',').all(|part| match part.split_once('-') {
        Some((first, last)) => number(first) && number(last),
        None => number(part),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(settings: &[(&str, &str)]) -> Result<Resources, String> {
        Resources::parse(settings.iter().copied()).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17b", 17),
            ("1k", 1 << 10),
            ("1K", 1 << 10),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("0.25t", 1 << 38),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "m",
            ".5g",
            "1x",
            "-1",
            "1.2.3",
            "99999999t",
            "1ib",
            "1e3",
        ] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    /// B4.5
    #[test]
    fn ulimits() {
        let limit = |name: &str, soft, hard| Ulimit {
            name: name.to_owned(),
            soft,
            hard,
        };
        assert_eq!(Ulimit::parse("nofile=10"), Ok(limit("nofile", 10, 10)));
        assert_eq!(Ulimit::parse("core=0:-1"), Ok(limit("core", 0, u64::MAX)));
        let all = Ulimit::parse_all(["nproc=1", "core=unlimited", "nproc=2:3"]).unwrap();
        let expected = [limit("core", u64::MAX, u64::MAX), limit("nproc", 2, 3)];
        assert_eq!(all, expected);
        for (text, error) in [
            (
                "nofile",
                "invalid value `nofile` for --ulimit: expected NAME=SOFT[:HARD]",
            ),
            (
                "nofile=x",
                "invalid value `nofile=x` for --ulimit: expected NAME=SOFT[:HARD]",
            ),
            ("files=1", "unknown limit `files` in --ulimit"),
            (
                "nofile=3:2",
                "the soft limit of --ulimit `nofile=3:2` is above the hard one",
            ),
        ] {
            assert_eq!(Ulimit::parse(text).unwrap_err().to_string(), error);
        }
    }

    /// B4.5
    #[test]
    fn resources() {
        let read = parse(&[
            ("memory", "512m"),
            ("memory-swap", "-1"),
            ("cpus", "1.5"),
            ("cpu-shares", "512"),
            ("cpuset-cpus", "0-1,3"),
            ("cpuset-mems", "0"),
            ("pids-limit", "100"),
        ]);
        let expected = Resources {
            memory: Some(512 << 20),
            memory_swap: Some(Amount::Unlimited),
            cpu_shares: Some(512),
            cpu_period: Some(100_000),
            cpu_quota: Some(150_000),
            cpuset_cpus: Some("0-1,3".to_owned()),
            cpuset_mems: Some("0".to_owned()),
            pids: Some(100),
        };
        assert_eq!(read, Ok(expected));
        let nothing = [("memory", "0"), ("cpu-quota", "-1"), ("pids-limit", "-1")];
        assert!(parse(&nothing).unwrap().is_empty());
    }

    #[test]
    fn resources_that_make_no_sense_are_refused() {
        for (settings, error) in [
            (
                &[("memory", "5m")][..],
                "invalid value `5m` for --memory: expected a size of 6 MiB or more, as 512m or 2g",
            ),
            (&[("memory-swap", "1g")], "--memory-swap needs --memory"),
            (
                &[("memory", "1g"), ("memory-swap", "1m")],
                "--memory-swap is lower than --memory",
            ),
            (
                &[("cpu-quota", "5000"), ("cpus", "1")],
                "--cpus and --cpu-quota cannot be given together",
            ),
            (
                &[("cpus", "1.234")],
                "invalid value `1.234` for --cpus: expected a number, as 1.5",
            ),
            (
                &[("cpuset-cpus", "0-")],
                "invalid value `0-` for --cpuset-cpus: expected a list, as 0-3 or 0,2",
            ),
            (
                &[("cpu-shares", "1")],
                "invalid value `1` for --cpu-shares: expected a weight from 2 to 262144",
            ),
            (&[("disk", "1")], "unknown resource `disk` in --resource"),
        ] {
            assert_eq!(parse(settings).unwrap_err(), error);
        }
    }

    /// A15.2: steps without limits are what they were before there were any.
    #[test]
    fn no_limits_are_no_text() {
        assert!(Limits::default().is_empty());
        assert_eq!(serde_json::to_string(&Limits::default()).unwrap(), "{}");
    }
}
