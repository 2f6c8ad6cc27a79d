//! Writing an archive that is a docker archive and an OCI archive at once (D10.1).
//!
//! Members in order: `oci-layout`, the blobs as they are added, `index.json`, `manifest.json`,
//! `repositories`. The same calls give the same bytes: no time, owner or host gets in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read, Write};

use serde::Serialize;
use tar::{EntryType, Header};

use super::ArchiveError;
use super::read::blob_name;
use crate::digest::{Digest, Mismatch, Verified};
use crate::reference::Reference;
use crate::spec::annotation::{IMAGE_NAME, REF_NAME};
use crate::spec::platform::choose;
use crate::spec::{Descriptor, Index, Manifest, Platform, Raw, media_type};

/// Bytes moved at once.
const CHUNK: usize = 256 * 1024;
const BLOCK: usize = 512;

/// Writes images to one file, or pipe, each blob once.
///
/// Children come before parents: blobs, then manifests, then indexes, then the images' names.
#[derive(Debug)]
pub struct ArchiveWriter<W: Write> {
    out: W,
    blobs: HashSet<Digest>,
    manifests: HashMap<Digest, Raw<Manifest>>,
    indexes: HashMap<Digest, Raw<Index>>,
    index: Vec<Descriptor>,
    docker: Vec<DockerImage>,
    repositories: BTreeMap<String, BTreeMap<String, String>>,
    broken: bool,
}

/// An image in `manifest.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

impl<W: Write> ArchiveWriter<W> {
    /// Begins an archive.
    ///
    /// # Errors
    /// [`ArchiveError::Io`] when it cannot be written.
    pub fn new(out: W) -> Result<Self, ArchiveError> {
        let mut writer = Self {
            out,
            blobs: HashSet::new(),
            manifests: HashMap::new(),
            indexes: HashMap::new(),
            index: Vec::new(),
            docker: Vec::new(),
            repositories: BTreeMap::new(),
            broken: false,
        };
        writer.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        writer.header("blobs/", EntryType::Directory, 0)?;
        writer.header("blobs/sha256/", EntryType::Directory, 0)?;
        Ok(writer)
    }

