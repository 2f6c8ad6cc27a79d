//! docker's default profile as data: the table `syscalls.txt` and the calls that depend on
//! their arguments.

use super::filter::{Abi, Check, Numbers, Verdict};

const TABLE: &str = include_str!("syscalls.txt");

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

/// Flags of `clone` that make new namespaces (mount, cgroup, uts, ipc, user, pid, network).
const NAMESPACES: u32 = 0x7e02_0000;

/// Address families 1 to 11 and these: those with an implementation, without AF_ALG (38, kernel
/// cryptography) and AF_VSOCK (40, the hypervisor).
const FAMILIES: Check = Check::OneOf {
    below: 12,
    values: &[
        13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43,
        44, 45,
    ],
};

/// PER_LINUX, PER_LINUX32, both also with UNAME26, and the question what is set.
const PERSONALITIES: Check = Check::OneOf {
    below: 0,
    values: &[0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff],
};

/// The verdict for the calls whose first argument matters; the others are simply allowed.
fn conditional(name: &str) -> Verdict {
    match name {
        "clone" => Verdict::Check(Check::NoneOf(NAMESPACES), EPERM),
        // Its flags are behind a pointer, so it is hidden, and C libraries fall back to `clone`.
        "clone3" => Verdict::Errno(ENOSYS),
        "personality" => Verdict::Check(PERSONALITIES, EPERM),
        "socket" => Verdict::Check(FAMILIES, EPERM),
        _ => Verdict::Allow,
    }
}

/// An instruction set that the table covers, with the older ones that it can run too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    /// x86-64 with x32 and i386.
    Amd64,
    /// 64-bit ARM with 32-bit ARM.
    Arm64,
}

impl Machine {
    /// The one that this program was built for.
    pub(super) fn current() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::Amd64),
            "aarch64" => Some(Self::Arm64),
            _ => None,
        }
    }
}

/// Columns of the table.
#[derive(Clone, Copy)]
enum Column {
    X86_64 = 1,
    X32 = 2,
    I386 = 3,
    Aarch64 = 4,
    Arm = 5,
}

/// The calling conventions of a machine, each with its verdicts.
pub(super) fn abis(machine: Machine) -> Vec<Abi> {
    let abi = |audit, column| Abi {
        audit,
        numbers: numbers(column),
        x32: None,
    };
    match machine {
        Machine::Amd64 => vec![
            Abi {
                x32: Some(numbers(Column::X32)),
                ..abi(0xc000_003e, Column::X86_64)
            },
            abi(0x4000_0003, Column::I386),
        ],
        Machine::Arm64 => vec![
            abi(0xc000_00b7, Column::Aarch64),
            abi(0x4000_0028, Column::Arm),
        ],
    }
}

/// The verdicts of one column. A call above the newest known one does not exist as far as the step
/// can see, so that programs fall back to an older call.
fn numbers(column: Column) -> Numbers {
    let calls = rows().filter_map(|fields| {
        let number = fields.get(column as usize)?.parse().ok()?;
        Some((number, conditional(fields.first()?)))
    });
    Numbers::new(calls.collect(), EPERM, ENOSYS)
}

