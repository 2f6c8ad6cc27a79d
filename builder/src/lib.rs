//! From Dockerfile to image.
//!
//! [`pipeline::build`] makes the calls of all stages in order: the Dockerfile is parsed
//! (`kiln-grammar`), [`lower`]ed to a [`graph`] of operations with a config, and [`schedule`]d:
//! what the [`cache`] remembers is taken from there, every other vertex is a [`step`] whose process
//! runs in the [`runtime`]'s sandbox, or whose files come out of the [`context`], and whose changes
//! become a [`snapshot`]. A snapshot packs to a [`layer`]; layers and config are an [`image`], which
//! lies in the [`store`] and leaves it for registries and archives (`kiln-registry`).
//!
//! A module uses only what stands left of it:
//!
//! ```text
//! sys, event < store, graph < layer, context < snapshot, runtime < lower < cache < step
//!     < schedule < image < pipeline < bin
//! ```

pub mod cache;
pub mod context;
pub mod event;
pub mod graph;
pub mod image;
pub mod layer;
pub mod lower;
pub mod pipeline;
pub mod runtime;
pub mod schedule;
pub mod snapshot;
pub mod step;
pub mod store;
pub mod sys;
