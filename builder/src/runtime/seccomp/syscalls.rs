//! Names and numbers of system calls, as the table `syscalls.txt` has them.

use std::collections::HashMap;
use std::sync::OnceLock;

const TABLE: &str = include_str!("syscalls.txt");

/// Columns of numbers.
const COLUMNS: usize = 6;

/// A calling convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runtime) enum Abi {
    /// x86-64.
    X86_64,
    /// x86-64 with short pointers; shares the audit number of x86-64.
    X32,
    /// 32-bit x86.
    X86,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM.
    Arm,
    /// 64-bit RISC-V.
    Riscv64,
}

impl Abi {
    /// The one of an architecture as profiles name it.
    pub(in crate::runtime) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "SCMP_ARCH_X86_64" => Self::X86_64,
            "SCMP_ARCH_X32" => Self::X32,
            "SCMP_ARCH_X86" => Self::X86,
            "SCMP_ARCH_AARCH64" => Self::Aarch64,
            "SCMP_ARCH_ARM" => Self::Arm,
            "SCMP_ARCH_RISCV64" => Self::Riscv64,
            _ => return None,
        })
    }

    /// As profiles name it.
    pub(in crate::runtime) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X32 => "SCMP_ARCH_X32",
            Self::X86 => "SCMP_ARCH_X86",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
            Self::Riscv64 => "SCMP_ARCH_RISCV64",
        }
    }

    /// Its `AUDIT_ARCH` number.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
        }
    }

    /// Those that a machine of this one runs; the first is itself.
    pub(super) fn family(self) -> &'static [Self] {
        match self {
            Self::X86_64 => &[Self::X86_64, Self::X32, Self::X86],
            Self::Aarch64 => &[Self::Aarch64, Self::Arm],
            Self::Riscv64 => &[Self::Riscv64],
            Self::X32 => &[Self::X32],
            Self::X86 => &[Self::X86],
            Self::Arm => &[Self::Arm],
        }
    }

    /// Its column of numbers in the table.
    fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::X32 => 1,
            Self::X86 => 2,
            Self::Aarch64 => 3,
            Self::Arm => 4,
            Self::Riscv64 => 5,
        }
    }
}

/// Architectures that profiles name and kiln does not run on.
pub(super) const FOREIGN: [&str; 18] = [
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV32",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
];

/// The table, ready for looking names up.
#[derive(Debug)]
pub(super) struct Table(HashMap<&'static str, [Option<u32>; COLUMNS]>);

impl Table {
    /// The one there is; it is read when it is first asked for.
    pub(super) fn get() -> &'static Self {
        static ONCE: OnceLock<Table> = OnceLock::new();
        ONCE.get_or_init(|| {
            let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
            Self(lines.filter_map(row).collect())
        })
    }

    /// Whether there is a call of that name, on whatever machine.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The number of a call, where the convention has it.
    pub(super) fn number(&self, name: &str, abi: Abi) -> Option<u32> {
        *self.0.get(name)?.get(abi.column())?
    }
}

fn row(line: &'static str) -> Option<(&'static str, [Option<u32>; COLUMNS])> {
    let mut fields = line.split_ascii_whitespace();
    let name = fields.next()?;
    let mut numbers = [None; COLUMNS];
    for (number, field) in numbers.iter_mut().zip(fields) {
        *number = field.parse().ok();
    }
    Some((name, numbers))
}

/// Calls that old programs of 32-bit x86 make through one call for many, whose first argument says
/// which: the name, the call for many, and that argument. In the order of names.
pub(super) const COMBINED: [(&str, &str, u64); 32] = [
    ("accept", "socketcall", 5),
    ("accept4", "socketcall", 18),
    ("bind", "socketcall", 2),
    ("connect", "socketcall", 3),
    ("getpeername", "socketcall", 7),
    ("getsockname", "socketcall", 6),
    ("getsockopt", "socketcall", 15),
    ("listen", "socketcall", 4),
    ("msgctl", "ipc", 14),
    ("msgget", "ipc", 13),
    ("msgrcv", "ipc", 12),
    ("msgsnd", "ipc", 11),
    ("recv", "socketcall", 10),
    ("recvfrom", "socketcall", 12),
    ("recvmmsg", "socketcall", 19),
    ("recvmsg", "socketcall", 17),
    ("semctl", "ipc", 3),
    ("semget", "ipc", 2),
    ("semop", "ipc", 1),
    ("semtimedop", "ipc", 4),
    ("send", "socketcall", 9),
    ("sendmmsg", "socketcall", 20),
    ("sendmsg", "socketcall", 16),
    ("sendto", "socketcall", 11),
    ("setsockopt", "socketcall", 14),
    ("shmat", "ipc", 21),
    ("shmctl", "ipc", 24),
    ("shmdt", "ipc", 22),
    ("shmget", "ipc", 23),
    ("shutdown", "socketcall", 13),
    ("socket", "socketcall", 1),
    ("socketpair", "socketcall", 8),
];

/// All lines of the table, for tests.
#[cfg(test)]
pub(super) fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_whitespace().collect())
}
