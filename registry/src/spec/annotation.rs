//! Annotations that name an image in an index (D10.3).

/// The tag of an image in a layout, or whatever text it is listed under.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The whole name of an image, as containerd and docker write it.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
