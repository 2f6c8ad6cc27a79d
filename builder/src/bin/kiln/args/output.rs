//! Where what `kiln build` makes goes.

use std::path::PathBuf;

use clap::Args;

/// The outputs of a build (C4).
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Where the result goes besides the cache: a folder for its files, `-` for a tar of them on
    /// standard output, or type=local|tar|oci|docker|image|registry|cacheonly with options; may be
    /// repeated [default: the store]
    #[arg(short, long = "output", value_name = "FOLDER|-|type=TYPE,...")]
    pub(crate) outputs: Vec<String>,

    /// Keep the image in the store under its names, also with other outputs
    #[arg(long)]
    pub(crate) load: bool,

    /// Annotation for the image's manifest; may be repeated
    #[arg(long = "annotation", value_name = "[manifest:]KEY=VALUE")]
    pub(crate) annotations: Vec<String>,

    /// Write digests and names of the result to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
}
