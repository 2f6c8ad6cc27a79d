//! Programs of other architectures (B6.4).

use std::fs;

use crate::env::{Run, TestEnv, test_env};

/// A program for aarch64 that says so.
fn aarch64() -> Vec<u8> {
    const WORDS: &[u8] = b"hello from aarch64\n";
    let length = u32::try_from(WORDS.len()).unwrap();
    let code: [u32; 8] = [
        0xd280_0020,                 // mov x0, 1
        0x1000_0000 | (7 << 5) | 1,  // adr x1, 28 bytes from here
        0xd280_0002 | (length << 5), // mov x2, length
        0xd280_0808,                 // mov x8, 64: write
        0xd400_0001,                 // svc 0
        0xd280_0000,                 // mov x0, 0
        0xd280_0ba8,                 // mov x8, 93: exit
        0xd400_0001,                 // svc 0
    ];
    let mut text: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    text.extend(WORDS);
    elf(183, &text)
}

/// An executable of 64 bits, little endian, with this code at its end.
fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2u16.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for number in [BASE + HEADERS, 64, 0] {
        file.extend(number.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for number in [64u16, 56, 1, 0, 0, 0] {
        file.extend(number.to_le_bytes());
    }
    for number in [1u32, 5] {
        file.extend(number.to_le_bytes());
    }
    for number in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(number.to_le_bytes());
    }
    file.extend(code);
    file
}

/// What registers an interpreter for a machine, and the name that it has then.
fn handler(machine: u16, interpreter: &str, flags: &str) -> (String, String) {
    let name = format!("kiln-test-{machine}-{}", std::process::id());
    let [low, high] = machine.to_le_bytes();
    let magic = "\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00";
    let magic = format!("{magic}\\x{low:02x}\\x{high:02x}");
    let mask = format!(
        "{}\\x00{}\\xfe{}",
        "\\xff".repeat(7),
        "\\xff".repeat(8),
        "\\xff".repeat(3)
    );
    let line = format!(":{name}:M::{magic}:{mask}:{interpreter}:{flags}");
    (line, name)
}

/// A build for another platform with this handler, if any. `binfmt_misc` is the whole machine's where
/// it is mounted, so that the handler is taken away again; else it is mounted for the build alone.
fn build(env: &TestEnv, program: &[u8], platform: &str, handler: Option<&(String, String)>) -> Run {
    let script = "cd /proc/sys/fs/binfmt_misc\n\
                  test -e status || mount -t binfmt_misc binfmt_misc .; cd .; cd $PWD\n\
                  test -z \"$1\" || printf %s \"$1\" >register\n\
                  entry=$2 code=0; shift 2; (cd \"$OLDPWD\"; \"$@\") || code=$?\n\
                  test -z \"$entry\" || echo -1 >\"$entry\"\n\
                  exit $code";
    env.file("program", program);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(env.context().join("program"), mode).unwrap();
    env.dockerfile("FROM scratch\nCOPY program /program\nRUN [\"/program\"]\n");
    let (line, name) = handler.map_or(("", ""), |(line, name)| (line, name));
    env.program(
        "unshare",
        ["--mount", "sh", "-ec", script, "sh", line, name],
    )
    .arg(env!("CARGO_BIN_EXE_kiln"))
    .args(["build", "--platform", platform])
    .arg(env.context())
    .env("KILN_ROOT", env.store())
}

#[test]
fn b6_4_a_handler_runs_programs_of_another_architecture() {
    let env = test_env!("qemu-aarch64-static", "unshare");
    let handler = handler(183, "/usr/bin/qemu-aarch64-static", "F");
    let built = build(&env, &aarch64(), "linux/arm64", Some(&handler)).success();
    assert!(built.stderr.contains("hello from aarch64"), "{built}");
}

#[test]
fn b6_4_a_handler_whose_interpreter_is_not_in_the_image_is_named() {
    let env = test_env!("unshare");
    let handler = handler(258, "/usr/bin/no-such-interpreter", "");
    let failed = build(&env, &elf(258, &[]), "linux/loong64", Some(&handler)).failure(1);
    let error = format!(
        "exec `/program`: exec format error: it is for loongarch64, and the binfmt_misc handler \
         `{}` has no flag F: its interpreter `/usr/bin/no-such-interpreter` is looked for in the image",
        handler.1
    );
    assert!(failed.stderr.contains(&error), "{failed}");
}

#[test]
fn b6_4_a_machine_without_a_handler_says_what_to_install() {
    let env = test_env!("unshare");
    // For a machine that is not built for any more, and whose handler nobody installs alone.
    let mut program = elf(243, &[]);
    program[4] = 1;
    let failed = build(&env, &program, "linux/riscv32", None).failure(1);
    let error = "exec `/program`: exec format error: it is for riscv32, and this machine has no \
                 binfmt_misc handler for that";
    assert!(failed.stderr.contains(error), "{failed}");
    assert!(
        failed.stderr.contains("hint: install qemu-user-static"),
        "{failed}"
    );
}
