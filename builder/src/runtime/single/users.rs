//! Users and groups of processes that take them for theirs.

use std::collections::HashMap;

use rustix::io::Errno;

use super::calls::{self, Kind};
use super::chown::Owners;
use crate::sys::notify;

/// Leaves an id as it is.
const SAME: u32 = u32::MAX;
/// Groups that a process may have.
const MAX_GROUPS: u64 = 65_536;
/// Processes that are remembered: more than there can be at once.
const MAX_PROCESSES: usize = 100_000;
/// Parents that are asked for, one after the other.
const GENERATIONS: usize = 64;

/// Real, effective and saved ids.
type Three = [u32; 3];

/// Who a process takes itself for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Identity {
    users: Three,
    groups: Three,
    supplementary: Vec<u32>,
}

/// A process: its number and when it was started, because numbers are used again.
type Process = (u32, u64);

/// Who processes take themselves for; those that never asked to be another are what their parent is.
#[derive(Debug, Default)]
pub(super) struct Users {
    /// The step's own.
    first: Identity,
    known: HashMap<Process, Identity>,
}

impl Users {
    /// A step of root's, with this group and these others.
    pub(super) fn of_root(groups: &[u32]) -> Self {
        let (group, supplementary) = groups.split_first().unwrap_or((&0, &[]));
        Self {
            first: Identity {
                users: [0; 3],
                groups: [*group; 3],
                supplementary: supplementary.to_vec(),
            },
            known: HashMap::new(),
        }
    }

    pub(super) fn answer(
        &mut self,
        call: &notify::Call,
        change: &calls::Users,
        memory: &Owners,
        is_waiting: &dyn Fn() -> bool,
    ) -> Result<i64, Errno> {
        let (process, mut identity) = self.identity(call.thread, memory)?;
        if !is_waiting() {
            return Err(Errno::SRCH);
        }
        let old = identity.clone();
        let result = match change {
            calls::Users::SetGroups(count, address) => {
                identity.supplementary = read_groups(memory, call.thread, *count, *address)?;
                if old.users[1] == 0 {
                    Ok(0)
                } else {
                    Err(Errno::PERM)
                }
            }
            calls::Users::GetThree(kind, addresses) => {
                for (id, address) in identity.ids(*kind).iter().zip(addresses) {
                    memory.write_memory(call.thread, *address, &id.to_ne_bytes())?;
                }
                Ok(0)
            }
            calls::Users::GetGroups(room, address) => {
                let groups = &identity.supplementary;
                let bytes: Vec<u8> = groups.iter().flat_map(|id| id.to_ne_bytes()).collect();
                match *room & u64::from(u32::MAX) {
                    0 => {}
                    room if room < groups.len() as u64 => return Err(Errno::INVAL),
                    _ => memory.write_memory(call.thread, *address, &bytes)?,
                }
                i64::try_from(groups.len()).map_err(|_| Errno::INVAL)
            }
            simple => identity.change(simple),
        };
        // Remembered whether it changed or not: its children are asked about when it is gone.
        if result.is_ok() {
            if self.known.len() >= MAX_PROCESSES {
                self.known.clear();
            }
            self.known.insert(process, identity);
        }
        result
    }

    /// Finds out who a thread's process takes itself for.
    fn identity(&self, thread: u32, memory: &Owners) -> Result<(Process, Identity), Errno> {
        let first = process(thread, memory)?;
        let mut at = first;
        for _ in 0..GENERATIONS {
            if let Some(identity) = self.known.get(&at.0) {
                return Ok((first.0, identity.clone()));
            }
            // A process whose parent is gone, or outside of the step, began as root.
            let Ok(parent) = process(at.1, memory) else {
                break;
            };
            at = parent;
        }
        Ok((first.0, self.first.clone()))
    }
}

/// The process of a thread, and its parent's number.
fn process(thread: u32, memory: &Owners) -> Result<(Process, u32), Errno> {
    if thread == 0 {
        return Err(Errno::SRCH);
    }
    let status = memory.text(thread, "status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<u32>().ok())
            .ok_or(Errno::SRCH)
    };
    let (group, parent) = (field("Tgid:")?, field("PPid:")?);
    let stat = memory.text(group, "stat")?;
    // The name, in parentheses, may hold anything; the start is the 20th field after it.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let start = after.split_whitespace().nth(19);
    let start = start
        .and_then(|text| text.parse().ok())
        .ok_or(Errno::SRCH)?;
    Ok(((group, start), parent))
}

