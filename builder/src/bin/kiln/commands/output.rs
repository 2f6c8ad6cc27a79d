//! Where what was built goes (C4): folders, archives, layouts, the store, registries.

use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use kiln_builder::image::form::Form;
use kiln_builder::image::output::{self, Dest, Kind, Output, OutputError};
use kiln_builder::image::publish::{self, Target};
use kiln_builder::image::tree;
use kiln_builder::runtime::Cancel;
use kiln_builder::snapshot::Backend;
use kiln_builder::step::{Settings, Worker};
use kiln_builder::store::Store;
use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Descriptor;
use serde_json::{Value, json};

use super::push::push;
use super::save::{check_target, to_file, to_stdout};
use crate::args::BuildArgs;
use crate::render::{self, transfer};
use crate::report::{NotPushed, UsageError};

/// The outputs of one build.
#[derive(Clone, Debug)]
pub(super) struct Outputs {
    list: Vec<Output>,
    metadata: Option<PathBuf>,
}

/// What was built, and what is at hand to take it somewhere.
pub(super) struct Made<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) client: &'a Client,
    pub(super) cancel: &'a Cancel,
    pub(super) backend: Backend,
    pub(super) settings: &'a Settings,
    pub(super) epoch: Option<i64>,
    /// The names that the build gives.
    pub(super) tags: &'a [Reference],
    pub(super) image: Digest,
    pub(super) quiet: bool,
    /// Prints what was pushed: on standard output, unless that is for something else.
    pub(super) tell_pushed: fn(&str),
}

fn usage(error: &OutputError) -> anyhow::Error {
    let cause = std::error::Error::source(error);
    let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
    UsageError::new(format!("{error}{cause}")).into()
}

impl Outputs {
    /// What the command line says; what cannot be is refused before anything is built.
    pub(super) fn of(args: &BuildArgs) -> anyhow::Result<Self> {
        let given = args.output.outputs.iter().map(|text| Output::parse(text));
        let given: Result<Vec<_>, _> = given.collect();
        let mut list = given.map_err(|error| usage(&error))?;
        if args.push {
            list.push(Output::push());
        } else if list.is_empty() || args.output.load {
            list.push(Output::load());
        }
        for text in &args.output.annotations {
            let (key, value) = output::annotation(text).map_err(|error| usage(&error))?;
            for output in list.iter_mut().filter(|output| output.is_image()) {
                let form = output.form.get_or_insert_default();
                form.annotations.insert(key.clone(), value.clone());
            }
        }
        let outputs = Self {
            list,
            metadata: args.output.metadata_file.clone(),
        };
        outputs.check(args)?;
        outputs.check_files()?;
        Ok(outputs)
    }

    fn check(&self, args: &BuildArgs) -> anyhow::Result<()> {
        let refuse = |text: &str| Err(UsageError::new(text).into());
        let out = self.list.iter().filter(|output| output.takes_stdout());
        let pushes = |output: &Output| matches!(output.kind, Kind::Image { push: true, .. });
        match out.count() {
            0 => {}
            1 if io::stdout().is_terminal() => {
                return refuse("--output: dest is required: refusing to write to a terminal");
            }
            1 if self.list.iter().any(pushes) => {
                return refuse(
                    "--output: standard output cannot hold an archive and what is pushed",
                );
            }
            1 if args.explain_cache.as_deref() == Some("json") => {
                return refuse(
                    "--output: standard output cannot hold an archive and --explain-cache=json: add dest=FILE",
                );
            }
            1 => {}
            _ => return refuse("--output: standard output can hold one archive only"),
        }
        let nameless = |output: &Output| pushes(output) && output.names.is_empty();
        if args.tags.is_empty() && self.list.iter().any(nameless) {
            return refuse("--output: a name is needed for what is pushed: --tag, or name=NAME");
        }
        if args.iidfile.is_some() && !self.list.iter().any(Output::is_image) {
            return refuse("--iidfile: an output of files has no image id");
        }
        let root = |output: &Output| matches!(&output.kind, Kind::Local { dest, delete: true } if dest.canonicalize().is_ok_and(|path| path.parent().is_none()));
        if self.list.iter().any(root) {
            return refuse("--output: mode=delete would remove all files of this machine");
        }
        Ok(())
    }

    /// Refuses files that could not be made after the build.
    fn check_files(&self) -> anyhow::Result<()> {
        for output in &self.list {
            if let Kind::Tar(Dest::Path(path))
            | Kind::Oci(Dest::Path(path))
            | Kind::Docker(Dest::Path(path)) = &output.kind
            {
                check_target(path)?;
            }
        }
        self.metadata.as_deref().map_or(Ok(()), check_target)
    }

    /// Whether the image gets its names in the store.
    pub(super) fn are_stored(&self) -> bool {
        self.list.iter().any(Output::is_stored)
    }

    /// Whether an archive goes to standard output, and nothing else may.
    pub(super) fn take_stdout(&self) -> bool {
        self.list.iter().any(Output::takes_stdout)
    }

    /// Takes the image everywhere, in the order of the command line but registries last, so that
    /// what fails there leaves everything else done.
    pub(super) async fn write(&self, made: &Made<'_>) -> anyhow::Result<()> {
        let pushes = |output: &&Output| matches!(output.kind, Kind::Image { push: true, .. });
        let here = self.list.iter().filter(|output| !pushes(output));
        let mut manifest = None;
        for output in here.chain(self.list.iter().filter(pushes)) {
            manifest = made.write(output).await?.or(manifest);
        }
        let Some(file) = &self.metadata else {
            return Ok(());
        };
        let metadata = self.metadata_of(made, manifest.as_ref());
        let text = serde_json::to_string_pretty(&metadata)?;
        fs::write(file, text).with_context(|| format!("writing `{}`", file.display()))
    }