    /// Whether a blob is in the archive already.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains(digest)
    }

    /// Adds a blob, verified while it is written; `false`, without reading it, when it is there.
    ///
    /// # Errors
    /// [`ArchiveError::Mismatch`] when the content is not what the descriptor says,
    /// [`ArchiveError::Io`] when it cannot be read or written. The archive is broken then.
    pub fn add_blob(&mut self, blob: &Descriptor, reader: impl Read) -> Result<bool, ArchiveError> {
        if !self.blobs.insert(blob.digest) {
            return Ok(false);
        }
        let name = blob_name(&blob.digest);
        self.header(&name, EntryType::Regular, blob.size)?;
        let outcome = self.content(&name, Verified::new(reader, blob.digest, blob.size));
        self.broken |= outcome.is_err();
        outcome.map(|()| true)
    }

    /// Adds a blob that `write` writes, which gives the digest of all that it has written; `false`, without
    /// calling it, when it is there. For who takes the digest beside the writing.
    ///
    /// # Errors
    /// Those of `write`, and as [`ArchiveWriter::add_blob`]. The archive is broken then.
    pub fn add_blob_by<E: From<ArchiveError>>(
        &mut self,
        blob: &Descriptor,
        write: impl FnOnce(&mut dyn Write) -> Result<Digest, E>,
    ) -> Result<bool, E> {
        if !self.blobs.insert(blob.digest) {
            return Ok(false);
        }
        self.header(&blob_name(&blob.digest), EntryType::Regular, blob.size)?;
        let outcome = self.written_by(blob, write);
        self.broken |= outcome.is_err();
        outcome.map(|()| true)
    }

    fn written_by<E: From<ArchiveError>>(
        &mut self,
        blob: &Descriptor,
        write: impl FnOnce(&mut dyn Write) -> Result<Digest, E>,
    ) -> Result<(), E> {
        let mut content = Content {
            archive: self,
            blob,
            written: 0,
            failure: None,
        };
        let digest = write(&mut content);
        let written = content.written;
        // What the archive could not take is the reason of what `write` says.
        if let Some(failure) = content.failure {
            return Err(failure.into());
        }
        let (expected, actual) = (blob.digest, digest?);
        if written != blob.size {
            return Err(mismatch(blob, size_mismatch(blob, written)).into());
        }
        if actual != expected {
            return Err(mismatch(blob, Mismatch::Digest { expected, actual }).into());
        }
        Ok(self.pad(written)?)
    }

    /// Adds a manifest or index, bytes unchanged, after everything it refers to.
    ///
    /// # Errors
    /// As [`ArchiveWriter::add_blob`]; [`ArchiveError::Document`] when it cannot be understood.
    pub fn add_manifest(
        &mut self,
        descriptor: &Descriptor,
        bytes: &[u8],
    ) -> Result<bool, ArchiveError> {
        let unreadable = |source| ArchiveError::Document {
            member: descriptor.digest.to_string(),
            source,
        };
        let digest = Digest::of(bytes);
        if media_type::is_index(&descriptor.media_type) {
            let index = Raw::parse(bytes.to_vec()).map_err(unreadable)?;
            self.indexes.insert(digest, index);
        } else {
            let manifest = Raw::parse(bytes.to_vec()).map_err(unreadable)?;
            self.manifests.insert(digest, manifest);
        }
        self.add_blob(descriptor, bytes)
    }

    /// Lists an image, whose manifest or index was added, under its names; without any, only
    /// under its digest. Gives the manifests of an index that were not added: platforms that the
    /// archive lacks.
    ///
    /// # Errors
    /// [`ArchiveError::MissingBlob`] when a blob of a manifest, or all manifests of an index, were
    /// not added, so that no archive lists what it does not hold.
    pub fn add_image(
        &mut self,
        root: &Descriptor,
        names: &[Reference],
    ) -> Result<Vec<Descriptor>, ArchiveError> {
        let tagged: Vec<Reference> = names
            .iter()
            .filter(|name| name.tag.is_some() || name.digest.is_none())
            .cloned()
            .map(Reference::with_default_tag)
            .collect();
        let label = names.first().map(Reference::familiar);
        let left_out = self.add_root(root, label, &tagged)?;
        self.list(root, &tagged);
        Ok(left_out)
    }

    /// Lists an image under a bare word, often a tag, as OCI layouts do; docker's list has it
    /// without a name. Without a word it is as [`ArchiveWriter::add_image`] without names.
    ///
    /// # Errors
    /// As [`ArchiveWriter::add_image`].
    pub fn add_bare(
        &mut self,
        root: &Descriptor,
        word: Option<&str>,
    ) -> Result<Vec<Descriptor>, ArchiveError> {
        let left_out = self.add_root(root, word.map(str::to_owned), &[])?;
        let Some(word) = word else {
            self.list(root, &[]);
            return Ok(left_out);
        };
        let mut entry = listed(root);
        entry
            .annotations
            .insert(REF_NAME.to_owned(), word.to_owned());
        self.push(entry);
        Ok(left_out)
    }

    /// Checks that all of an image was added, and puts it on docker's list.
    fn add_root(
        &mut self,
        root: &Descriptor,
        label: Option<String>,
        names: &[Reference],
    ) -> Result<Vec<Descriptor>, ArchiveError> {
        let label = label.unwrap_or_else(|| root.digest.to_string());
        let mut left_out = Vec::new();
        let mut there = Vec::new();
        self.check(root, &label, &mut there, &mut left_out)?;
        let Some(shown) = for_docker(&there) else {
            let what = "every manifest".to_owned();
            return Err(missing(root.digest, what, &label));
        };
        self.list_for_docker(shown.digest, names);
        Ok(left_out)
    }

    /// Ends the archive and gives the writer back, flushed.
    ///
    /// # Errors
    /// [`ArchiveError::Io`] when it cannot be written, or an earlier failure left it broken.
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        if self.broken {
            let error = std::io::Error::other("an earlier failure left it incomplete");
            return Err(ArchiveError::io("cannot finish the archive")(error));
        }
        let index = Index::new(media_type::OCI_INDEX, std::mem::take(&mut self.index));
        self.document("index.json", &index)?;
        let docker = std::mem::take(&mut self.docker);
        self.document("manifest.json", &docker)?;
        let repositories = std::mem::take(&mut self.repositories);
        if !repositories.is_empty() {
            self.document("repositories", &repositories)?;
        }
        self.write(&[0; 2 * BLOCK])?;
        let unflushed = ArchiveError::io("cannot write the archive");
        self.out.flush().map_err(unflushed)?;
        Ok(self.out)
    }

    /// Checks that all of an image was added; collects its manifests, and those left out.
    fn check(
        &self,
        descriptor: &Descriptor,
        label: &str,
        there: &mut Vec<Descriptor>,
        left_out: &mut Vec<Descriptor>,
    ) -> Result<(), ArchiveError> {
        if let Some(index) = self.indexes.get(&descriptor.digest) {
            for child in &index.value.manifests {
                if self.has(&child.digest) {
                    self.check(child, label, there, left_out)?;
                } else {
                    left_out.push(child.clone());
                }
            }
            return Ok(());
        }
        let Some(manifest) = self.manifests.get(&descriptor.digest) else {
            return Err(missing(descriptor.digest, "the manifest".to_owned(), label));
        };
        let config = [("the config".to_owned(), &manifest.value.config)];
        let layers = (1..).zip(&manifest.value.layers);
        let layers = layers
            .filter(|(_, layer)| !media_type::is_nondistributable(&layer.media_type))
            .map(|(number, layer)| (format!("layer {number}"), layer));
        for (what, blob) in config.into_iter().chain(layers) {
            if !self.has(&blob.digest) {
                return Err(missing(blob.digest, what, label));
            }
        }
        there.push(descriptor.clone());
        Ok(())
    }

    /// Lists an image in `index.json`, once for each name.
    fn list(&mut self, root: &Descriptor, names: &[Reference]) {
        let entry = listed(root);
        let entries: Vec<_> = names
            .iter()
            .map(|name| {
                let mut entry = entry.clone();
                let tag = name.tag_or_latest().to_owned();
                let full = format!("{}:{tag}", name.name());
                entry.annotations.insert(IMAGE_NAME.to_owned(), full);
                entry.annotations.insert(REF_NAME.to_owned(), tag);
                entry
            })
            .collect();
        let entries = if entries.is_empty() {
            vec![entry]
        } else {
            entries
        };
        entries.into_iter().for_each(|entry| self.push(entry));
    }

    fn push(&mut self, entry: Descriptor) {
        if !self.index.contains(&entry) {
            self.index.push(entry);
        }
    }

    /// Lists an image in `manifest.json` and `repositories`.
    fn list_for_docker(&mut self, manifest: Digest, names: &[Reference]) {
        let Some(manifest) = self.manifests.get(&manifest) else {
            return;
        };
        // An artifact is no image to docker.
        if !media_type::is_config(&manifest.value.config.media_type) {
            return;
        }
        let layers = &manifest.value.layers;
        let top = layers.last().unwrap_or(&manifest.value.config).digest.hex();
        let image = DockerImage {
            config: blob_name(&manifest.value.config.digest),
            repo_tags: Vec::new(),
            layers: layers
                .iter()
                .map(|layer| blob_name(&layer.digest))
                .collect(),
        };
        let same =
            |other: &DockerImage| (&other.config, &other.layers) == (&image.config, &image.layers);
        let place = self.docker.iter().position(same).unwrap_or_else(|| {
            self.docker.push(image);
            self.docker.len() - 1
        });
        for name in names {
            let tag = name.tag_or_latest().to_owned();
            let text = format!("{}:{tag}", name.familiar_name());
            if !self.docker[place].repo_tags.contains(&text) {
                self.docker[place].repo_tags.push(text);
            }
            let tags = self.repositories.entry(name.familiar_name()).or_default();
            tags.insert(tag, top.clone());
        }
    }

    fn document(&mut self, name: &str, document: &impl Serialize) -> Result<(), ArchiveError> {
        let bytes = serde_json::to_vec(document).map_err(|source| ArchiveError::Document {
            member: name.to_owned(),
            source,
        })?;
        self.file(name, &bytes)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.header(name, EntryType::Regular, bytes.len() as u64)?;
        self.content(name, bytes)
    }

    fn header(&mut self, name: &str, kind: EntryType, size: u64) -> Result<(), ArchiveError> {
        let mut header = Header::new_gnu();
        header.set_path(name).map_err(cannot_write(name))?;
        header.set_entry_type(kind);
        let mode = if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        };
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.write(header.as_bytes())
    }

    /// Writes the content of a member and pads it to a whole block.
    fn content(&mut self, name: &str, mut reader: impl Read) -> Result<(), ArchiveError> {
        let mut buffer = vec![0; CHUNK];
        let mut size = 0;
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_error(name, error)),
            };
            self.write(&buffer[..count])?;
            size += count as u64;
        }
        self.pad(size)
    }

    /// Ends a member of so many bytes with a whole block.
    fn pad(&mut self, size: u64) -> Result<(), ArchiveError> {
        let last = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        self.write(&[0; BLOCK][..(BLOCK - last) % BLOCK])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let written = self.out.write_all(bytes);
        self.broken |= written.is_err();
        written.map_err(ArchiveError::io("cannot write the archive"))
    }
}