/// The fields of the table's lines.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| !fields.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::filter::{self, simulate};
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    fn run(machine: Machine, audit: u32, number: u32, argument: u64) -> u32 {
        simulate(&filter::program(&abis(machine)), audit, number, argument)
    }

    #[test]
    fn the_table_is_well_formed() {
        let mut seen = std::collections::HashSet::new();
        for row in rows() {
            assert_eq!(row.len(), 6, "{row:?}");
            assert!(seen.insert(row[0]), "{row:?} stands twice");
            let numbers = &row[1..];
            assert!(numbers.iter().any(|number| *number != "-"), "{row:?}");
            for number in numbers {
                assert!(*number == "-" || number.parse::<u32>().is_ok(), "{row:?}");
            }
        }
        assert!(seen.len() > 360);
    }

    /// B5.5, every listed call of every instruction set.
    #[test]
    fn allows_what_is_listed() {
        let sets = [
            (Machine::Amd64, 0xc000_003e, Column::X86_64, 0),
            (Machine::Amd64, 0xc000_003e, Column::X32, 0x4000_0000),
            (Machine::Amd64, 0x4000_0003, Column::I386, 0),
            (Machine::Arm64, 0xc000_00b7, Column::Aarch64, 0),
            (Machine::Arm64, 0x4000_0028, Column::Arm, 0),
        ];
        for (machine, audit, column, bit) in sets {
            let mut listed = std::collections::HashSet::new();
            let program = filter::program(&abis(machine));
            assert!(program.len() < 4096);
            for row in rows() {
                let Ok(number) = row[column as usize].parse::<u32>() else {
                    continue;
                };
                listed.insert(number);
                let verdict = simulate(&program, audit, number | bit, 0);
                let expected = match row[0] {
                    "clone3" => ERRNO | 38,
                    _ => ALLOW,
                };
                // socket(AF_UNSPEC) passes and fails in the kernel.
                assert_eq!(verdict, expected, "{} of {audit:x}", row[0]);
            }
            for number in (0..424).filter(|number| !listed.contains(number)) {
                assert_eq!(simulate(&program, audit, number | bit, 0), ERRNO | 1);
            }
            assert_eq!(simulate(&program, audit, 900 | bit, 0), ERRNO | 38);
        }
    }

    /// B5.5, by number so that a wrong table is noticed.
    #[test]
    fn refuses_what_docker_refuses() {
        let amd64 = [
            ("mount", 165),
            ("umount2", 166),
            ("unshare", 272),
            ("setns", 308),
            ("add_key", 248),
            ("request_key", 249),
            ("keyctl", 250),
            ("bpf", 321),
            ("kexec_load", 246),
            ("init_module", 175),
            ("finit_module", 313),
            ("delete_module", 176),
            ("reboot", 169),
            ("swapon", 167),
            ("swapoff", 168),
            ("settimeofday", 164),
            ("clock_settime", 227),
            ("open_by_handle_at", 304),
            ("perf_event_open", 298),
            ("userfaultfd", 323),
            ("io_uring_setup", 425),
            ("open_tree", 428),
            ("move_mount", 429),
            ("fsopen", 430),
            ("mount_setattr", 442),
            ("pivot_root", 155),
            ("sethostname", 170),
            ("iopl", 172),
            ("acct", 163),
            ("syslog", 103),
            ("pidfd_getfd", 438),
        ];
        for (name, number) in amd64 {
            let verdict = run(Machine::Amd64, 0xc000_003e, number, 0);
            assert_eq!(verdict, ERRNO | 1, "{name}");
        }
        for (name, number) in [
            ("mount", 40),
            ("unshare", 97),
            ("keyctl", 219),
            ("bpf", 280),
        ] {
            let verdict = run(Machine::Arm64, 0xc000_00b7, number, 0);
            assert_eq!(verdict, ERRNO | 1, "{name}");
        }
        for (name, number) in [("mount", 21), ("umount", 22), ("unshare", 310)] {
            let verdict = run(Machine::Amd64, 0x4000_0003, number, 0);
            assert_eq!(verdict, ERRNO | 1, "{name} of i386");
        }
    }

    #[test]
    fn judges_arguments() {
        let amd64 = |number, argument| run(Machine::Amd64, 0xc000_003e, number, argument);
        let (clone, socket, personality) = (56, 41, 135);
        assert_eq!(amd64(clone, 0x11), ALLOW);
        assert_eq!(amd64(clone, 0x003d_0f00), ALLOW);
        for flag in [
            0x2_0000u64,
            0x0200_0000,
            0x0400_0000,
            0x1000_0000,
            0x4000_0000,
        ] {
            assert_eq!(amd64(clone, flag | 0x11), ERRNO | 1);
        }
        for family in [1, 2, 10, 11, 16, 17, 45] {
            assert_eq!(amd64(socket, family), ALLOW, "{family}");
        }
        for family in [12, 19, 20, 23, 25, 34, 37, 38, 40, 46, 1 << 32 | 1] {
            assert_eq!(amd64(socket, family), ERRNO | 1, "{family}");
        }
        for value in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
            assert_eq!(amd64(personality, value), ALLOW, "{value:x}");
        }
        // ADDR_NO_RANDOMIZE
        assert_eq!(amd64(personality, 0x4_0000), ERRNO | 1);
    }

    #[test]
    fn refuses_an_unknown_instruction_set() {
        assert_eq!(run(Machine::Amd64, 0xc000_00b7, 0, 0), 0x8000_0000);
    }
}
