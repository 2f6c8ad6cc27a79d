//! From verdicts to a filter program: a binary search over system call numbers for each calling
//! convention.

use libc::sock_filter;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// Offsets into `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT_LOW: u32 = 16;
const FIRST_ARGUMENT_HIGH: u32 = 20;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

/// Set in the number of every x32 call.
const X32_BIT: u32 = 0x4000_0000;

/// Calls of one architecture at most this large are ordinary; 32-bit ARM has a few far above.
const PRIVATE: u32 = 0xf_0000;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is made.
    Allow,
    /// It fails with this number.
    Errno(u16),
    /// It is made if the check holds, and fails with this number else.
    Check(Check, u16),
}

/// A condition on the first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// None of these bits is set.
    NoneOf(u32),
    /// It is below a bound or one of some values.
    OneOf {
        /// The bound, exclusive.
        below: u32,
        /// The values.
        values: &'static [u32],
    },
}

/// Verdicts for all numbers: each holds from its number up to the next.
#[derive(Debug)]
pub(super) struct Numbers(Vec<(u32, Verdict)>);

impl Numbers {
    /// Fills the gaps between calls with `unlisted`, and what is above the newest with `unknown`.
    pub(super) fn new(mut calls: Vec<(u32, Verdict)>, unlisted: u16, unknown: u16) -> Self {
        calls.sort_unstable_by_key(|(number, _)| *number);
        calls.dedup_by_key(|(number, _)| *number);
        let ordinary = calls.iter().filter(|(number, _)| *number < PRIVATE);
        let newest = ordinary.map(|(number, _)| *number).max().unwrap_or(0);
        let mut ranges = Vec::new();
        let mut push = |start, verdict| {
            if ranges.last().is_none_or(|(_, last)| *last != verdict) {
                ranges.push((start, verdict));
            }
        };
        let gap = |next: u32| Verdict::Errno(if next > newest { unknown } else { unlisted });
        let mut next = 0;
        for (number, verdict) in calls {
            if number > next {
                // A gap that reaches beyond the newest call is made of unknown ones only.
                push(next, gap(next));
            }
            push(number, verdict);
            next = number + 1;
        }
        push(next, Verdict::Errno(unknown));
        Self(ranges)
    }
}

/// A calling convention.
#[derive(Debug)]
pub(super) struct Abi {
    /// Its `AUDIT_ARCH` number.
    pub audit: u32,
    /// Its calls.
    pub numbers: Numbers,
    /// Calls of x32, which shares the number of x86-64.
    pub x32: Option<Numbers>,
}

/// The filter program for a machine.
pub(super) fn program(abis: &[Abi]) -> Vec<sock_filter> {
    let mut program = vec![statement(LOAD, ARCHITECTURE)];
    for abi in abis {
        let mut section = vec![statement(LOAD, NUMBER)];
        let ordinary = search(&abi.numbers.0, 0);
        match &abi.x32 {
            None => section.extend(ordinary),
            Some(x32) => {
                let x32 = search(&x32.0, X32_BIT);
                section.extend(branch(JUMP_GREATER_EQUAL, X32_BIT, x32, ordinary));
            }
        }
        // What is no call of this convention goes on to the next one.
        program.push(jump(JUMP_EQUAL, abi.audit, 1, 0));
        program.push(statement(JUMP, length(&section)));
        program.extend(section);
    }
    program.push(statement(RETURN, KILL_PROCESS));
    program
}

/// Finds the verdict for the loaded number plus `offset`.
fn search(ranges: &[(u32, Verdict)], offset: u32) -> Vec<sock_filter> {
    match ranges {
        [] => vec![statement(RETURN, KILL_PROCESS)],
        [(_, verdict)] => leaf(*verdict),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let start = high.first().map_or(0, |(start, _)| *start);
            let (low, high) = (search(low, offset), search(high, offset));
            branch(JUMP_GREATER_EQUAL, start + offset, high, low)
        }
    }
}

/// Goes to `yes` or `no`, each of which ends in a verdict.
fn branch(test: u16, value: u32, yes: Vec<sock_filter>, no: Vec<sock_filter>) -> Vec<sock_filter> {
    let mut program = match u8::try_from(no.len()) {
        Ok(skip) => vec![jump(test, value, skip, 0)],
        Err(_) => vec![jump(test, value, 0, 1), statement(JUMP, length(&no))],
    };
    program.extend(no);
    program.extend(yes);
    program
}

fn leaf(verdict: Verdict) -> Vec<sock_filter> {
    match verdict {
        Verdict::Allow => vec![statement(RETURN, ALLOW)],
        Verdict::Errno(number) => vec![statement(RETURN, ERRNO | u32::from(number))],
        Verdict::Check(check, number) => conditional(check, ERRNO | u32::from(number)),
    }
}

fn conditional(check: Check, refusal: u32) -> Vec<sock_filter> {
    let allow = vec![statement(RETURN, ALLOW)];
    let refuse = vec![statement(RETURN, refusal)];
    match check {
        Check::NoneOf(bits) => {
            let mut program = vec![statement(LOAD, FIRST_ARGUMENT_LOW), statement(AND, bits)];
            program.extend(branch(JUMP_EQUAL, 0, allow, refuse));
            program
        }
        Check::OneOf { below, values } => {
            let one = |rest: Vec<sock_filter>, value: &u32| {
                branch(JUMP_EQUAL, *value, vec![statement(RETURN, ALLOW)], rest)
            };
            let listed = values.iter().rev().fold(refuse.clone(), one);
            let mut low = vec![statement(LOAD, FIRST_ARGUMENT_LOW)];
            low.extend(branch(JUMP_GREATER_EQUAL, below, listed, allow));
            let mut program = vec![statement(LOAD, FIRST_ARGUMENT_HIGH)];
            program.extend(branch(JUMP_EQUAL, 0, low, refuse));
            program
        }
    }
}

fn statement(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn length(program: &[sock_filter]) -> u32 {
    u32::try_from(program.len()).unwrap_or(u32::MAX)
}

/// Runs a program as the kernel would, independently of how it was generated.
#[cfg(test)]
pub(super) fn simulate(program: &[sock_filter], audit: u32, number: u32, argument: u64) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(audit.to_le_bytes());
    data.extend([0; 8]);
    data.extend(argument.to_le_bytes());
    let (mut at, mut value) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        let test = |holds: bool| usize::from(if holds { jt } else { jf });
        at += 1;
        match code {
            LOAD => value = u32::from_le_bytes(data[k as usize..][..4].try_into().unwrap()),
            AND => value &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => at += test(value == k),
            JUMP_GREATER_EQUAL => at += test(value >= k),
            RETURN => return k,
            _ => panic!("unknown instruction {code:x}"),
        }
    }
}
