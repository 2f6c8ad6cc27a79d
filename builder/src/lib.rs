//! From Dockerfile to image.

pub mod context;
pub mod graph;
pub mod runtime;
pub mod step;
pub mod sys;