fn read_groups(memory: &Owners, thread: u32, count: u64, address: u64) -> Result<Vec<u32>, Errno> {
    if count > MAX_GROUPS {
        return Err(Errno::INVAL);
    }
    let length = usize::try_from(count).map_err(|_| Errno::INVAL)? * size_of::<u32>();
    let mut bytes = vec![0; length];
    if length > 0 && memory.memory(thread, address, &mut bytes)? < length {
        return Err(Errno::FAULT);
    }
    let groups = bytes.as_chunks::<4>().0.iter();
    Ok(groups.map(|bytes| u32::from_ne_bytes(*bytes)).collect())
}

impl Identity {
    fn ids(&mut self, kind: Kind) -> &mut Three {
        match kind {
            Kind::User => &mut self.users,
            Kind::Group => &mut self.groups,
        }
    }

    /// The rules of the kernel: root changes as it likes, others between the ids that they have.
    fn change(&mut self, change: &calls::Users) -> Result<i64, Errno> {
        let root = self.users[1] == 0;
        let may = |old: Three, new: u32| root || new == SAME || old.contains(&new);
        match *change {
            calls::Users::Set(kind, id) => {
                let ids = self.ids(kind);
                if id == SAME {
                    return Err(Errno::INVAL);
                }
                if root {
                    *ids = [id; 3];
                } else if ids[0] == id || ids[2] == id {
                    ids[1] = id;
                } else {
                    return Err(Errno::PERM);
                }
            }
            calls::Users::SetTwo(kind, real, effective) => {
                let ids = self.ids(kind);
                let old = *ids;
                if !may([old[0], old[1], old[1]], real) || !may(old, effective) {
                    return Err(Errno::PERM);
                }
                *ids = [pick(real, old[0]), pick(effective, old[1]), old[2]];
                if real != SAME || effective != SAME && effective != old[0] {
                    ids[2] = ids[1];
                }
            }
            calls::Users::SetThree(kind, new) => {
                let ids = self.ids(kind);
                let old = *ids;
                if !new.iter().all(|id| may(old, *id)) {
                    return Err(Errno::PERM);
                }
                for (id, new) in ids.iter_mut().zip(new) {
                    *id = pick(new, *id);
                }
            }
            // Hands back the old one; it counts for files only, which belong to one user anyway.
            calls::Users::SetFiles(kind, _) | calls::Users::GetEffective(kind) => {
                return Ok(i64::from(self.ids(kind)[1]));
            }
            calls::Users::Get(kind) => return Ok(i64::from(self.ids(kind)[0])),
            calls::Users::SetGroups(..)
            | calls::Users::GetThree(..)
            | calls::Users::GetGroups(..) => return Err(Errno::NOSYS),
        }
        Ok(0)
    }
}

fn pick(new: u32, old: u32) -> u32 {
    if new == SAME { old } else { new }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calls::Users as Change;

    #[test]
    fn root_becomes_another_and_cannot_go_back() {
        let mut identity = Identity::default();
        assert_eq!(identity.change(&Change::Set(Kind::User, 1000)), Ok(0));
        assert_eq!(identity.users, [1000; 3]);
        assert_eq!(
            identity.change(&Change::Set(Kind::User, 0)),
            Err(Errno::PERM)
        );
        assert_eq!(identity.change(&Change::Get(Kind::User)), Ok(1000));
        assert_eq!(identity.change(&Change::Get(Kind::Group)), Ok(0));
    }

    #[test]
    fn the_saved_user_can_be_taken_again() {
        let mut identity = Identity::default();
        let drop = Change::SetThree(Kind::User, [SAME, 7, SAME]);
        assert_eq!(identity.change(&drop), Ok(0));
        assert_eq!(identity.users, [0, 7, 0]);
        assert_eq!(identity.change(&Change::GetEffective(Kind::User)), Ok(7));
        assert_eq!(
            identity.change(&Change::SetThree(Kind::User, [8, SAME, SAME])),
            Err(Errno::PERM)
        );
        assert_eq!(identity.change(&Change::SetTwo(Kind::User, SAME, 0)), Ok(0));
        assert_eq!(identity.users, [0, 0, 0]);
        assert_eq!(identity.change(&Change::SetTwo(Kind::User, 5, 5)), Ok(0));
        assert_eq!(identity.users, [5, 5, 5]);
    }
}
