//! Layers: a directory in overlayfs's form to a tar, and back.
//!
//! [`pack()`] walks a directory that overlayfs wrote to (or that kiln filled in the same form) and
//! writes the layer's tar; [`seal()`] does so while it takes the digests and compresses, in one
//! pass; [`follow()`] takes the digest while the directory is still being filled. [`unpack()`] makes such a directory from a layer, or extracts an archive for `ADD`.
//! [`merge()`] makes one tree of several such directories where overlayfs cannot.
//! [`tar`] is the format itself, [`gzip`] and [`mod@zstd`] the compressors whose bytes are always the same,
//! [`archive`] tells archives from other files. A layer's bytes are fixed: see [`pack()`] for the
//! order and [`tar::Writer`] for the form.

mod ahead;
pub mod archive;
mod beside;
pub mod compression;
pub mod copy;
pub mod encode;
pub mod follow;
pub mod gzip;
pub mod merge;
pub mod pack;
pub mod seal;
pub mod tar;
pub mod unpack;
pub mod whiteout;
pub mod zstd;

use crate::sys::xattr;

pub use ahead::read_ahead;
pub use archive::{Sniffed, is_tar_archive, sniff};
pub use compression::{Compression, Limits, decompressor};
pub use copy::{Copier, How, TreeError};
pub use encode::Encoder;
pub use follow::{Following, Writing, follow};
pub use merge::merge;
pub use pack::{PackError, PackOptions, PackWarning, Packed, Promise, pack, pack_at};
pub use seal::{Hashing, Sealed, diff_id, pack_digested, seal};
pub use unpack::{
    Below, Form, Owner, UnpackError, UnpackOptions, UnpackWarning, Unpacked, unpack, unpack_at,
};

#[cfg(test)]
mod tests;
