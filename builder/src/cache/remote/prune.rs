//! Keeping a cache in a folder within its size.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use kiln_registry::digest::Digest;
use kiln_registry::layout::Layout;
use kiln_registry::spec::media_type::{is_index, is_manifest};
use kiln_registry::spec::{Descriptor, Index, Manifest};

use super::RemoteError;
use super::document::{Contents, MAX_CONFIG};

/// Bytes of a document that a step and its layer take, at most.
const RECORD: u64 = 600;
/// An index may hold indexes, but not without end.
const DEPTH: usize = 4;

/// Drops the steps that were used longest ago, until the layers of the others have no more bytes than
/// `max` and their document is not too large; gives the bytes.
pub(super) fn fit(contents: &mut Contents, max: Option<u64>) -> u64 {
    let max = max.unwrap_or(u64::MAX);
    let most = usize::try_from(MAX_CONFIG / RECORD).unwrap_or(usize::MAX);
    let mut numbers = vec![None; contents.layers.len()];
    let mut layers = Vec::new();
    let mut held = 0_u64;
    let steps = std::mem::take(&mut contents.steps);
    for mut step in steps {
        if contents.steps.len() == most {
            break;
        }
        let layer = &contents.layers[step.layer];
        let number = match numbers[step.layer] {
            Some(number) => number,
            None if held.saturating_add(layer.blob.size) > max => continue,
            None => {
                held += layer.blob.size;
                layers.push(layer.clone());
                layers.len() - 1
            }
        };
        numbers[step.layer] = Some(number);
        step.layer = number;
        contents.steps.push(step);
    }
    contents.layers = layers;
    held
}

/// Removes blobs of a layout that nothing which it lists refers to. Where something listed cannot be
/// understood, nothing is removed.
pub(in crate::cache) fn prune(folder: &Path) -> Result<(), RemoteError> {
    let layout = Layout::open(folder)?;
    let mut keep = HashSet::new();
    for listed in layout.index()?.manifests {
        if !reach(&layout, &listed, DEPTH, &mut keep) {
            return Ok(());
        }
    }
    let blobs = folder.join("blobs/sha256");
    let failed = |source| RemoteError::Io {
        action: "dropping old entries of the cache",
        source,
    };
    for entry in fs::read_dir(&blobs).map_err(failed)?.flatten() {
        let name = entry.file_name();
        let digest = name
            .to_str()
            .and_then(|name| format!("sha256:{name}").parse().ok());
        if digest.is_some_and(|digest: Digest| !keep.contains(&digest)) {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

/// Adds what a listed document refers to; says whether it was understood.
fn reach(layout: &Layout, listed: &Descriptor, depth: usize, keep: &mut HashSet<Digest>) -> bool {
    keep.insert(listed.digest);
    let Ok(bytes) = layout.document(listed) else {
        // What is not there refers to nothing.
        return !layout.blob_path(&listed.digest).exists();
    };
    if is_manifest(&listed.media_type) {
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else {
            return false;
        };
        let parts = manifest.layers.iter().chain([&manifest.config]);
        keep.extend(parts.map(|part| part.digest));
        return true;
    }
    if is_index(&listed.media_type) && depth > 0 {
        let index = serde_json::from_slice::<Index>(&bytes);
        return index.is_ok_and(|index| {
            let mut all = index.manifests.iter();
            all.all(|one| reach(layout, one, depth - 1, keep))
        });
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::document::{Collected, Layer, LayerFacts};
    use super::*;
    use kiln_registry::spec::DiffId;
    use kiln_registry::spec::media_type::OCI_LAYER_GZIP;

    fn layer(name: &str, size: u64) -> Layer {
        let digest = Digest::of(name.as_bytes());
        Layer {
            facts: LayerFacts {
                diff_id: DiffId(digest),
                size,
                created: 0,
                bytes: 0,
                entries: 0,
            },
            blob: Descriptor::new(OCI_LAYER_GZIP, digest, size),
        }
    }

    #[test]
    fn c5_the_oldest_entries_go_first() {
        let mut collected = Collected::default();
        for (key, name) in [("1", "a"), ("2", "b"), ("3", "a"), ("4", "c"), ("5", "d")] {
            let size = if name == "d" { 1 } else { 10 };
            collected.add(Digest::of(key.as_bytes()), None, &layer(name, size));
        }
        let mut contents = collected.contents;
        assert_eq!(fit(&mut contents.clone(), None), 31);
        assert_eq!(fit(&mut contents, Some(21)), 21);
        let kept: Vec<_> = contents
            .steps
            .iter()
            .map(|step| contents.layers[step.layer].blob.digest)
            .collect();
        let [a, b, d] = ["a", "b", "d"].map(|name| Digest::of(name.as_bytes()));
        assert_eq!(kept, [a, b, a, d], "c is the first that does not fit");
        assert_eq!(contents.layers.len(), 3);
    }

    #[test]
    fn c5_a_build_that_fails_keeps_so_many_older_steps() {
        let of = |names: &[&str]| {
            let mut collected = Collected::default();
            for name in names {
                collected.add(Digest::of(name.as_bytes()), None, &layer(name, 10));
            }
            collected
        };
        let older = of(&["a", "b", "c", "d"]).contents;
        for (most, expected) in [
            (9, &["new", "b", "a", "c", "d"][..]),
            (3, &["new", "b", "a"]),
            (1, &["new", "b"]),
        ] {
            let mut collected = of(&["new", "b"]);
            collected.add_older(&older, most);
            assert_eq!(collected.contents, of(expected).contents);
        }
    }
}
