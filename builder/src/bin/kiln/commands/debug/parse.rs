//! `kiln debug parse`: a Dockerfile to its instructions, nothing expanded (A1 to A4, A13).

use kiln_grammar::ast;
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::syntax::{self, Flag, Syntax};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
pub(super) struct Question {
    dockerfile: String,
    #[serde(default)]
    level: Level,
}

/// How much is checked.
#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// Words, flags, JSON forms, continuation, heredocs.
    #[default]
    Syntax,
    /// All that is known without building.
    Instructions,
}

#[derive(Serialize)]
pub(super) struct Answer {
    nodes: Vec<Node>,
    escape: char,
    syntax: String,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Node {
    cmd: String,
    flags: Vec<String>,
    args: Vec<String>,
    json: bool,
    line: (u32, u32),
    heredocs: Vec<Heredoc>,
    sub: Option<Box<Node>>,
}

#[derive(Serialize)]
struct Heredoc {
    name: String,
    content: String,
    expand: bool,
    chomp: bool,
    fd: u32,
}

pub(super) fn answer(question: Question) -> Result<Answer, String> {
    let text = &question.dockerfile;
    if question.level == Level::Instructions {
        kiln_grammar::parse(text).map_err(|errors| first(&errors))?;
    }
    let syntax = syntax::parse(text).map_err(|error| error.message)?;
    if !syntax.errors.is_empty() {
        return Err(first(&syntax.errors));
    }
    if syntax.nodes.is_empty() {
        return Err("file with no instructions".to_owned());
    }
    Ok(Answer {
        escape: syntax.directives.escape,
        syntax: frontend(&syntax).to_owned(),
        warnings: syntax.warnings.iter().map(message).collect(),
        nodes: syntax.nodes.into_iter().map(Node::from).collect(),
    })
}

fn message(diagnostic: &Diagnostic) -> String {
    diagnostic.message.clone()
}

fn first(errors: &[Diagnostic]) -> String {
    errors.first().map(message).unwrap_or_default()
}

/// The frontend that the file asks for in whatever form (A2.4).
fn frontend(syntax: &Syntax) -> &str {
    let directive = syntax.directives.syntax.as_ref();
    let foreign = || Some(&syntax.foreign.as_ref()?.frontend);
    directive.or_else(foreign).map_or("", |word| &word.value)
}

impl From<syntax::Node> for Node {
    fn from(node: syntax::Node) -> Self {
        Self {
            cmd: node.keyword.value.to_lowercase(),
            flags: node.flags.iter().map(flag).collect(),
            args: node.args.into_iter().map(|word| word.value).collect(),
            json: node.json,
            line: node.lines,
            heredocs: node.heredocs.into_iter().map(Heredoc::from).collect(),
            sub: node.sub.map(|sub| Box::new(Self::from(*sub))),
        }
    }
}

impl From<ast::Heredoc> for Heredoc {
    fn from(heredoc: ast::Heredoc) -> Self {
        Self {
            name: heredoc.name,
            content: heredoc.content,
            expand: heredoc.expand,
            chomp: heredoc.chomp,
            fd: heredoc.fd,
        }
    }
}

/// A flag as it is written, without quotes.
fn flag(flag: &Flag) -> String {
    match &flag.value {
        Some(value) => format!("--{}={}", flag.name, value.value),
        None => format!("--{}", flag.name),
    }
}
