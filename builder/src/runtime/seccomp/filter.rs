//! From verdicts to a filter program: a binary search over system call numbers for each calling
//! convention, and comparisons of arguments in two halves, because the machine has 32 bits.

use libc::sock_filter;

use super::profile::{Action, Comparison, Condition};

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GREATER_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// Offsets into `struct seccomp_data`. The low half of an argument comes first: all the machines that
// there are tables for are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const KILL_PROCESS: u32 = 0x8000_0000;

/// Set in the number of every x32 call.
const X32_BIT: u32 = 0x4000_0000;

/// Calls of one architecture at most this large are ordinary; 32-bit ARM has a few far above.
const PRIVATE: u32 = 0xf_0000;

/// An action as the kernel is told.
pub(super) fn answer(action: Action) -> u32 {
    match action {
        Action::Allow => 0x7fff_0000,
        Action::Log => 0x7ffc_0000,
        Action::Trace(number) => 0x7ff0_0000 | u32::from(number),
        Action::Errno(number) => 0x0005_0000 | u32::from(number),
        Action::Trap => 0x0003_0000,
        Action::KillThread => 0,
        Action::KillProcess => KILL_PROCESS,
    }
}

/// What happens to a call, in answers to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Always this.
    Always(u32),
    /// That of the first conditions which all hold, or else the last.
    Chain(Vec<(Vec<Condition>, u32)>, u32),
}

/// Verdicts for all numbers: each holds from its number up to the next.
#[derive(Debug)]
pub(super) struct Numbers(Vec<(u32, Verdict)>);

impl Numbers {
    /// Fills the gaps between calls with `unlisted`, and what is above the newest with `unknown`.
    pub(super) fn new(mut calls: Vec<(u32, Verdict)>, unlisted: u32, unknown: u32) -> Self {
        calls.sort_unstable_by_key(|(number, _)| *number);
        let ordinary = calls.iter().filter(|(number, _)| *number < PRIVATE);
        let newest = ordinary.map(|(number, _)| *number).max().unwrap_or(0);
        let mut ranges: Vec<(u32, Verdict)> = Vec::new();
        let mut push = |start, verdict| {
            if ranges.last().is_none_or(|(_, last)| *last != verdict) {
                ranges.push((start, verdict));
            }
        };
        let gap = |next: u32| Verdict::Always(if next > newest { unknown } else { unlisted });
        let mut next = 0;
        for (number, verdict) in calls {
            if number > next {
                // A gap that reaches beyond the newest call is made of unknown ones only.
                push(next, gap(next));
            }
            push(number, verdict);
            next = number + 1;
        }
        push(next, Verdict::Always(unknown));
        Self(ranges)
    }

    /// Kills whoever makes a call of this convention.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }
}

/// The calls of a calling convention.
#[derive(Debug)]
pub(super) struct Section {
    /// Its `AUDIT_ARCH` number.
    pub audit: u32,
    /// Its calls.
    pub numbers: Numbers,
    /// Calls of x32, which shares the number of x86-64.
    pub x32: Option<Numbers>,
}

/// The filter program for a machine.
pub(super) fn program(sections: &[Section]) -> Vec<sock_filter> {
    let mut program = vec![statement(LOAD, ARCHITECTURE)];
    for one in sections {
        let mut section = vec![statement(LOAD, NUMBER)];
        let ordinary = search(&one.numbers.0, 0);
        match &one.x32 {
            None => section.extend(ordinary),
            Some(x32) => {
                let x32 = search(&x32.0, X32_BIT);
                section.extend(branch(JUMP_GREATER_EQUAL, X32_BIT, x32, ordinary));
            }
        }
        // What is no call of this convention goes on to the next one.
        program.push(jump(JUMP_EQUAL, one.audit, 1, 0));
        program.push(statement(JUMP, length(&section)));
        program.extend(section);
    }
    program.push(statement(RETURN, KILL_PROCESS));
    program
}

/// So many ranges are told apart one after the other rather than by halves: the kernel translates
/// each program anew, for each step, and a row of tests is about half as long.
const ROW: usize = 16;

