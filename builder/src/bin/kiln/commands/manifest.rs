//! `kiln manifest` and `kiln index`: lists of images for several platforms (D9.5)

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_builder::runtime::Cancel;
use kiln_builder::step::blob_event;
use kiln_builder::store::{ImageList, ListEntry};
use kiln_registry::blob::BlobSink as _;
use kiln_registry::client::{Client, Found};
use kiln_registry::copy::{self, Options, Place, Sink, Source};
use kiln_registry::reference::Reference;
use kiln_registry::spec::media_type::{
    DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, is_config, is_index, is_manifest,
};
use kiln_registry::spec::{Descriptor, ImageConfig, Index, Manifest, Platform, Raw};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::{Setup, block_on};
use crate::args::{
    AnnotateArgs, CreateArgs, InspectListArgs, ListCommand, PushListArgs, RmListArgs,
};
use crate::render::{self, transfer};
use crate::report::{Reported, UsageError};

/// The most images of a list.
const ENTRIES: usize = 1000;

/// The largest config that is read for its platform, bytes.
const CONFIG: u64 = 8 << 20;

/// Blobs moved at once.
const JOBS: usize = 5;

/// Runs a subcommand; `docker` is its spelling as `manifest`, whose lists are docker's where they
/// can be.
pub(crate) fn run(setup: &Setup, command: &ListCommand, docker: bool) -> anyhow::Result<()> {
    match command {
        ListCommand::Create(args) => create(setup, args, docker),
        ListCommand::Annotate(args) => annotate(setup, args),
        ListCommand::Inspect(args) => inspect(setup, args),
        ListCommand::Push(args) => push(setup, args),
        ListCommand::Rm(args) => remove(setup, args),
    }
}

/// The name of a list: a tag is what it is pushed to.
fn list_name(text: &str) -> anyhow::Result<Reference> {
    let name = Reference::parse(text)?;
    if name.digest.is_some() {
        let message = format!("a list is named by a tag, not by a digest: `{text}`");
        return Err(UsageError::new(message).into());
    }
    Ok(name.with_default_tag())
}

/// Registries that are not to be checked, where that is asked for.
fn unchecked(insecure: bool, names: &[&Reference]) -> Vec<String> {
    let registries = names.iter().map(|name| name.registry.clone());
    registries.filter(|_| insecure).collect()
}

fn create(setup: &Setup, args: &CreateArgs, docker: bool) -> anyhow::Result<()> {
    let name = list_name(&args.list)?;
    let annotations = pairs(&args.annotations)?;
    let images = args.images.iter().map(|text| Reference::parse(text));
    let images = images.collect::<Result<Vec<_>, _>>()?;
    let store = setup.store()?;
    if !args.amend && store.image_list(&name)?.is_some() {
        bail!(
            "there is a list `{}` already: add to it with --amend, or remove it",
            name.familiar()
        );
    }
    let insecure = unchecked(args.unchecked, &images.iter().collect::<Vec<_>>());
    let client = setup.client_with(false, insecure)?;
    let cancel = Cancel::new()?;
    let added = block_on(&cancel, async {
        let work = async {
            let mut added = Vec::new();
            for image in &images {
                let image = image.clone().with_default_tag();
                let found = entries(&client, &image).await;
                // docker's users know lists of what is in registries only; the store may mislead.
                let here = found.is_err() && store.named(&image)?.is_some();
                added.extend(match found {
                    Err(error) if here => {
                        let name = image.familiar();
                        let only = format!(
                            "`{name}` is here, but a list holds images of registries: push it first"
                        );
                        return Err(error.context(only));
                    }
                    found => found?,
                });
            }
            Ok(added)
        };
        tokio::select! {
            added = work => added,
            () = cancel.cancelled() => Ok(Vec::new()),
        }
    })?;
    let list = store.change_image_list(&name, |known| -> anyhow::Result<_> {
        let mut list = known.filter(|_| args.amend).unwrap_or_else(|| ImageList {
            name: name.to_string(),
            docker,
            annotations: annotations.clone(),
            entries: Vec::new(),
        });
        list.annotations.extend(annotations);
        for entry in added {
            let same = |other: &ListEntry| other.descriptor.digest == entry.descriptor.digest;
            list.entries.retain(|other| !same(other));
            list.entries.push(entry);
        }
        if list.entries.len() > ENTRIES {
            bail!("a list holds at most {ENTRIES} images");
        }
        Ok(list)
    })?;
    render::out(&format!("Created manifest list {}", list.name));
    Ok(())
}

