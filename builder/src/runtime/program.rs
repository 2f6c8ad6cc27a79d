//! Finding and starting the step's program, already inside its root and as its user.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, OFlags, Stat};

use super::message::{ExecFailure, Failure, errno};
use super::{ProcessSpec, filesystems};
use crate::sys::process;
use crate::sys::root::Root;
use crate::sys::users::User;

/// Where programs are looked for when the environment does not say (A7.3).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts the program. Returns only when that failed.
pub(super) fn exec(spec: &ProcessSpec, user: &User) -> Result<Infallible, Failure> {
    let program = spec.args.first().map(String::as_str).unwrap_or_default();
    let fail = |error: &io::Error, path: &str| {
        Failure::Exec(ExecFailure {
            program: program.to_owned(),
            errno: errno(error),
            exists: std::fs::symlink_metadata(path).is_ok(),
            machine: machine(path),
        })
    };
    let invalid = |_| fail(&io::ErrorKind::InvalidInput.into(), program);
    let args = spec.args.iter().map(|arg| arg.clone().into_bytes());
    let args = c_strings(args).map_err(invalid)?;
    let env = c_strings(environment(spec, user)).map_err(invalid)?;

    let mut denied = None;
    for path in candidates(spec, program) {
        let name = CString::new(path.as_str()).map_err(invalid)?;
        let Err(error) = process::exec(&name, &args, &env);
        match error.raw_os_error() {
            // As a shell does: look on, but remember that there was something.
            Some(libc::ENOENT | libc::ENOTDIR) if std::fs::metadata(&path).is_err() => {}
            Some(libc::EACCES) if !program.contains('/') => {
                denied.get_or_insert(fail(&error, &path));
            }
            _ => return Err(fail(&error, &path)),
        }
    }
    Err(denied.unwrap_or_else(|| fail(&io::Error::from_raw_os_error(libc::ENOENT), "")))
}

/// Looks whether there is a program, in a root that is not entered yet.
pub(super) fn check(spec: &ProcessSpec, root: &Root) -> Result<(), Failure> {
    let program = spec.args.first().map(String::as_str).unwrap_or_default();
    let mut found = libc::ENOENT;
    for path in candidates(spec, program) {
        let path = Path::new(&spec.cwd).join(path);
        // What is mounted later is not there to be seen.
        let mut later = filesystems::PLACES.iter();
        if later.any(|place| path.starts_with(place)) {
            return Ok(());
        }
        match root.stat(&path, true) {
            Ok(status) if is_program(&status) => return Ok(()),
            Ok(_) => found = libc::EACCES,
            Err(_) => {}
        }
    }
    Err(Failure::Exec(ExecFailure {
        program: program.to_owned(),
        errno: found,
        exists: false,
        machine: None,
    }))
}

fn is_program(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::RegularFile && status.st_mode & 0o111 != 0
}

/// The paths that a program name may mean, in order.
fn candidates(spec: &ProcessSpec, program: &str) -> Vec<String> {
    if program.contains('/') || program.is_empty() {
        return vec![program.to_owned()];
    }
    let set = spec.env.iter().rev().find(|(name, _)| name == "PATH");
    let path = set.map_or(DEFAULT_PATH, |(_, value)| value);
    let directories = path.split(':');
    directories
        .map(|directory| match directory {
            "" => format!("./{program}"),
            _ => format!("{directory}/{program}"),
        })
        .collect()
}

/// The environment as `name=value`, with `HOME` where it is not set (B4.1).
pub(super) fn environment<'a>(
    spec: &'a ProcessSpec,
    user: &'a User,
) -> impl Iterator<Item = Vec<u8>> + 'a {
    let is_secret = |name: &str| spec.secret_env.iter().any(|(secret, _)| secret == name);
    let home = spec.env.iter().all(|(name, _)| name != "HOME") && !is_secret("HOME");
    let home = home.then(|| format!("HOME={}", user.home).into_bytes());
    let set = spec
        .env
        .iter()
        .filter(move |(name, _)| !is_secret(name))
        .map(|(name, value)| format!("{name}={value}").into_bytes());
    let secrets = spec
        .secret_env
        .iter()
        .map(|(name, value)| [name.as_bytes(), b"=", value.expose()].concat());
    set.chain(secrets).chain(home)
}

fn c_strings(strings: impl Iterator<Item = Vec<u8>>) -> Result<Vec<CString>, std::ffi::NulError> {
    strings.map(CString::new).collect()
}

/// The instruction set of an ELF file, by the names that `uname` uses.
fn machine(path: &str) -> Option<String> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut header = [0; 20];
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).ok()?;
    let mut options = File::options();
    let mut file = options.read(true).custom_flags(nonblock).open(path).ok()?;
    file.read_exact(&mut header).ok()?;
    let [0x7f, b'E', b'L', b'F', class, order, rest @ ..] = header else {
        return None;
    };
    let [.., low, high] = rest;
    let number = match order {
        2 => u16::from_be_bytes([low, high]),
        _ => u16::from_le_bytes([low, high]),
    };
    Some(match (number, class, order) {
        (3, ..) => "i386".to_owned(),
        (8, ..) => "mips".to_owned(),
        (20, ..) => "ppc".to_owned(),
        (21, _, 2) => "ppc64".to_owned(),
        (21, ..) => "ppc64le".to_owned(),
        (22, ..) => "s390x".to_owned(),
        (40, ..) => "arm".to_owned(),
        (62, ..) => "x86_64".to_owned(),
        (183, ..) => "aarch64".to_owned(),
        (243, 1, _) => "riscv32".to_owned(),
        (243, ..) => "riscv64".to_owned(),
        (258, ..) => "loongarch64".to_owned(),
        _ => format!("ELF machine {number}"),
    })
}
