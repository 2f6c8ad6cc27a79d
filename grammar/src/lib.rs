//! The Dockerfile language.
#![forbid(unsafe_code)]

pub mod ast;
pub mod diagnostic;
mod directive;
pub mod dockerignore;
pub mod glob;
pub mod mount;
mod parse;
mod pattern;
pub mod source;
pub mod syntax;
pub mod word;

pub use parse::{parse, parse_trigger};