/// The entries that an image gives a list: itself, or all that an index lists.
async fn entries(client: &Client, image: &Reference) -> anyhow::Result<Vec<ListEntry>> {
    let found = client.document(image).await?;
    let entry = |descriptor: Descriptor| {
        let source = Reference {
            tag: None,
            digest: Some(descriptor.digest),
            ..image.clone()
        };
        ListEntry {
            source: source.to_string(),
            added: image.to_string(),
            descriptor,
        }
    };
    if is_index(&found.descriptor.media_type) {
        let index: Index = parse(&found.bytes, image)?;
        return Ok(index.manifests.into_iter().map(entry).collect());
    }
    if !is_manifest(&found.descriptor.media_type) {
        bail!("`{image}` is neither an image nor an index, and cannot be part of a list");
    }
    let mut descriptor = found.descriptor;
    descriptor.platform = platform_of(client, image, &found.bytes).await?;
    Ok(vec![entry(descriptor)])
}

/// The platform that an image's config names; none for an artifact.
async fn platform_of(
    client: &Client,
    image: &Reference,
    bytes: &[u8],
) -> anyhow::Result<Option<Platform>> {
    use kiln_registry::blob::BlobSource as _;
    let manifest: Manifest = parse(bytes, image)?;
    if !is_config(&manifest.config.media_type) {
        return Ok(None);
    }
    let mut text = Vec::new();
    let reader = client.repository(image).open(&manifest.config, 0).await?;
    let read = reader.take(CONFIG).read_to_end(&mut text).await;
    read.with_context(|| format!("reading the config of `{image}`"))?;
    let config: ImageConfig = serde_json::from_slice(&text)
        .with_context(|| format!("the config of `{image}` cannot be understood"))?;
    Ok(Some(Platform {
        architecture: config.architecture,
        os: config.os,
        os_version: config.os_version,
        os_features: config.os_features,
        variant: config.variant,
    }))
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], name: &Reference) -> anyhow::Result<T> {
    serde_json::from_slice(bytes)
        .with_context(|| format!("the manifest of `{name}` cannot be understood"))
}

fn pairs(texts: &[String]) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    let pair = |text: &String| {
        let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) = pair.ok_or_else(|| {
            UsageError::new(format!("invalid annotation `{text}`: expected KEY=VALUE"))
        })?;
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

fn annotate(setup: &Setup, args: &AnnotateArgs) -> anyhow::Result<()> {
    let name = list_name(&args.list)?;
    let annotations = pairs(&args.annotations)?;
    let changed = setup
        .store()?
        .change_image_list(&name, |list| -> anyhow::Result<_> {
            let mut list = list.with_context(|| no_list(&name))?;
            let mut found = false;
            for entry in list
                .entries
                .iter_mut()
                .filter(|entry| is_called(entry, &args.image))
            {
                found = true;
                entry.descriptor.annotations.extend(annotations.clone());
                change_platform(&mut entry.descriptor, args);
            }
            if !found {
                bail!("`{}` is not in the list `{}`", args.image, name.familiar());
            }
            Ok(list)
        });
    changed.map(drop)
}

fn no_list(name: &Reference) -> String {
    format!(
        "there is no list `{}` here: begin it with `kiln manifest create`",
        name.familiar()
    )
}

/// Whether a text names an entry of a list: what it was added as, or its digest.
fn is_called(entry: &ListEntry, text: &str) -> bool {
    let whole = Reference::parse(text).map(Reference::with_default_tag);
    let whole = whole.map(|name| name.to_string());
    entry.descriptor.digest.to_string() == text
        || whole.is_ok_and(|whole| entry.added == whole || entry.source == whole)
}

