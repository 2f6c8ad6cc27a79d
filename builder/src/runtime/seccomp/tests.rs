//! Profiles against a machine in software, and against files of cases.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;

use super::filter::{self, simulate};
use super::profile::{Action, Comparison, Condition, Host, Profile, Rule};
use super::syscalls::{Abi, Table, rows};
use super::{DEFAULT, compile};
use crate::runtime::privileges::CAPABILITY_NAMES;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

const ABIS: [Abi; 6] = [
    Abi::X86_64,
    Abi::X32,
    Abi::X86,
    Abi::Aarch64,
    Abi::Arm,
    Abi::Riscv64,
];

fn host(abi: Abi) -> Host {
    Host {
        abi,
        kernel: (6, 1),
        capabilities: &CAPABILITY_NAMES,
    }
}

/// The machine that runs programs of a calling convention.
fn machine(abi: Abi) -> Abi {
    match abi {
        Abi::X86_64 | Abi::X32 | Abi::X86 => Abi::X86_64,
        Abi::Aarch64 | Abi::Arm => Abi::Aarch64,
        Abi::Riscv64 => Abi::Riscv64,
    }
}

fn bit(abi: Abi) -> u32 {
    if abi == Abi::X32 { 0x4000_0000 } else { 0 }
}

fn default_program(abi: Abi) -> Vec<libc::sock_filter> {
    let profile = Profile::parse(DEFAULT, &host(machine(abi))).unwrap();
    assert_eq!(profile.unknown, Vec::<String>::new());
    compile::program(&profile).unwrap()
}

fn first(argument: u64) -> [u64; 6] {
    [argument, 0, 0, 0, 0, 0]
}

#[test]
fn the_table_is_well_formed() {
    let mut seen = HashSet::new();
    for row in rows() {
        assert_eq!(row.len(), 7, "{row:?}");
        assert!(seen.insert(row[0]), "{row:?} stands twice");
        for number in &row[1..] {
            assert!(*number == "-" || number.parse::<u32>().is_ok(), "{row:?}");
        }
    }
    assert!(seen.len() > 490);
}

/// The numbers are those that the headers of this machine have.
#[test]
fn the_table_agrees_with_the_headers() {
    let table = Table::get();
    let own = match std::env::consts::ARCH {
        "x86_64" => Abi::X86_64,
        "aarch64" => Abi::Aarch64,
        _ => return,
    };
    for (name, number) in [
        ("read", libc::SYS_read),
        ("clone3", libc::SYS_clone3),
        ("openat2", libc::SYS_openat2),
        ("mseal", libc::SYS_mseal),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("fchmodat2", libc::SYS_fchmodat2),
        ("bpf", libc::SYS_bpf),
        ("unshare", libc::SYS_unshare),
    ] {
        let known = table.number(name, own).map(i64::from);
        assert_eq!(known, Some(number), "{name}");
    }
}

