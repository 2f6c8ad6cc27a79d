//! Nodes to the typed Dockerfile: instructions, stages, and what is wrong with them.
//!
//! Whatever can be known without building is checked here: instructions, flags, argument counts,
//! stage names, `ONBUILD` chains. Nothing is expanded.

mod duration;
mod flags;
mod instruction;

use crate::ast::{Dockerfile, Instruction, Kind, Stage};
use crate::diagnostic::{Diagnostic, did_you_mean, shorten, suggest};
use crate::source::{Span, Spanned};
use crate::syntax::{self, Foreign, KEYWORDS, MAX_ERRORS, Node, keyword};
use flags::{Flags, Takes};

/// Parses a Dockerfile (A1 to A13).
///
/// # Errors
///
/// Everything that is wrong with it, in the order of the file, at most [`MAX_ERRORS`] of them.
pub fn parse(text: &str) -> Result<Dockerfile, Vec<Diagnostic>> {
    if text.is_empty() {
        let error = Diagnostic::error("the Dockerfile cannot be empty", Span::default());
        return Err(vec![error]);
    }
    let syntax = syntax::parse(text).map_err(|error| vec![error])?;
    if let Some(foreign) = &syntax.foreign {
        return Err(vec![no_dockerfile(foreign)]);
    }
    let mut builder = Builder {
        dockerfile: Dockerfile {
            directives: syntax.directives,
            global_args: Vec::new(),
            stages: Vec::new(),
            warnings: syntax.warnings,
        },
        errors: syntax.errors,
        stray: false,
    };
    let nothing = syntax.nodes.is_empty();
    for node in &syntax.nodes {
        if builder.errors.len() >= MAX_ERRORS {
            break;
        }
        builder.add(node);
    }
    builder.finish(nothing)
}

/// Parses the text of one `ONBUILD` trigger as an image config holds it: one instruction, its
/// heredoc bodies behind it. Spans count from the start of that text.
///
/// # Errors
///
/// What is wrong with it; an instruction that cannot be a trigger is wrong too (A7.12).
pub fn parse_trigger(text: &str, escape: char) -> Result<Instruction, Vec<Diagnostic>> {
    let syntax = syntax::parse_trigger(text, escape).map_err(|error| vec![error])?;
    if !syntax.errors.is_empty() {
        return Err(syntax.errors);
    }
    match syntax.nodes.as_slice() {
        [node] => instruction::trigger(node).map_err(|error| vec![error]),
        _ => {
            let message = format!(
                "an ONBUILD trigger is one instruction, this text has {}",
                syntax.nodes.len()
            );
            Err(vec![Diagnostic::error(message, Span::default())])
        }
    }
}

/// What an instruction before the first `FROM` is told.
const NO_STAGE: &str = "no build stage in current context";

/// The error for a file that another frontend than a Dockerfile's is to read (A2.4).
fn no_dockerfile(foreign: &Foreign) -> Diagnostic {
    let frontend = shorten(&foreign.frontend.value);
    let message = format!(
        "the file asks for the frontend `{frontend}` as `{}`: it is no Dockerfile",
        foreign.form
    );
    Diagnostic::error(message, foreign.frontend.span)
        .with_hint(format!("a Dockerfile asks for it as `# syntax={frontend}`"))
}

/// A Dockerfile while it is put together.
struct Builder {
    dockerfile: Dockerfile,
    errors: Vec<Diagnostic>,
    /// Whether an instruction before the first `FROM` was reported; it is said once.
    stray: bool,
}

impl Builder {
    fn add(&mut self, node: &Node) {
        if keyword(node) == "from" {
            // A stage that is wrong in itself still takes the instructions behind it.
            let stage = stage(node).unwrap_or_else(|error| {
                self.errors.push(error);
                Stage {
                    base: Spanned::new(String::new(), node.span),
                    platform: None,
                    name: None,
                    span: node.span,
                    instructions: Vec::new(),
                }
            });
            return self.dockerfile.stages.push(stage);
        }
        match instruction::parse(node) {
            Ok(instruction) => self.place(instruction),
            Err(error) => self.errors.push(error),
        }
    }

    fn place(&mut self, instruction: Instruction) {
        if let Some(stage) = self.dockerfile.stages.last_mut() {
            stage.instructions.push(instruction);
        } else if matches!(instruction.kind, Kind::Arg(_)) {
            self.dockerfile.global_args.push(instruction);
        } else if !std::mem::replace(&mut self.stray, true) {
            let error = Diagnostic::error(NO_STAGE, instruction.span);
            let hint = "only ARG can stand before the first FROM";
            self.errors.push(error.with_hint(hint));
        }
    }

    fn finish(mut self, nothing: bool) -> Result<Dockerfile, Vec<Diagnostic>> {
        if self.errors.is_empty() && self.dockerfile.stages.is_empty() {
            let message = if nothing {
                "file with no instructions"
            } else {
                "dockerfile contains no stages to build"
            };
            self.errors
                .push(Diagnostic::error(message, Span::default()));
        }
        if self.errors.is_empty() {
            return Ok(self.dockerfile);
        }
        // What follows an unknown instruction (a misspelled `FROM`?) is no news.
        self.errors.sort_by_key(|error| error.span.start);
        let mut unknown = false;
        self.errors.retain(|error| {
            unknown |= error.message.starts_with("unknown instruction");
            !unknown || error.message != NO_STAGE
        });
        self.errors.truncate(MAX_ERRORS);
        Err(self.errors)
    }
}

/// `FROM [--platform=P] base [AS name]` (A7.1).
fn stage(node: &Node) -> Result<Stage, Diagnostic> {
    let (base, name) = match node.args.as_slice() {
        [base] => (base, None),
        [base, word, name] if word.value.eq_ignore_ascii_case("as") => (base, Some(name)),
        _ => {
            let message = "FROM requires either one or three arguments";
            let hint = "write FROM image, or FROM image AS name";
            return Err(Diagnostic::error(message, node.span).with_hint(hint));
        }
    };
    let name = name.map(stage_name).transpose()?;
    let flags = Flags::check(node, &[("platform", Takes::Value)])?;
    Ok(Stage {
        base: base.clone(),
        platform: flags.value("platform"),
        name,
        span: node.span,
        instructions: Vec::new(),
    })
}

/// Checks the name of a stage; it counts in lower case (A7.1).
fn stage_name(word: &Spanned<String>) -> Result<Spanned<String>, Diagnostic> {
    let name = word.value.to_lowercase();
    let good = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
        });
    if good {
        return Ok(Spanned::new(name, word.span));
    }
    let message = format!(
        "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
        shorten(&word.value)
    );
    Err(Diagnostic::error(message, word.span))
}

/// The error for an instruction that does not exist (A1.11).
fn unknown(node: &Node) -> Diagnostic {
    let near = suggest(&node.keyword.value, KEYWORDS).map(str::to_uppercase);
    let message = format!(
        "unknown instruction: {}{}",
        shorten(&node.keyword.value),
        did_you_mean(near.as_deref())
    );
    let error = Diagnostic::error(message, node.keyword.span);
    if node.keyword.value.is_empty() {
        return error.with_hint("remove the continuation at the end of the file");
    }
    error
}
