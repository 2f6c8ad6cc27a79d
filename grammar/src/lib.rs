//! The Dockerfile language.
#![forbid(unsafe_code)]

pub mod ast;
pub mod diagnostic;
pub mod source;