/// A sample of the numbers is what libseccomp says; of calls that are newer than it, it says -1.
#[test]
fn the_table_agrees_with_libseccomp() {
    let resolve = |abi: Abi, name: &str| -> Option<i64> {
        let arch = match abi {
            Abi::X86_64 => "x86_64",
            Abi::X32 => "x32",
            Abi::X86 => "x86",
            Abi::Aarch64 => "aarch64",
            Abi::Arm => "arm",
            Abi::Riscv64 => "riscv64",
        };
        let mut command = Command::new("scmp_sys_resolver");
        let output = command.args(["-a", arch, name]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if resolve(Abi::X86_64, "read").is_none() {
        eprintln!("SKIPPED: this test needs scmp_sys_resolver (package seccomp)");
        assert!(
            std::env::var_os("CI").is_none(),
            "scmp_sys_resolver is missing"
        );
        return;
    }
    let table = Table::get();
    for (index, row) in rows().enumerate() {
        let abi = ABIS[index % ABIS.len()];
        let Some(theirs) = resolve(abi, row[0]).filter(|number| *number >= 0) else {
            continue;
        };
        let ours = table
            .number(row[0], abi)
            .map(|number| i64::from(number | bit(abi)));
        // libseccomp combines calls of 32-bit x86 by itself, and gives no number for their parts.
        assert_eq!(ours, Some(theirs), "{} of {abi:?}", row[0]);
    }
}

/// B5.5, every call of every instruction set: allowed exactly if the profile lists it.
#[test]
fn the_default_allows_what_it_lists() {
    let table = Table::get();
    for abi in ABIS {
        let program = default_program(abi);
        assert!(program.len() < 1000, "{}", program.len());
        let profile = Profile::parse(DEFAULT, &host(machine(abi))).unwrap();
        let mut listed = HashSet::new();
        for rule in &profile.rules {
            for name in &rule.names {
                let Some(number) = table.number(name, abi) else {
                    continue;
                };
                listed.insert(number);
                // socket(AF_UNSPEC) passes and fails in the kernel.
                let verdict = simulate(&program, abi.audit(), number | bit(abi), first(0));
                let expected = if name == "clone3" { ERRNO | 38 } else { ALLOW };
                assert_eq!(verdict, expected, "{name} of {abi:?}");
            }
        }
        assert!(listed.len() > 250, "{abi:?}");
        for number in (0..424).filter(|number| !listed.contains(number)) {
            let verdict = simulate(&program, abi.audit(), number | bit(abi), first(0));
            assert_eq!(verdict, ERRNO | 1, "{number} of {abi:?}");
        }
        let future = simulate(&program, abi.audit(), 900 | bit(abi), first(0));
        assert_eq!(future, ERRNO | 38);
    }
}

/// B5.5, by number so that a wrong table is noticed.
#[test]
fn the_default_refuses_what_docker_refuses() {
    let refused = [
        (Abi::X86_64, "mount", 165),
        (Abi::X86_64, "umount2", 166),
        (Abi::X86_64, "unshare", 272),
        (Abi::X86_64, "setns", 308),
        (Abi::X86_64, "add_key", 248),
        (Abi::X86_64, "request_key", 249),
        (Abi::X86_64, "keyctl", 250),
        (Abi::X86_64, "bpf", 321),
        (Abi::X86_64, "kexec_load", 246),
        (Abi::X86_64, "init_module", 175),
        (Abi::X86_64, "finit_module", 313),
        (Abi::X86_64, "delete_module", 176),
        (Abi::X86_64, "reboot", 169),
        (Abi::X86_64, "swapon", 167),
        (Abi::X86_64, "swapoff", 168),
        (Abi::X86_64, "settimeofday", 164),
        (Abi::X86_64, "clock_settime", 227),
        (Abi::X86_64, "open_by_handle_at", 304),
        (Abi::X86_64, "perf_event_open", 298),
        (Abi::X86_64, "userfaultfd", 323),
        (Abi::X86_64, "io_uring_setup", 425),
        (Abi::X86_64, "open_tree", 428),
        (Abi::X86_64, "move_mount", 429),
        (Abi::X86_64, "fsopen", 430),
        (Abi::X86_64, "mount_setattr", 442),
        (Abi::X86_64, "pivot_root", 155),
        (Abi::X86_64, "sethostname", 170),
        (Abi::X86_64, "iopl", 172),
        (Abi::X86_64, "acct", 163),
        (Abi::X86_64, "syslog", 103),
        (Abi::X86_64, "pidfd_getfd", 438),
        (Abi::Aarch64, "mount", 40),
        (Abi::Aarch64, "unshare", 97),
        (Abi::Aarch64, "keyctl", 219),
        (Abi::Aarch64, "bpf", 280),
        (Abi::Riscv64, "mount", 40),
        (Abi::Riscv64, "unshare", 97),
        (Abi::Riscv64, "keyctl", 219),
        (Abi::X86, "mount", 21),
        (Abi::X86, "umount", 22),
        (Abi::X86, "unshare", 310),
        (Abi::Arm, "mount", 21),
        (Abi::Arm, "unshare", 337),
    ];
    for (abi, name, number) in refused {
        let verdict = simulate(&default_program(abi), abi.audit(), number, first(0));
        assert_eq!(verdict, ERRNO | 1, "{name} of {abi:?}");
    }
}

/// B5.5
#[test]
fn the_default_judges_arguments() {
    let program = default_program(Abi::X86_64);
    let amd64 = |number, argument| simulate(&program, 0xc000_003e, number, first(argument));
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
fn another_instruction_set_is_killed() {
    for (abi, other) in [
        (Abi::X86_64, Abi::Aarch64),
        (Abi::Riscv64, Abi::X86_64),
        (Abi::Aarch64, Abi::X86),
    ] {
        let verdict = simulate(&default_program(abi), other.audit(), 0, first(0));
        assert_eq!(verdict, KILL_PROCESS);
    }
}

/// What a condition means, said once more.
fn holds(condition: &Condition, args: [u64; 6]) -> bool {
    let argument = args[condition.index as usize];
    match condition.comparison {
        Comparison::Equal => argument == condition.value,
        Comparison::NotEqual => argument != condition.value,
        Comparison::Less => argument < condition.value,
        Comparison::LessOrEqual => argument <= condition.value,
        Comparison::Greater => argument > condition.value,
        Comparison::GreaterOrEqual => argument >= condition.value,
        Comparison::MaskedEqual => argument & condition.value == condition.masked,
    }
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..4,
        Just(u64::MAX),
        Just(1 << 32),
        Just((1 << 32) - 1),
        Just(1 << 63),
        (0u64..3, 0u64..3).prop_map(|(high, low)| high << 32 | low),
        any::<u64>(),
    ]
}

fn any_condition(index: u32) -> impl Strategy<Value = Condition> {
    let comparison = prop_oneof![
        Just(Comparison::Equal),
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::LessOrEqual),
        Just(Comparison::Greater),
        Just(Comparison::GreaterOrEqual),
        Just(Comparison::MaskedEqual),
    ];
    (comparison, value(), value()).prop_map(move |(comparison, value, masked)| Condition {
        index,
        comparison,
        value,
        masked,
    })
}

/// Up to six conditions, each about another argument.
fn any_rule() -> impl Strategy<Value = Rule> {
    let conditions = (0u32..6).map(|index| proptest::option::of(any_condition(index)));
    let conditions = conditions.collect::<Vec<_>>();
    let action = prop_oneof![
        Just(Action::Allow),
        Just(Action::Log),
        Just(Action::Trap),
        Just(Action::KillThread),
        Just(Action::KillProcess),
        (2u16..4096).prop_map(Action::Errno),
        any::<u16>().prop_map(Action::Trace),
    ];
    (conditions, action).prop_map(|(conditions, action)| Rule {
        names: vec!["ioctl".to_owned()],
        action,
        conditions: conditions.into_iter().flatten().collect(),
    })
}

proptest! {
    /// The program decides as the rules read: the first whose conditions hold.
    #[test]
    fn programs_decide_as_the_rules_read(
        rules in proptest::collection::vec(any_rule(), 1..80),
        args in proptest::array::uniform6(value()),
    ) {
        let rules: Vec<Rule> = rules
            .into_iter()
            .filter(|rule| !rule.conditions.is_empty())
            .collect();
        let profile = Profile {
            default: Action::Errno(1),
            abis: vec![Abi::X86_64],
            flags: 0,
            rules: rules.clone(),
            unknown: Vec::new(),
        };
        let program = compile::program(&profile).unwrap();
        let verdict = simulate(&program, Abi::X86_64.audit(), 16, args);
        let matching = rules
            .iter()
            .find(|rule| rule.conditions.iter().all(|condition| holds(condition, args)));
        let expected = matching.map_or(Action::Errno(1), |rule| rule.action);
        let expected = if rules.is_empty() { Action::Errno(38) } else { expected };
        prop_assert_eq!(verdict, filter::answer(expected));
    }
}

/// Cases of `testdata/seccomp`: a profile, and what it decides or why it is refused.
#[test]
fn profiles_from_files() {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/seccomp"));
    let mut count = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let profile = fs::read_to_string(&path).unwrap();
        let expected = fs::read_to_string(path.with_extension("txt")).unwrap();
        for line in expected.lines().filter(|line| !line.starts_with('#')) {
            case(name, &profile, line);
        }
        count += 1;
    }
    assert!(count > 10);
}