fn change_platform(descriptor: &mut Descriptor, args: &AnnotateArgs) {
    let given = [&args.os, &args.arch, &args.variant, &args.os_version];
    if given.iter().all(|text| text.is_none()) && args.os_features.is_empty() {
        return;
    }
    let platform = descriptor.platform.get_or_insert_default();
    for (field, text) in [
        (&mut platform.os, &args.os),
        (&mut platform.architecture, &args.arch),
    ] {
        if let Some(text) = text {
            field.clone_from(text);
        }
    }
    for (field, text) in [
        (&mut platform.variant, &args.variant),
        (&mut platform.os_version, &args.os_version),
    ] {
        if text.is_some() {
            field.clone_from(text);
        }
    }
    if !args.os_features.is_empty() {
        platform.os_features.clone_from(&args.os_features);
    }
}

/// The document that a list is.
fn document(list: &ImageList) -> anyhow::Result<(Raw<Index>, Descriptor)> {
    let only_docker = list.entries.iter().all(|entry| {
        entry.descriptor.media_type == DOCKER_MANIFEST && entry.descriptor.annotations.is_empty()
    });
    // Docker's lists have no annotations.
    let docker = list.docker && only_docker && list.annotations.is_empty();
    let kind = if docker { DOCKER_INDEX } else { OCI_INDEX };
    let entries = list.entries.iter().map(|entry| entry.descriptor.clone());
    let mut index = Index::new(kind, entries.collect());
    index.annotations.clone_from(&list.annotations);
    let index = Raw::write(index)?;
    let descriptor = Descriptor::new(kind, index.digest, index.bytes.len() as u64);
    Ok((index, descriptor))
}

fn push(setup: &Setup, args: &PushListArgs) -> anyhow::Result<()> {
    let name = list_name(&args.list)?;
    let store = setup.store()?;
    let list = store.image_list(&name)?.with_context(|| no_list(&name))?;
    let (index, descriptor) = document(&list)?;
    let client = setup.client_with(args.quiet, unchecked(args.unchecked, &[&name]))?;
    let cancel = Cancel::new()?;
    block_on(&cancel, async {
        let work = async {
            for entry in &list.entries {
                let image = push_entry(&client, &name, entry, args.quiet);
                image
                    .await
                    .with_context(|| format!("pushing `{}`", entry.source))?;
            }
            let repository = client.repository(&name);
            let tag = Some(name.tag_or_latest());
            repository
                .put_manifest(&descriptor, &index.bytes, tag)
                .await?;
            anyhow::Ok(())
        };
        tokio::select! {
            result = work => result,
            () = cancel.cancelled() => Ok(()),
        }
    })?;
    if args.purge {
        store.remove_image_list(&name)?;
    }
    render::out(&descriptor.digest.to_string());
    Ok(())
}

/// Brings an image of a list to the list's repository: by a mount or a copy, where it is not there.
async fn push_entry(
    client: &Client,
    name: &Reference,
    entry: &ListEntry,
    quiet: bool,
) -> anyhow::Result<()> {
    let source = Place::Registry(Reference::parse(&entry.source)?);
    let sink = Place::Registry(Reference {
        tag: None,
        digest: Some(entry.descriptor.digest),
        ..name.clone()
    });
    let source = Source::open(&source, client, &std::env::temp_dir())?;
    let sink = Sink::open(&sink, client)?;
    let observer = transfer::observer(transfer::COPY, quiet);
    let progress = move |blob: &Descriptor, step| observer.tell(blob_event(blob, step));
    let options = Options {
        jobs: JOBS,
        ..Options::default()
    };
    copy::copy(&source, &sink, &options, &progress, |_| ()).await?;
    Ok(())
}

fn remove(setup: &Setup, args: &RmListArgs) -> anyhow::Result<()> {
    let store = setup.store()?;
    let mut failed = false;
    for text in &args.lists {
        let name = list_name(text)?;
        if !store.remove_image_list(&name)? {
            render::err(&format!(
                "error: there is no list `{}` here",
                name.familiar()
            ));
            failed = true;
        }
    }
    if failed { Err(Reported.into()) } else { Ok(()) }
}

