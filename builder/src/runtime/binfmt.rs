//! Programs of other architectures (B6.4): the kernel hands them to an interpreter that is registered
//! in `binfmt_misc`. When one does not start, this says what is amiss with that.

use std::fmt;
use std::fs;
use std::path::Path;

/// Where the kernel shows what is registered.
const FOLDER: &str = "/proc/sys/fs/binfmt_misc";

/// Instruction sets as `uname` names them: number in ELF files, 64 bits or not, byte order.
const MACHINES: [(&str, u16, bool, Order); 12] = [
    ("i386", 3, false, Order::Little),
    ("mips", 8, false, Order::Big),
    ("ppc", 20, false, Order::Big),
    ("ppc64", 21, true, Order::Big),
    ("ppc64le", 21, true, Order::Little),
    ("s390x", 22, true, Order::Big),
    ("arm", 40, false, Order::Little),
    ("x86_64", 62, true, Order::Little),
    ("aarch64", 183, true, Order::Little),
    ("riscv32", 243, false, Order::Little),
    ("riscv64", 243, true, Order::Little),
    ("loongarch64", 258, true, Order::Little),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

/// Why a program of another architecture does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Nothing is registered for it.
    NoHandler,
    /// What is registered is switched off.
    Disabled {
        /// Its name.
        handler: String,
    },
    /// Its interpreter is looked for in the image, where it is not.
    NotFixed {
        /// Its name.
        handler: String,
        /// Path of the interpreter.
        interpreter: String,
    },
}

/// What is amiss with programs for this machine; nothing is with those of this machine's own.
pub(super) fn problem(machine: &str) -> Option<Foreign> {
    problem_in(Path::new(FOLDER), machine)
}

fn problem_in(folder: &Path, machine: &str) -> Option<Foreign> {
    if machine == std::env::consts::ARCH {
        return None;
    }
    let header = header(machine)?;
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = None;
    for entry in entries {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let Some(handler) = Handler::parse(&text).filter(|one| one.takes(&header)) else {
            continue;
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        if !handler.enabled {
            found = Some(Foreign::Disabled { handler: name });
        } else if handler.fixed {
            return None;
        } else {
            return Some(Foreign::NotFixed {
                handler: name,
                interpreter: handler.interpreter,
            });
        }
    }
    found.or(Some(Foreign::NoHandler))
}

/// The beginning of a program for a machine, where that is known.
fn header(machine: &str) -> Option<[u8; 20]> {
    let (_, number, wide, order) = MACHINES.iter().find(|(name, ..)| *name == machine)?;
    let bytes = |number: u16| match order {
        Order::Little => number.to_le_bytes(),
        Order::Big => number.to_be_bytes(),
    };
    let mut header = [0; 20];
    header[..4].copy_from_slice(b"\x7fELF");
    header[4] = if *wide { 2 } else { 1 };
    header[5] = match order {
        Order::Little => 1,
        Order::Big => 2,
    };
    header[6] = 1;
    header[16..18].copy_from_slice(&bytes(2));
    header[18..].copy_from_slice(&bytes(*number));
    Some(header)
}

/// One that is registered.
#[derive(Debug, Default)]
struct Handler {
    enabled: bool,
    interpreter: String,
    /// Whether its interpreter was opened when it was registered.
    fixed: bool,
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

impl Handler {
    /// Reads the kernel's description of one that goes by content; others are of no use here.
    fn parse(text: &str) -> Option<Self> {
        let mut handler = Self::default();
        for line in text.lines() {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            match name {
                "enabled" => handler.enabled = true,
                "interpreter" => value.clone_into(&mut handler.interpreter),
                "flags:" => handler.fixed = value.contains('F'),
                "offset" => handler.offset = value.parse().ok()?,
                "magic" => handler.magic = hex(value)?,
                "mask" => handler.mask = hex(value)?,
                _ => {}
            }
        }
        (!handler.magic.is_empty()).then_some(handler)
    }

    fn takes(&self, header: &[u8]) -> bool {
        let Some(start) = header.get(self.offset..) else {
            return false;
        };
        // What it wants to see behind the part that is known here does not tell machines apart.
        self.magic
            .iter()
            .zip(start)
            .enumerate()
            .all(|(place, (magic, byte))| {
                let mask = self.mask.get(place).copied().unwrap_or(0xff);
                (magic ^ byte) & mask == 0
            })
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let pair = |start| u8::from_str_radix(text.get(start..start + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(pair).collect()
}

/// Completes "it is for aarch64, and".
impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHandler => f.write_str("this machine has no binfmt_misc handler for that"),
            Self::Disabled { handler } => {
                write!(f, "the binfmt_misc handler `{handler}` is disabled")
            }
            Self::NotFixed {
                handler,
                interpreter,
            } => write!(
                f,
                "the binfmt_misc handler `{handler}` has no flag F: its interpreter `{interpreter}` is looked for in the image"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: &str = "magic 7f454c460201010000000000000000000200b700\n\
                         mask ffffffffffffff00fffffffffffffffffeffffff\n";

    fn problem(entries: &[(&str, &str)]) -> Option<Foreign> {
        let folder = tempfile::tempdir().unwrap();
        for (name, head) in entries {
            let text = format!("{head}\noffset 0\n{MAGIC}");
            fs::write(folder.path().join(name), text).unwrap();
        }
        fs::write(folder.path().join("status"), "enabled\n").unwrap();
        problem_in(folder.path(), "aarch64")
    }

    #[cfg(not(target_arch = "aarch64"))]
    #[test]
    fn b6_4_what_is_amiss_with_a_foreign_architecture() {
        let plain = "enabled\ninterpreter /usr/bin/qemu\nflags: OC";
        let fixed = "enabled\ninterpreter /usr/bin/qemu\nflags: OCF";
        let disabled = "disabled\ninterpreter /usr/bin/qemu\nflags: F";
        assert_eq!(problem(&[]), Some(Foreign::NoHandler));
        assert_eq!(problem(&[("q", fixed)]), None);
        let handler = "q".to_owned();
        let interpreter = "/usr/bin/qemu".to_owned();
        let not_fixed = Foreign::NotFixed {
            handler: handler.clone(),
            interpreter,
        };
        assert_eq!(problem(&[("q", plain)]), Some(not_fixed));
        assert_eq!(
            problem(&[("q", disabled)]),
            Some(Foreign::Disabled { handler })
        );
    }

    #[test]
    fn b6_4_handlers_of_other_machines_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("enabled\ninterpreter /q\nflags: F\noffset 0\n{MAGIC}");
        fs::write(folder.path().join("q"), text).unwrap();
        assert_eq!(problem_in(folder.path(), "s390x"), Some(Foreign::NoHandler));
        assert_eq!(problem_in(folder.path(), std::env::consts::ARCH), None);
        assert_eq!(problem_in(folder.path(), "ELF machine 9"), None);
    }
}