/// The content of a member, which takes no more than was announced.
struct Content<'a, W: Write> {
    archive: &'a mut ArchiveWriter<W>,
    blob: &'a Descriptor,
    written: u64,
    failure: Option<ArchiveError>,
}

impl<W: Write> Write for Content<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.written += bytes.len() as u64;
        let outcome = if self.written > self.blob.size {
            Err(mismatch(self.blob, size_mismatch(self.blob, self.written)))
        } else {
            self.archive.write(bytes)
        };
        outcome.map(|()| bytes.len()).map_err(|failure| {
            let error = std::io::Error::other(failure.to_string());
            self.failure.get_or_insert(failure);
            error
        })
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.archive.out.flush()
    }
}

fn size_mismatch(blob: &Descriptor, actual: u64) -> Mismatch {
    Mismatch::Size {
        digest: blob.digest,
        expected: blob.size,
        actual,
        more: actual > blob.size,
    }
}

fn mismatch(blob: &Descriptor, source: Mismatch) -> ArchiveError {
    let member = blob_name(&blob.digest);
    ArchiveError::Mismatch { member, source }
}

/// The entry of an image in `index.json`, without a name.
fn listed(root: &Descriptor) -> Descriptor {
    let mut entry = Descriptor::new(root.media_type.clone(), root.digest, root.size);
    entry.platform.clone_from(&root.platform);
    entry.artifact_type.clone_from(&root.artifact_type);
    entry
}

