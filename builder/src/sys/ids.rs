//! The ids that a user namespace has, and how they are the host's.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;

/// Inode number that the kernel gives to the first user namespace.
const INITIAL: u64 = 0xeffffffd;

/// Ids in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first of them in the namespace.
    pub inside: u32,
    /// The first of them in the namespace around it.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Which users and groups a user namespace has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// Users.
    pub users: Vec<Span>,
    /// Groups.
    pub groups: Vec<Span>,
}

/// The map of the host's own namespace.
const WHOLE: &str = "0 0 4294967295";

impl Map {
    /// The map of this process's namespace. Without /proc kiln cannot have entered one: then every
    /// id is there.
    ///
    /// # Errors
    /// When /proc cannot be read, or says what the kernel never says.
    pub fn current() -> io::Result<Self> {
        let read = |file| match std::fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(WHOLE.to_owned()),
            text => text,
        };
        Self::parse(&read("/proc/self/uid_map")?, &read("/proc/self/gid_map")?)
    }

    /// Reads maps in the form of /proc.
    ///
    /// # Errors
    /// `InvalidData` for a line that is not three numbers.
    pub fn parse(users: &str, groups: &str) -> io::Result<Self> {
        Ok(Self {
            users: spans(users)?,
            groups: spans(groups)?,
        })
    }

    /// Whether every id is there and means what it means to the host.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let whole = |spans: &[Span]| {
            matches!(
                spans,
                [Span {
                    inside: 0,
                    outside: 0,
                    count: u32::MAX
                }]
            )
        };
        whole(&self.users) && whole(&self.groups)
    }

    /// Whether there is root, and nobody else.
    #[must_use]
    pub fn is_single(&self) -> bool {
        count(&self.users) <= 1 || count(&self.groups) <= 1
    }

    /// Whether a user is there.
    #[must_use]
    pub fn has_user(&self, id: u32) -> bool {
        has(&self.users, id)
    }

    /// Whether a group is there.
    #[must_use]
    pub fn has_group(&self, id: u32) -> bool {
        has(&self.groups, id)
    }

    /// How many users there are besides root.
    #[must_use]
    pub fn subordinates(&self) -> u64 {
        count(&self.users).saturating_sub(1)
    }
}

/// `0:1000:1,1:100000:65536/...`: users, then groups.
impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, span) in self.users.iter().enumerate() {
            write!(f, "{}{span}", if index == 0 { "" } else { "," })?;
        }
        for (index, span) in self.groups.iter().enumerate() {
            write!(f, "{}{span}", if index == 0 { "/" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.inside, self.outside, self.count)
    }
}

/// Whether this process is in the host's own user namespace, as it is where there is no /proc.
///
/// # Errors
/// When /proc cannot be read.
pub fn in_initial_namespace() -> io::Result<bool> {
    match std::fs::metadata("/proc/self/ns/user") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        namespace => Ok(namespace?.ino() == INITIAL),
    }
}

fn spans(text: &str) -> io::Result<Vec<Span>> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let (inside, outside, count) = (next()?, next()?, next()?);
        Some(Span {
            inside,
            outside,
            count,
        })
    };
    let spans = text
        .lines()
        .map(|text| line(text).ok_or(io::ErrorKind::InvalidData));
    Ok(spans.collect::<Result<_, _>>()?)
}

fn has(spans: &[Span], id: u32) -> bool {
    spans
        .iter()
        .any(|span| id >= span.inside && id - span.inside < span.count)
}

fn count(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.count)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_as_proc_has_them() {
        let whole = "         0          0 4294967295\n";
        assert!(Map::parse(whole, whole).unwrap().is_whole());
        let range = "         0       1000          1\n         1     100000      65536\n";
        let map = Map::parse(range, range).unwrap();
        assert!(!map.is_whole() && !map.is_single());
        assert!(map.has_user(0) && map.has_user(65_536) && !map.has_user(65_537));
        assert!(map.has_group(1) && !map.has_group(u32::MAX));
        assert_eq!(map.subordinates(), 65_536);
        assert_eq!(
            map.to_string(),
            "0:1000:1,1:100000:65536/0:1000:1,1:100000:65536"
        );
        let single = Map::parse("0 1000 1\n", "0 100 1\n").unwrap();
        assert!(single.is_single() && !single.has_user(1));
        assert!(Map::parse("0 0\n", whole).is_err());
        assert!(Map::parse("", "").unwrap().is_single());
    }
}