fn inspect(setup: &Setup, args: &InspectListArgs) -> anyhow::Result<()> {
    let store = setup.store()?;
    let [first, rest @ ..] = args.names.as_slice() else {
        return Err(UsageError::new("a list or an image must be named").into());
    };
    let name = Reference::parse(first)?.with_default_tag();
    let list = match name.digest {
        Some(_) => None,
        None => store.image_list(&name)?,
    };
    let client = setup.client_with(false, unchecked(args.unchecked, &[&name]))?;
    let cancel = Cancel::new()?;
    let text = block_on(&cancel, async {
        let work = async {
            match (rest.first(), list) {
                (Some(image), Some(list)) => one(&client, &list, image, args.verbose).await,
                (Some(_), None) => bail!(no_list(&name)),
                (None, Some(list)) => whole(&client, &list, args.verbose).await,
                (None, None) if args.verbose => verbose(&client, &name).await,
                (None, None) => Ok(raw(&client.document(&name).await?)),
            }
        };
        tokio::select! {
            text = work => text,
            () = cancel.cancelled() => Ok(String::new()),
        }
    })?;
    // The bytes as they are: whoever hashes them gets the digest.
    render::out_raw(&text);
    Ok(())
}

fn raw(found: &Found) -> String {
    String::from_utf8_lossy(&found.bytes).into_owned()
}

/// An image of a list here.
async fn one(
    client: &Client,
    list: &ImageList,
    image: &str,
    verbose: bool,
) -> anyhow::Result<String> {
    let entry = list.entries.iter().find(|entry| is_called(entry, image));
    let entry = entry.with_context(|| format!("`{image}` is not in the list `{}`", list.name))?;
    if verbose {
        let shown = described(client, entry).await?;
        return Ok(format!("{}\n", serde_json::to_string_pretty(&shown)?));
    }
    Ok(raw(&client
        .document(&Reference::parse(&entry.source)?)
        .await?))
}

/// A list here.
async fn whole(client: &Client, list: &ImageList, verbose: bool) -> anyhow::Result<String> {
    if !verbose {
        let (index, _) = document(list)?;
        return Ok(String::from_utf8_lossy(&index.bytes).into_owned());
    }
    let mut all = Vec::new();
    for entry in &list.entries {
        all.push(described(client, entry).await?);
    }
    Ok(format!("{}\n", serde_json::to_string_pretty(&all)?))
}

/// An image or index of a registry, in docker's form.
async fn verbose(client: &Client, name: &Reference) -> anyhow::Result<String> {
    let found = client.document(name).await?;
    let is_list = is_index(&found.descriptor.media_type);
    let mut all = Vec::new();
    for entry in entries(client, name).await?.iter().take(ENTRIES) {
        all.push(described(client, entry).await?);
    }
    let value = match all.pop() {
        Some(only) if !is_list => only,
        last => Value::Array(all.into_iter().chain(last).collect()),
    };
    Ok(format!("{}\n", serde_json::to_string_pretty(&value)?))
}

/// An image with its descriptor and content, as `docker manifest inspect -v` shows it.
async fn described(client: &Client, entry: &ListEntry) -> anyhow::Result<Value> {
    let source = Reference::parse(&entry.source)?;
    let found = client.document(&source).await?;
    let content: Value = parse(&found.bytes, &source)?;
    let field = match found.descriptor.media_type.as_str() {
        OCI_MANIFEST => "OCIManifest",
        OCI_INDEX => "OCIIndex",
        _ => "SchemaV2Manifest",
    };
    let mut shown = json!({
        "Ref": format!("{}@{}", entry.added.split('@').next().unwrap_or_default(), found.descriptor.digest),
        "Descriptor": entry.descriptor,
        "Raw": STANDARD.encode(&found.bytes),
    });
    shown[field] = content;
    Ok(shown)
}