/// Finds the verdict for the loaded number plus `offset`.
fn search(ranges: &[(u32, Verdict)], offset: u32) -> Vec<sock_filter> {
    if ranges.is_empty() {
        return vec![statement(RETURN, KILL_PROCESS)];
    }
    if let Some(row) = row(ranges, offset) {
        return row;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let start = high.first().map_or(0, |(start, _)| *start);
    let (low, high) = (search(low, offset), search(high, offset));
    branch(JUMP_GREATER_EQUAL, start + offset, high, low)
}

/// Compares with the starts of all ranges, the highest first; equal verdicts are reached by several
/// tests. `None` for more ranges than [`ROW`], or when a test would not reach its verdict.
fn row(ranges: &[(u32, Verdict)], offset: u32) -> Option<Vec<sock_filter>> {
    let [(_, lowest), tested @ ..] = ranges else {
        return None;
    };
    if tested.is_empty() {
        return Some(leaf(lowest));
    }
    // The lowest verdict is where the tests end.
    let mut verdicts = leaf(lowest);
    let mut places = vec![(lowest, 0)];
    let mut targets = Vec::new();
    for (start, verdict) in tested.iter().rev() {
        let known = places.iter().find(|(placed, _)| *placed == verdict);
        let place = known.map(|(_, place)| *place).unwrap_or_else(|| {
            let place = verdicts.len();
            verdicts.extend(leaf(verdict));
            places.push((verdict, place));
            place
        });
        targets.push((start + offset, place));
    }
    let count = targets.len();
    let tests = targets.into_iter().enumerate();
    let tests = tests.map(|(index, (start, place))| {
        let skip = u8::try_from(count - index - 1 + place).ok()?;
        Some(jump(JUMP_GREATER_EQUAL, start, skip, 0))
    });
    let tests: Option<Vec<_>> = tests.collect();
    let mut program = tests.filter(|_| ranges.len() <= ROW)?;
    program.extend(verdicts);
    Some(program)
}

/// Goes to `yes` or `no`, each of which ends in a verdict.
fn branch(test: u16, value: u32, yes: Vec<sock_filter>, no: Vec<sock_filter>) -> Vec<sock_filter> {
    let mut program = match u8::try_from(no.len()) {
        Ok(skip) => vec![jump(test, value, skip, 0)],
        // A jump by a condition reaches 255 instructions, one without reaches all.
        Err(_) => vec![jump(test, value, 0, 1), statement(JUMP, length(&no))],
    };
    program.extend(no);
    program.extend(yes);
    program
}

fn leaf(verdict: &Verdict) -> Vec<sock_filter> {
    match verdict {
        Verdict::Always(answer) => vec![statement(RETURN, *answer)],
        Verdict::Chain(chain, otherwise) => {
            let mut program = Vec::new();
            for (conditions, answer) in chain {
                program.extend(rule(conditions, *answer));
            }
            program.push(statement(RETURN, *otherwise));
            program
        }
    }
}

/// Where a test goes.
#[derive(Clone, Copy)]
enum Target {
    /// To the next instruction.
    Next,
    /// Behind the condition: it holds.
    Holds,
    /// Behind the rule: it does not hold.
    Fails,
}

/// One instruction of a condition.
enum Instruction {
    Statement(u16, u32),
    Test(u16, u32, Target, Target),
}

/// Answers if all conditions hold, and goes on behind its end if not. Six conditions of seven
/// instructions are within the reach of any jump.
fn rule(conditions: &[Condition], answer: u32) -> Vec<sock_filter> {
    let conditions = conditions.iter().map(condition).collect::<Vec<_>>();
    let whole = conditions.iter().map(Vec::len).sum::<usize>() + 1;
    let mut program = Vec::new();
    for instructions in conditions {
        let holds = program.len() + instructions.len();
        for instruction in instructions {
            let next = program.len() + 1;
            let skip = |target| {
                let to = match target {
                    Target::Next => next,
                    Target::Holds => holds,
                    Target::Fails => whole,
                };
                u8::try_from(to - next).unwrap_or(u8::MAX)
            };
            program.push(match instruction {
                Instruction::Statement(code, k) => statement(code, k),
                Instruction::Test(code, k, yes, no) => jump(code, k, skip(yes), skip(no)),
            });
        }
    }
    program.push(statement(RETURN, answer));
    program
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

fn condition(condition: &Condition) -> Vec<Instruction> {
    use Instruction::{Statement, Test};
    use Target::{Fails, Holds, Next};
    let low_offset = ARGUMENTS + 8 * condition.index;
    let (load_low, load_high) = (Statement(LOAD, low_offset), Statement(LOAD, low_offset + 4));
    let (high, low) = halves(condition.value);
    match condition.comparison {
        Comparison::Equal => vec![
            load_high,
            Test(JUMP_EQUAL, high, Next, Fails),
            load_low,
            Test(JUMP_EQUAL, low, Next, Fails),
        ],
        Comparison::NotEqual => vec![
            load_high,
            Test(JUMP_EQUAL, high, Next, Holds),
            load_low,
            Test(JUMP_EQUAL, low, Fails, Next),
        ],
        Comparison::Greater | Comparison::GreaterOrEqual => vec![
            load_high,
            Test(JUMP_GREATER, high, Holds, Next),
            Test(JUMP_EQUAL, high, Next, Fails),
            load_low,
            match condition.comparison {
                Comparison::Greater => Test(JUMP_GREATER, low, Next, Fails),
                _ => Test(JUMP_GREATER_EQUAL, low, Next, Fails),
            },
        ],
        Comparison::Less | Comparison::LessOrEqual => vec![
            load_high,
            Test(JUMP_GREATER, high, Fails, Next),
            Test(JUMP_EQUAL, high, Next, Holds),
            load_low,
            match condition.comparison {
                Comparison::Less => Test(JUMP_GREATER_EQUAL, low, Fails, Next),
                _ => Test(JUMP_GREATER, low, Fails, Next),
            },
        ],
        Comparison::MaskedEqual => {
            let (masked_high, masked_low) = halves(condition.masked);
            let mut instructions = Vec::new();
            if (high, masked_high) != (0, 0) {
                instructions.push(load_high);
                instructions.push(Statement(AND, high));
                instructions.push(Test(JUMP_EQUAL, masked_high, Next, Fails));
            }
            instructions.push(load_low);
            instructions.push(Statement(AND, low));
            instructions.push(Test(JUMP_EQUAL, masked_low, Next, Fails));
            instructions
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
pub(super) fn simulate(program: &[sock_filter], audit: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(audit.to_le_bytes());
    data.extend([0; 8]);
    for argument in args {
        data.extend(argument.to_le_bytes());
    }
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
            JUMP_GREATER => at += test(value > k),
            JUMP_GREATER_EQUAL => at += test(value >= k),
            RETURN => return k,
            _ => panic!("unknown instruction {code:x}"),
        }
    }
}