    /// What docker writes of a build (C10.3).
    fn metadata_of(&self, made: &Made<'_>, manifest: Option<&Descriptor>) -> Value {
        if !self.list.iter().any(Output::is_image) {
            return json!({});
        }
        let id = made.image.to_string();
        let mut names: Vec<String> = Vec::new();
        for name in self.list.iter().flat_map(|output| made.names(output)) {
            let name = name.to_string();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let mut metadata = json!({
            "containerimage.config.digest": id,
            "containerimage.digest": manifest.map_or(id.clone(), |found| found.digest.to_string()),
        });
        if let Some(manifest) = manifest {
            metadata["containerimage.descriptor"] = json!(manifest);
        }
        if !names.is_empty() {
            metadata["image.name"] = names.join(",").into();
        }
        metadata
    }
}

impl Made<'_> {
    /// The names that an image has in an output.
    fn names<'a>(&'a self, output: &'a Output) -> &'a [Reference] {
        match output.names.as_slice() {
            [] => self.tags,
            names => names,
        }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            render::err(text);
        }
    }

    /// Takes the image to one place; the descriptor of its manifest, where it has one there.
    async fn write(&self, output: &Output) -> anyhow::Result<Option<Descriptor>> {
        let names = self.names(output);
        match &output.kind {
            Kind::CacheOnly => Ok(None),
            Kind::Local { dest, delete } => {
                self.say(&format!("exporting files to {}", dest.display()));
                let how = tree::Folder {
                    delete: *delete,
                    clamp: self.epoch,
                };
                let (dest, image) = (dest.clone(), self.image);
                let written =
                    self.blocking(move |worker| Ok(tree::folder(worker, &image, &dest, how)?));
                for path in written.await? {
                    let told = "which this user cannot make, or a folder cannot hold";
                    render::err(&format!("warning: `{path}` is left out, {told}"));
                }
                Ok(None)
            }
            Kind::Tar(dest) => {
                self.say("exporting files to a tar");
                let (image, epoch) = (self.image, self.epoch);
                self.archive(dest, move |worker, out| {
                    tree::tar(worker, &image, epoch, out)?;
                    Ok(())
                })
                .await?;
                Ok(None)
            }
            Kind::Oci(dest) | Kind::Docker(dest) => {
                self.say("exporting the image to an archive");
                let images = [(self.image, names.to_vec())];
                let form = output.form.clone();
                self.archive(dest, move |worker, out| {
                    publish::save(&worker.store, &images, form.as_ref(), out, &worker.cancel)?;
                    Ok(())
                })
                .await?;
                match &output.form {
                    // It is all there: this only tells what it is.
                    Some(form) => {
                        let observer = transfer::observer(transfer::PUSH, self.quiet);
                        let made = publish::prepare(self.store, &self.image, form, &observer);
                        Ok(Some(made.await?.1))
                    }
                    None => Ok(None),
                }
            }
            Kind::Layout(folder) => {
                self.say(&format!("exporting the image to {}", folder.display()));
                let form = output.form.clone().unwrap_or_default();
                let observer = transfer::observer(transfer::PUSH, self.quiet);
                let written = publish::layout(
                    self.store,
                    &self.image,
                    names,
                    folder,
                    &form,
                    &observer,
                    self.cancel,
                );
                Ok(Some(written.await?))
            }
            Kind::Image { .. } => self.image(output, names).await,
        }
    }

    /// The store, and registries.
    async fn image(
        &self,
        output: &Output,
        names: &[Reference],
    ) -> anyhow::Result<Option<Descriptor>> {
        let Kind::Image {
            store,
            push: pushed,
            by_digest,
            unpack,
        } = output.kind
        else {
            return Ok(None);
        };
        if store {
            for name in &output.names {
                self.store.tag(name, &self.image)?;
            }
        }
        if unpack {
            let image = self.image;
            self.blocking(move |worker| Ok(tree::unpack(worker, &image)?))
                .await?;
        }
        let form = output.form.clone().unwrap_or_default();
        if !pushed {
            return match form == Form::default() {
                true => Ok(None),
                false => Ok(Some(self.keep(&form).await?)),
            };
        }
        let mut manifest = None;
        for (at, reference) in names.iter().enumerate() {
            let target = Target {
                reference,
                by_digest,
                form: &form,
            };
            let push = push(
                self.store,
                self.client,
                self.cancel,
                target,
                &self.image,
                self.quiet,
            );
            let (pushed, line) = push.await.map_err(|source| NotPushed {
                names: names.iter().skip(at).map(Reference::familiar).collect(),
                source,
            })?;
            (self.tell_pushed)(&line);
            manifest = Some(pushed);
        }
        Ok(manifest)
    }

    async fn keep(&self, form: &Form) -> anyhow::Result<Descriptor> {
        let observer = transfer::observer(transfer::PUSH, self.quiet);
        Ok(publish::keep(self.store, &self.image, form, &observer).await?)
    }

    /// Does work that blocks, with a worker for it.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Worker) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let worker = Worker::for_processes(
            self.store,
            self.backend,
            self.client.clone(),
            self.cancel,
            self.settings.clone(),
        );
        tokio::task::spawn_blocking(move || work(&worker)).await?
    }

    /// Writes an archive.
    async fn archive(
        &self,
        dest: &Dest,
        write: impl FnOnce(&Worker, &mut dyn io::Write) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let dest = dest.clone();
        self.blocking(move |worker| match dest {
            Dest::Stdout => to_stdout(|out| write(worker, out)),
            Dest::Path(path) => to_file(&path, |out| write(worker, out)),
        })
        .await
    }
}