fn cannot_write(name: &str) -> impl FnOnce(std::io::Error) -> ArchiveError {
    ArchiveError::io(format!("cannot write `{name}` to the archive"))
}

/// Tells content that is not as announced from content that cannot be read.
fn read_error(name: &str, error: std::io::Error) -> ArchiveError {
    let mismatch = error.get_ref().and_then(|source| source.downcast_ref());
    match mismatch.cloned() {
        Some(source) => ArchiveError::Mismatch {
            member: name.to_owned(),
            source,
        },
        None => ArchiveError::io(format!("cannot read `{name}` for the archive"))(error),
    }
}

fn missing(digest: Digest, what: String, image: &str) -> ArchiveError {
    ArchiveError::MissingBlob {
        digest,
        what,
        image: image.to_owned(),
    }
}

/// The manifest that docker's own list shows of several: it knows no platforms there.
fn for_docker(there: &[Descriptor]) -> Option<&Descriptor> {
    let index = Index::new(media_type::OCI_INDEX, there.to_vec());
    let best = choose(&Platform::host(), &index).map(|best| best.digest);
    let runnable = |descriptor: &&Descriptor| {
        !descriptor
            .platform
            .as_ref()
            .is_some_and(Platform::is_unknown)
    };
    there
        .iter()
        .find(|descriptor| Some(descriptor.digest) == best)
        .or_else(|| there.iter().find(runnable))
}
