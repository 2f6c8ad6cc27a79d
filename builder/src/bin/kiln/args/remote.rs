//! The verbs that work on registries, past the store.

use clap::{Args, ValueEnum};

/// `kiln copy`
#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// Copy only the image for this platform, OS/ARCH[/VARIANT]; all platforms without
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Copy all tags; neither source nor destination names one then
    #[arg(short, long)]
    pub(crate) all_tags: bool,
    /// Copy what refers to the images, too: signatures, attestations
    #[arg(long)]
    pub(crate) referrers: bool,
    /// Blobs moved at once
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=64), value_name = "N")]
    pub(crate) jobs: u8,
    /// Print nothing but digests
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// [docker://]NAME[:TAG][@DIGEST], oci:FOLDER[:TAG], oci-archive:FILE[:NAME] or
    /// docker-archive:FILE[:NAME]
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// The same; an archive is written anew, in docker's and OCI's form at once
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: String,
}

/// `kiln tags`
#[derive(Debug, Args)]
pub(crate) struct TagsArgs {
    /// Print whole names, not tags alone
    #[arg(long)]
    pub(crate) full_ref: bool,
    /// Leave out tags made of digests, which hold signatures and lists of referrers
    #[arg(short = 'O', long)]
    pub(crate) omit_digest_tags: bool,
    /// Form of the list
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub(crate) format: ListFormat,
    /// Say nothing but the tags
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The repository
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// Forms of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

/// `kiln rm-remote`
#[derive(Debug, Args)]
pub(crate) struct RmRemoteArgs {
    /// Delete a digest although several tags name it
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Tags, which alone are deleted, or digests, which go with all their tags
    #[arg(required = true, value_name = "NAME[:TAG|@DIGEST]")]
    pub(crate) names: Vec<String>,
}

/// `kiln referrers`
#[derive(Debug, Args)]
pub(crate) struct ReferrersArgs {
    /// Show only referrers of this type
    #[arg(long, value_name = "TYPE")]
    pub(crate) artifact_type: Option<String>,
    /// Form of the list; json is the registry's own, an index
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub(crate) format: ListFormat,
    /// Show what refers to the image for this platform, OS/ARCH[/VARIANT]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// The image, NAME[:TAG][@DIGEST]
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// `kiln search`
#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// Most repositories to show
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u8).range(1..=100), value_name = "N")]
    pub(crate) limit: u8,
    /// Show only some: stars=N, is-official=true|false; may be repeated
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    pub(crate) filters: Vec<String>,
    /// Form of each line: json, or a text with {{.Name}}, {{.Description}}, {{.StarCount}},
    /// {{.IsOfficial}}; a table when it begins with `table`
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Do not shorten descriptions
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Host to search, HOST[:PORT] or a URL [default: Docker Hub]
    #[arg(long, env = "KILN_SEARCH_HOST", value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// What to search for
    #[arg(value_name = "TERM")]
    pub(crate) term: String,
}
