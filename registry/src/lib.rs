//! Images as bytes and names.
#![forbid(unsafe_code)]

pub mod blob;
pub mod client;
pub mod credentials;
pub mod digest;
pub mod reference;
pub mod spec;
pub mod transfer;
