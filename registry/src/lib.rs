//! Images as bytes and names.
//!
//! [`mod@reference`] names images, [`digest`] and [`spec`] say what they are. A place that an image can
//! be at is a [`blob::BlobSource`], a [`blob::BlobSink`], or both: a repository of a registry
//! ([`client`], with [`credentials`] and [`settings`]), an OCI layout ([`layout`]), an archive
//! ([`archive`]), or the builder's own store. [`transfer::copy`] moves an image from one to another,
//! [`copy`] all of what a registry, layout or archive has of it.
//!
//! [`server`] is a registry itself, over a folder.
//!
//! Nothing here prints; the environment is read by [`credentials`], [`settings`] and the client's
//! certificate set-up only.
#![forbid(unsafe_code)]

pub mod archive;
pub mod blob;
pub mod client;
pub mod copy;
pub mod credentials;
pub mod digest;
mod files;
pub mod layout;
pub mod reference;
pub mod section;
pub mod server;
pub mod settings;
pub mod spec;
pub mod transfer;
