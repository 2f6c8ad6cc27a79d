//! The system calls that are answered, and the filter that lets them be.

use libc::{c_long, sock_filter};

use crate::sys::notify;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const ALLOW: u32 = 0x7fff_0000;
const NOTIFY: u32 = 0x7fc0_0000;

/// The calling convention of this program; those of older instruction sets are not answered.
#[cfg(target_arch = "x86_64")]
const AUDIT: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const AUDIT: u32 = 0xc000_00f3;

/// How a `chown` names its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    /// By a descriptor.
    Descriptor(u64),
    /// By the address of a path, from a directory; whether a link at its end is followed.
    Path {
        /// Descriptor of the directory.
        directory: u64,
        /// Address of the path.
        address: u64,
        /// Whether a link at its end is followed.
        follow: bool,
        /// Whether an empty path is the directory itself.
        empty: bool,
    },
}

/// A change of owner; `u32::MAX` leaves one as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chown {
    pub(super) file: File,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Calls about the users of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Users {
    /// `setuid`, `setgid`
    Set(Kind, u32),
    /// `setreuid`, `setregid`
    SetTwo(Kind, u32, u32),
    /// `setresuid`, `setresgid`
    SetThree(Kind, [u32; 3]),
    /// `setfsuid`, `setfsgid`
    SetFiles(Kind, u32),
    /// `setgroups`: how many, and where they are.
    SetGroups(u64, u64),
    /// `getuid`, `getgid`
    Get(Kind),
    /// `geteuid`, `getegid`
    GetEffective(Kind),
    /// `getresuid`, `getresgid`: where they go.
    GetThree(Kind, [u64; 3]),
    /// `getgroups`: how many there is room for, and where they go.
    GetGroups(u64, u64),
}

/// Of what an id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    User,
    Group,
}

/// A question about a file: where the answer goes, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) file: File,
    /// Address of the answer.
    pub(super) into: u64,
    pub(super) form: Form,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Stat,
    /// With these flags, for these fields.
    Statx(i32, u32),
}

/// A call that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Chown(Chown),
    Stat(Stat),
    Users(Users),
}

/// The numbers of all of them.
const NUMBERS: [c_long; 21] = [
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
];

