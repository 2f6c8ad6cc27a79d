//! Images as bytes and names.
#![forbid(unsafe_code)]

pub mod archive;
pub mod blob;
pub mod client;
pub mod credentials;
pub mod digest;
pub mod layout;
pub mod reference;
pub mod section;
pub mod spec;
