//! A command as rules look at it: the program that runs, whatever stands before it, and the places
//! of its words in the file.

use super::shell::{self, End};
use crate::diagnostic::Diagnostic;
use crate::source::Span;

/// Words of the shell that a command can stand behind.
const KEYWORDS: [&str; 10] = [
    "if", "elif", "while", "until", "!", "then", "else", "do", "{", "time",
];

/// Those whose command may fail without failing the script.
const CONDITIONS: [&str; 5] = ["if", "elif", "while", "until", "!"];

/// Programs that run another one, with those of their options that take a value.
const WRAPPERS: [(&str, &[&str]); 10] = [
    ("sudo", &["-u", "-g", "-h", "-p", "-C", "-D", "-R", "-T"]),
    ("env", &["-u", "-C", "-S"]),
    ("xargs", &["-n", "-I", "-a", "-P", "-L", "-d", "-E", "-s"]),
    ("nice", &["-n"]),
    ("timeout", &["-s", "-k"]),
    ("exec", &["-a"]),
    ("command", &[]),
    ("nohup", &[]),
    ("eatmydata", &[]),
    ("gosu", &[]),
];

/// A word and its place in the file.
#[derive(Debug)]
pub(super) struct Word {
    /// The word without its quotes.
    pub(super) value: String,
    /// Where it stands, quotes included.
    pub(super) span: Span,
    /// Whether it stands in the file exactly as it is.
    pub(super) plain: bool,
    /// Whether the shell expands something in it.
    pub(super) expands: bool,
    /// Whether it is an item of a JSON array.
    pub(super) item: bool,
}

impl Word {
    /// Adds an edit that puts another word behind this one.
    pub(super) fn followed_by(&self, option: &str, diagnostic: Diagnostic) -> Diagnostic {
        let Span { end, .. } = self.span;
        let place = Span { start: end, end };
        match (self.item, self.plain) {
            (true, _) => diagnostic.with_edit(place, format!(", \"{option}\"")),
            (false, true) => diagnostic.with_edit(place, format!(" {option}")),
            (false, false) => diagnostic,
        }
    }

    /// Adds an edit that puts another word in the place of this one.
    pub(super) fn replaced_by(&self, word: &str, diagnostic: Diagnostic) -> Diagnostic {
        match (self.item, self.plain) {
            (true, _) => diagnostic.with_edit(self.span, format!("\"{word}\"")),
            (false, true) => diagnostic.with_edit(self.span, word),
            (false, false) => diagnostic,
        }
    }

    /// Whether this is an option and not an operand.
    pub(super) fn is_option(&self) -> bool {
        self.value.len() > 1 && self.value.starts_with('-')
    }
}

/// A command of a script.
#[derive(Debug)]
pub(super) struct Call {
    words: Vec<Word>,
    /// Index of the program in `words`.
    program: usize,
    /// Index of `sudo`, where there is one.
    sudo: Option<usize>,
    /// Whether it is a condition: its failure fails nothing.
    pub(super) condition: bool,
    /// What stands behind it.
    pub(super) end: End,
    /// How many parentheses are open around it.
    pub(super) depth: usize,
    /// How many `$(...)` it stands in.
    pub(super) level: u8,
}

impl Call {
    /// Makes a call of a command's words; `None` if only assignments and keywords are there.
    pub(super) fn new(words: Vec<Word>, command: &shell::Command) -> Option<Self> {
        let value = |at: usize| words.get(at).map(|word| word.value.as_str());
        let mut at = 0;
        let mut condition = false;
        while let Some(word) = value(at).filter(|word| KEYWORDS.contains(word)) {
            condition |= CONDITIONS.contains(&word);
            at += 1;
        }
        let mut sudo = None;
        loop {
            while value(at).is_some_and(is_assignment) {
                at += 1;
            }
            let program = value(at).map(base_name);
            let Some((name, valued)) = WRAPPERS.iter().find(|(name, _)| program == Some(*name))
            else {
                break;
            };
            // `command -v program` only asks where it is.
            if *name == "command" && matches!(value(at + 1), Some("-v" | "-V")) {
                break;
            }
            if *name == "sudo" {
                sudo.get_or_insert(at);
            }
            let wrapped = skip_options(&words, at + 1, valued);
            // `timeout 10 command`, `gosu user command`
            let operands = usize::from(matches!(*name, "timeout" | "gosu"));
            if wrapped + operands >= words.len() {
                break;
            }
            at = wrapped + operands;
        }
        if at >= words.len() {
            return None;
        }
        Some(Self {
            words,
            program: at,
            sudo,
            condition,
            end: command.end,
            depth: command.depth,
            level: command.level,
        })
    }

    /// The program's word.
    pub(super) fn program(&self) -> &Word {
        // `new` makes no call without one.
        &self.words[self.program]
    }

    /// The program's name without its directory.
    pub(super) fn name(&self) -> &str {
        base_name(&self.program().value)
    }

    /// The word `sudo`, where the program runs through it.
    pub(super) fn sudo(&self) -> Option<&Word> {
        self.sudo.and_then(|at| self.words.get(at))
    }

    /// What stands behind the program.
    pub(super) fn args(&self) -> &[Word] {
        self.words.get(self.program + 1..).unwrap_or_default()
    }

    /// All words, with what stands before the program.
    pub(super) fn words(&self) -> &[Word] {
        &self.words
    }

    /// The first operand, and what stands behind it; `valued` are options that take a value.
    pub(super) fn subcommand(&self, valued: &[&str]) -> Option<(&Word, &[Word])> {
        let at = skip_options(&self.words, self.program + 1, valued);
        let word = self.words.get(at)?;
        Some((word, self.words.get(at + 1..).unwrap_or_default()))
    }

    /// Whether one of some options is given, `--name` or `--name=value`, wherever it stands.
    pub(super) fn has(&self, options: &[&str]) -> bool {
        self.option(options).is_some()
    }

    /// The word that is one of some options.
    pub(super) fn option(&self, options: &[&str]) -> Option<&Word> {
        self.args().iter().find(|word| {
            let name = word.value.split('=').next().unwrap_or_default();
            options.contains(&name)
        })
    }

    /// The word of short options that has a letter, as `-fsSLk` has `k`.
    pub(super) fn letter(&self, letter: char) -> Option<&Word> {
        self.args().iter().find(|word| {
            let letters = word.value.strip_prefix('-').unwrap_or_default();
            !letters.starts_with('-') && letters.contains(letter)
        })
    }

    /// Program and subcommand as one text for messages.
    pub(super) fn title(&self, subcommand: &Word) -> String {
        format!("{} {}", self.name(), subcommand.value)
    }
}

/// The operands among words; `valued` are options that take a value.
pub(super) fn operands<'w>(
    words: &'w [Word],
    valued: &'w [&str],
) -> impl Iterator<Item = &'w Word> {
    let mut value = false;
    words.iter().filter(move |word| {
        let operand = !value && !word.is_option();
        value = !value && valued.contains(&word.value.as_str());
        operand
    })
}

/// The index behind options and their values.
fn skip_options(words: &[Word], from: usize, valued: &[&str]) -> usize {
    let mut at = from;
    while let Some(word) = words.get(at).filter(|word| word.is_option()) {
        at += 1;
        if word.value == "--" {
            break;
        }
        at += usize::from(valued.contains(&word.value.as_str()));
    }
    at.min(words.len())
}

fn is_assignment(word: &str) -> bool {
    let Some((name, _)) = word.split_once('=') else {
        return false;
    };
    let name = name.strip_suffix('+').unwrap_or(name);
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A path's last part.
pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
