//! Steps without the right to mount or to make namespaces: root in an ordinary container. A step
//! gets a changed root directory and nothing else, and what it is to see besides its image is put
//! there for the time of the run.
//!
//! Root can leave a changed root directory. Steps are therefore not isolated from each other, from
//! kiln, or from the container around them; what this level cannot give is refused by [`check`].
//! Read in this order: `cover` (what is put into the root, and taken out again), `keep` (the
//! processes).

mod cover;
mod keep;

use super::{Files, Mount, Network, Privileges, ProcessSpec, RuntimeError, Streams};

pub(super) use cover::{COVERED, Covers};
pub(super) use keep::keep;

/// Refuses what cannot be given at this level.
///
/// # Errors
/// [`RuntimeError::Level`] that names it.
pub(super) fn check(spec: &ProcessSpec) -> Result<(), RuntimeError> {
    let writable = spec.mounts.iter().find_map(|mount| match mount {
        Mount::Bind {
            source,
            writable: true,
            ..
        } => Some(source),
        _ => None,
    });
    let what = if matches!(spec.root.files, Files::Overlay { .. }) {
        "a root that overlayfs makes".to_owned()
    } else if spec.root.read_only {
        "a read-only root".to_owned()
    } else if spec.network == Network::None {
        "a step without network".to_owned()
    } else if spec.network != Network::Host {
        "a network namespace".to_owned()
    } else if spec.privileges == Privileges::Insecure {
        "a step with all privileges".to_owned()
    } else if matches!(spec.streams, Streams::Terminal { .. }) {
        "a terminal".to_owned()
    } else if let Some(source) = writable {
        format!("writing to `{}`", source.display())
    } else {
        return Ok(());
    };
    Err(RuntimeError::Level { what })
}
