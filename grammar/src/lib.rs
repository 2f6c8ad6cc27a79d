//! The Dockerfile language: text to typed instructions, pure, without I/O.
//!
//! A Dockerfile goes through three stages, each with its own types:
//!
//! 1. [`source`] joins continuation lines and drops comments; what stays is one logical line for
//!    each instruction, with the way back to the bytes of the file.
//! 2. [`syntax`] cuts a line into keyword, flags and arguments and takes heredoc bodies. The
//!    grammar is `dockerfile.pest`; its rules are seen nowhere else.
//! 3. [`parse()`] types each instruction ([`ast`]) and puts the stages together. What is wrong comes
//!    back as [`diagnostic`]s with their places, several at once.
//!
//! [`mod@print`] turns the typed Dockerfile into text again.
//!
//! Nothing is expanded on the way, since values are known only while a build is planned: [`word`]
//! does it, over a lookup closure. Beside them stand the small languages inside the language:
//! [`mount`] for `RUN --mount`, [`glob`] for the wildcards of `COPY`, [`dockerignore`] for ignore
//! files and `COPY --exclude`. [`lint`] finds what is legal and yet probably not meant.
//!
//! Input is not trusted: sizes, depths and the work of patterns are bounded, and every bound has
//! an error that names it.
//!
//! ```
//! let dockerfile = kiln_grammar::parse("FROM alpine AS build\nRUN echo hello\n").unwrap();
//! assert_eq!(dockerfile.stages[0].base.value, "alpine");
//! assert_eq!(dockerfile.stages[0].instructions.len(), 1);
//! ```
#![forbid(unsafe_code)]

pub mod ast;
pub mod diagnostic;
mod directive;
pub mod dockerignore;
pub mod glob;
pub mod lint;
pub mod mount;
mod parse;
mod pattern;
pub mod print;
pub mod source;
pub mod syntax;
pub mod word;

pub use parse::{parse, parse_trigger};
pub use pattern::PatternError;
