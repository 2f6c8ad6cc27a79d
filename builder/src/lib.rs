//! From Dockerfile to image.

pub mod graph;
pub mod layer;
pub mod runtime;
pub mod sys;
