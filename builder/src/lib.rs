//! From Dockerfile to image.

pub mod graph;
pub mod runtime;
pub mod sys;
