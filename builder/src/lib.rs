//! From Dockerfile to image.

pub mod graph;
pub mod lower;
pub mod runtime;
pub mod sys;
