//! `kiln manifest` and `kiln index`, which are one.

use clap::{Args, Subcommand};

/// What is done with lists of images.
#[derive(Debug, Subcommand)]
pub(crate) enum ListCommand {
    /// Begin a list of images for several platforms, here in the store
    Create(CreateArgs),
    /// Change what a list says of one of its images
    Annotate(AnnotateArgs),
    /// Show a manifest or index as it is: of a list here, or of a registry
    Inspect(InspectListArgs),
    /// Send a list to its registry, and what the registry lacks of its images
    Push(PushListArgs),
    /// Remove lists from the store
    Rm(RmListArgs),
}

/// `create`
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Add to the list where there is one already
    #[arg(short, long)]
    pub(crate) amend: bool,
    /// Let the images' registries speak plain HTTP, and do not check their certificates
    #[arg(long = "insecure")]
    pub(crate) unchecked: bool,
    /// Annotation of the whole list; may be repeated
    #[arg(long = "annotation", value_name = "KEY=VALUE")]
    pub(crate) annotations: Vec<String>,
    /// Name of the list, NAME[:TAG]
    #[arg(value_name = "LIST")]
    pub(crate) list: String,
    /// Images in registries; of an index all images are added
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

/// `annotate`
#[derive(Debug, Args)]
pub(crate) struct AnnotateArgs {
    /// Operating system
    #[arg(long, value_name = "OS")]
    pub(crate) os: Option<String>,
    /// Processor architecture
    #[arg(long, value_name = "ARCH")]
    pub(crate) arch: Option<String>,
    /// Variant of the architecture
    #[arg(long, value_name = "VARIANT")]
    pub(crate) variant: Option<String>,
    /// Version of the operating system
    #[arg(long, value_name = "VERSION")]
    pub(crate) os_version: Option<String>,
    /// Features of the operating system, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "FEATURE")]
    pub(crate) os_features: Vec<String>,
    /// Annotation of the image in the list; may be repeated
    #[arg(long = "annotation", value_name = "KEY=VALUE")]
    pub(crate) annotations: Vec<String>,
    /// The list
    #[arg(value_name = "LIST")]
    pub(crate) list: String,
    /// The image, as it was added, or its digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

/// `inspect`
#[derive(Debug, Args)]
pub(crate) struct InspectListArgs {
    /// Show every image of an index with its descriptor and content, as docker does
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Let the registry speak plain HTTP, and do not check its certificate
    #[arg(long = "insecure")]
    pub(crate) unchecked: bool,
    /// A list or an image; or a list, and then an image of it
    #[arg(required = true, num_args = 1..=2, value_name = "[LIST] IMAGE")]
    pub(crate) names: Vec<String>,
}

/// `push`
#[derive(Debug, Args)]
pub(crate) struct PushListArgs {
    /// Remove the list from the store afterwards
    #[arg(short, long)]
    pub(crate) purge: bool,
    /// Let the registry speak plain HTTP, and do not check its certificate
    #[arg(long = "insecure")]
    pub(crate) unchecked: bool,
    /// Say nothing but the digest
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The list
    #[arg(value_name = "LIST")]
    pub(crate) list: String,
}

/// `rm`
#[derive(Debug, Args)]
pub(crate) struct RmListArgs {
    /// The lists
    #[arg(required = true, value_name = "LIST")]
    pub(crate) lists: Vec<String>,
}