/// Those that newer instruction sets do without.
#[cfg(target_arch = "x86_64")]
const OLD: [c_long; 4] = [
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_stat,
    libc::SYS_lstat,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [c_long; 0] = [];

impl Call {
    /// What a call asks for; `None` for one that is not answered.
    pub(super) fn of(call: &notify::Call) -> Option<Self> {
        old(call)
            .or_else(|| chown(call))
            .or_else(|| stat(call))
            .or_else(|| users(call))
    }
}

/// The lower half of an argument, which is what the kernel takes of an id.
fn id(argument: u64) -> u32 {
    u32::try_from(argument & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

#[cfg(target_arch = "x86_64")]
fn old(call: &notify::Call) -> Option<Call> {
    let [address, second, third, ..] = call.arguments;
    let file = |follow| File::Path {
        directory: i64::from(libc::AT_FDCWD).cast_unsigned(),
        address,
        follow,
        empty: false,
    };
    let chown = |follow| {
        Call::Chown(Chown {
            file: file(follow),
            uid: id(second),
            gid: id(third),
        })
    };
    let stat = |follow| {
        Call::Stat(Stat {
            file: file(follow),
            into: second,
            form: Form::Stat,
        })
    };
    match call.number {
        libc::SYS_chown => Some(chown(true)),
        libc::SYS_lchown => Some(chown(false)),
        libc::SYS_stat => Some(stat(true)),
        libc::SYS_lstat => Some(stat(false)),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn old(_: &notify::Call) -> Option<Call> {
    None
}

/// A path from a directory, with the flags of the calls that end in `at`.
fn file_at(directory: u64, address: u64, flags: u64) -> File {
    let flag = |flag: libc::c_int| flags & i64::from(flag).cast_unsigned() != 0;
    File::Path {
        directory,
        address,
        follow: !flag(libc::AT_SYMLINK_NOFOLLOW),
        empty: flag(libc::AT_EMPTY_PATH),
    }
}

fn stat(call: &notify::Call) -> Option<Call> {
    let [first, second, third, fourth, fifth, _] = call.arguments;
    let (file, into, form) = match call.number {
        libc::SYS_fstat => (File::Descriptor(first), second, Form::Stat),
        libc::SYS_newfstatat => (file_at(first, second, fourth), third, Form::Stat),
        libc::SYS_statx => {
            let flags = i32::try_from(third & 0xffff).unwrap_or_default();
            let form = Form::Statx(flags, id(fourth));
            (file_at(first, second, third), fifth, form)
        }
        _ => return None,
    };
    Some(Call::Stat(Stat { file, into, form }))
}

fn chown(call: &notify::Call) -> Option<Call> {
    let [first, second, third, fourth, flags, _] = call.arguments;
    let (file, uid, gid) = match call.number {
        libc::SYS_fchown => (File::Descriptor(first), second, third),
        libc::SYS_fchownat => (file_at(first, second, flags), third, fourth),
        _ => return None,
    };
    Some(Call::Chown(Chown {
        file,
        uid: id(uid),
        gid: id(gid),
    }))
}

fn users(call: &notify::Call) -> Option<Call> {
    use Kind::{Group, User};
    let [first, second, third, ..] = call.arguments;
    let (one, two, three) = (id(first), id(second), id(third));
    Some(Call::Users(match call.number {
        libc::SYS_setuid => Users::Set(User, one),
        libc::SYS_setgid => Users::Set(Group, one),
        libc::SYS_setreuid => Users::SetTwo(User, one, two),
        libc::SYS_setregid => Users::SetTwo(Group, one, two),
        libc::SYS_setresuid => Users::SetThree(User, [one, two, three]),
        libc::SYS_setresgid => Users::SetThree(Group, [one, two, three]),
        libc::SYS_setfsuid => Users::SetFiles(User, one),
        libc::SYS_setfsgid => Users::SetFiles(Group, one),
        libc::SYS_setgroups => Users::SetGroups(first, second),
        libc::SYS_getuid => Users::Get(User),
        libc::SYS_getgid => Users::Get(Group),
        libc::SYS_geteuid => Users::GetEffective(User),
        libc::SYS_getegid => Users::GetEffective(Group),
        libc::SYS_getresuid => Users::GetThree(User, [first, second, third]),
        libc::SYS_getresgid => Users::GetThree(Group, [first, second, third]),
        libc::SYS_getgroups => Users::GetGroups(first, second),
        _ => return None,
    }))
}

/// The filter: these calls are answered, all others are made.
pub(super) fn filter() -> Vec<sock_filter> {
    let numbers: Vec<u32> = NUMBERS
        .iter()
        .chain(&OLD)
        .filter_map(|number| u32::try_from(*number).ok())
        .collect();
    let statement = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    // The architecture, then the number (`struct seccomp_data`).
    let mut program = vec![
        statement(LOAD, 4, 0, 0),
        statement(JUMP_EQUAL, AUDIT, 1, 0),
        statement(RETURN, ALLOW, 0, 0),
        statement(LOAD, 0, 0, 0),
    ];
    for number in numbers {
        program.push(statement(JUMP_EQUAL, number, 0, 1));
        program.push(statement(RETURN, NOTIFY, 0, 0));
    }
    program.push(statement(RETURN, ALLOW, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: c_long, arguments: [u64; 6]) -> Option<Call> {
        Call::of(&notify::Call {
            id: 0,
            thread: 0,
            number,
            arguments,
        })
    }

    #[test]
    fn every_call_of_the_filter_is_understood() {
        for number in NUMBERS.iter().chain(&OLD) {
            assert!(call(*number, [0; 6]).is_some(), "{number}");
        }
        assert_eq!(call(libc::SYS_read, [0; 6]), None);
    }

    #[test]
    fn ids_are_the_lower_half_of_their_arguments() {
        let everything = u64::MAX;
        let same = call(libc::SYS_fchown, [3, everything, 5, 0, 0, 0]).unwrap();
        assert_eq!(
            same,
            Call::Chown(Chown {
                file: File::Descriptor(3),
                uid: u32::MAX,
                gid: 5
            })
        );
    }
}
