//! Nodes to the typed Dockerfile: instructions, stages, and what is wrong with them.
//!
//! Whatever can be known without building is checked here: instructions, flags, argument counts,
//! stage names, `ONBUILD` chains. Nothing is expanded.

mod duration;
mod flags;
mod instruction;

use crate::ast::{Dockerfile, Instruction, Kind, Stage};
use crate::diagnostic::{Diagnostic, shorten, suggest};
use crate::source::{Span, Spanned};
use crate::syntax::{self, KEYWORDS, MAX_ERRORS, Node, keyword};
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
            let error = Diagnostic::error("no build stage in current context", instruction.span);
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
        let unknown = |error: &Diagnostic| error.message.starts_with("unknown instruction");
        if self.errors.iter().any(unknown) {
            self.errors
                .retain(|error| error.message != "no build stage in current context");
        }
        self.errors.sort_by_key(|error| error.span.start);
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
    let message = format!("unknown instruction: {}", shorten(&node.keyword.value));
    let error = Diagnostic::error(message, node.keyword.span);
    match suggest(&node.keyword.value, KEYWORDS) {
        Some(name) => error.with_hint(format!("did you mean {}?", name.to_uppercase())),
        None => error,
    }
}
