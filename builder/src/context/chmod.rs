//! The value of `--chmod` (A11.8).

/// A change of permission bits, octal or symbolic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// All bits are set to this.
    Octal(u32),
    /// Clauses, applied in order.
    Symbolic(Vec<Clause>),
}

/// One action on the bits of some classes, for example `go=rX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Bits that the named classes have: of `u`, `g`, `o` each with its setuid, setgid or sticky.
    classes: u32,
    action: Action,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Add,
    Remove,
    Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Permission bits as if for all classes, and whether `X` was among them.
    Bits { bits: u32, execute_if_any: bool },
    /// The bits of another class: how far they stand to the left.
    CopyOf(u32),
}

/// Why a `--chmod` value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// It starts as a number and is none, or is too large.
    #[error("invalid chmod parameter: '{0}'. it should be octal string and between 0 and 07777")]
    Octal(String),
    /// It is no symbolic mode.
    #[error(
        "invalid chmod parameter: '{0}'. it should be an octal string between 0 and 07777, or symbolic like `u=rwX,go=rX`"
    )]
    Symbolic(String),
}

const USER: u32 = 0o4700;
const GROUP: u32 = 0o2070;
const OTHER: u32 = 0o1007;

impl ModeChange {
    /// Reads the value of `--chmod`.
    ///
    /// # Errors
    /// [`ModeError`] when it is neither an octal number up to 07777 nor a symbolic mode.
    pub fn parse(text: &str) -> Result<Self, ModeError> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
            return u32::from_str_radix(text, 8)
                .ok()
                .filter(|mode| octal && *mode <= 0o7777)
                .map(Self::Octal)
                .ok_or_else(|| ModeError::Octal(text.to_owned()));
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            parse_part(part.as_bytes(), &mut clauses)
                .ok_or_else(|| ModeError::Symbolic(text.to_owned()))?;
        }
        Ok(Self::Symbolic(clauses))
    }

    /// The permission bits that a file with the bits `mode` gets.
    #[must_use]
    pub fn apply(&self, mode: u32, directory: bool) -> u32 {
        match self {
            Self::Octal(bits) => *bits,
            Self::Symbolic(clauses) => clauses
                .iter()
                .fold(mode, |mode, clause| clause.apply(mode, directory)),
        }
    }
}

impl Clause {
    fn apply(self, mode: u32, directory: bool) -> u32 {
        let bits = match self.what {
            What::Bits {
                bits,
                execute_if_any,
            } => {
                let execute = execute_if_any && (directory || mode & 0o111 != 0);
                bits | if execute { 0o111 } else { 0 }
            }
            What::CopyOf(shift) => ((mode >> shift) & 0o7) * 0o111,
        };
        let bits = bits & self.classes;
        match self.action {
            Action::Add => mode | bits,
            Action::Remove => mode & !bits,
            Action::Set => {
                // The set-id bits of a directory mean something else, and go only when named.
                let kept = if directory { 0o6000 } else { 0 };
                mode & !(self.classes & !kept) | bits
            }
        }
    }
}

/// Reads `[ugoa]*([-+=]([rwxXst]*|[ugo]))+`.
fn parse_part(part: &[u8], clauses: &mut Vec<Clause>) -> Option<()> {
    let count = part
        .iter()
        .take_while(|byte| b"ugoa".contains(byte))
        .count();
    let (names, mut rest) = part.split_at(count);
    // The umask counts as 0, so no class at all is the same as `a`.
    let classes = names
        .iter()
        .map(|name| match name {
            b'u' => USER,
            b'g' => GROUP,
            b'o' => OTHER,
            _ => USER | GROUP | OTHER,
        })
        .reduce(|all, class| all | class)
        .unwrap_or(USER | GROUP | OTHER);
    if rest.is_empty() {
        return None;
    }
    while let Some((sign, tail)) = rest.split_first() {
        let action = match sign {
            b'+' => Action::Add,
            b'-' => Action::Remove,
            b'=' => Action::Set,
            _ => return None,
        };
        let length = tail
            .iter()
            .take_while(|byte| !b"+-=".contains(byte))
            .count();
        let (letters, after) = tail.split_at(length);
        clauses.push(Clause {
            classes,
            action,
            what: parse_letters(letters)?,
        });
        rest = after;
    }
    Some(())
}

fn parse_letters(letters: &[u8]) -> Option<What> {
    match letters {
        b"u" => return Some(What::CopyOf(6)),
        b"g" => return Some(What::CopyOf(3)),
        b"o" => return Some(What::CopyOf(0)),
        _ => {}
    }
    let mut bits = 0;
    let mut execute_if_any = false;
    for letter in letters {
        match letter {
            b'r' => bits |= 0o444,
            b'w' => bits |= 0o222,
            b'x' => bits |= 0o111,
            b's' => bits |= 0o6000,
            b't' => bits |= 0o1000,
            b'X' => execute_if_any = true,
            _ => return None,
        }
    }
    Some(What::Bits {
        bits,
        execute_if_any,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `chmod | before | file or dir | after or error`, A11.8.
    const CASES: &str = include_str!("../../../testdata/chmod.tsv");

    #[test]
    fn a11_8_cases() {
        for line in CASES.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [change, before, kind, after] = fields[..] else {
                panic!("four fields: {line}");
            };
            let before = u32::from_str_radix(before, 8).unwrap();
            let found = ModeChange::parse(change)
                .map(|change| format!("{:04o}", change.apply(before, kind == "dir")))
                .unwrap_or_else(|_| "error".to_owned());
            assert_eq!(found, after, "{line}");
        }
    }

    #[test]
    fn a11_8_message_of_a_bad_number() {
        assert_eq!(
            ModeChange::parse("64a").unwrap_err().to_string(),
            "invalid chmod parameter: '64a'. it should be octal string and between 0 and 07777"
        );
    }
}