/// `error MESSAGE`, `unknown NAME...` or `ABI CALL ARGUMENT... = ANSWER`.
fn case(name: &str, profile: &str, line: &str) {
    let machine_of = |abi| Profile::parse(profile, &host(machine(abi)));
    if let Some(message) = line.strip_prefix("error ") {
        let error = machine_of(Abi::X86_64).and_then(|profile| compile::program(&profile));
        assert_eq!(error.unwrap_err().to_string(), message, "{name}");
        return;
    }
    if let Some(names) = line.strip_prefix("unknown ") {
        assert_eq!(
            machine_of(Abi::X86_64).unwrap().unknown.join(" "),
            names,
            "{name}"
        );
        return;
    }
    let (call, answer) = line.split_once(" = ").unwrap();
    let mut words = call.split(' ');
    let abi = words.next().unwrap();
    let abi = Abi::named(&format!("SCMP_ARCH_{}", abi.to_uppercase())).unwrap();
    let call = words.next().unwrap();
    let number = call.parse().ok().or_else(|| Table::get().number(call, abi));
    let mut args = [0; 6];
    for (argument, word) in args.iter_mut().zip(words) {
        *argument = match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
            None => word.parse().unwrap(),
        };
    }
    let program = compile::program(&machine_of(abi).unwrap()).unwrap();
    let verdict = simulate(&program, abi.audit(), number.unwrap() | bit(abi), args);
    let (kind, data) = answer.split_once(' ').unwrap_or((answer, "0"));
    let kind = match kind {
        "allow" => ALLOW,
        "log" => 0x7ffc_0000,
        "trace" => 0x7ff0_0000,
        "errno" => ERRNO,
        "trap" => 0x0003_0000,
        "kill-thread" => 0,
        "kill-process" => KILL_PROCESS,
        other => panic!("{name}: {other}"),
    };
    let expected = kind | data.parse::<u32>().unwrap();
    assert_eq!(verdict, expected, "{name}: {line}, was {verdict:x}");
}

#[test]
fn a_filter_that_is_too_long_is_an_error() {
    let rule = |value: u64| Rule {
        names: vec!["ioctl".to_owned()],
        action: Action::Allow,
        conditions: vec![Condition {
            index: 1,
            comparison: Comparison::Equal,
            value: value << 20,
            masked: 0,
        }],
    };
    let profile = |count| Profile {
        default: Action::Errno(1),
        abis: vec![Abi::X86_64],
        flags: 0,
        rules: (0..count).map(rule).collect(),
        unknown: Vec::new(),
    };
    // Far beyond what a conditional jump reaches, and still right.
    let program = compile::program(&profile(800)).unwrap();
    let verdict = |argument| simulate(&program, Abi::X86_64.audit(), 16, [0, argument, 0, 0, 0, 0]);
    assert_eq!(verdict(799 << 20), ALLOW);
    assert_eq!(verdict(800 << 20), ERRNO | 1);
    let error = compile::program(&profile(900)).unwrap_err().to_string();
    assert!(error.contains("Linux takes 4096 at most"), "{error}");
}
