//! What is measured.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::generate;
use super::measure::{self, Sample};
use super::tool::Tool;
use crate::process;
use crate::registry::Registry;
use crate::scratch::Scratch;

/// The workloads that are no commands.
pub(super) const PARSE: &str = "parse";
pub(super) const START: &str = "start";

/// The workloads and what they are, in the order of the table.
pub(super) const WORKLOADS: [(&str, &str); 11] = [
    (
        "noop",
        "rebuild with nothing changed: a context of 20,000 files, 200 MB",
    ),
    (
        "run",
        "50 steps of `RUN true`, empty cache, base image present",
    ),
    ("copy", "one `COPY` of 256 MiB in 64 files, empty cache"),
    (
        "push",
        "an image just built, four layers of 256 MiB, to an empty registry",
    ),
    (
        "pull",
        "the same image into an empty store; buildah, podman and docker also unpack it",
    ),
    (
        "repush",
        "the same image, pulled before, to another empty registry",
    ),
    (
        "unpack",
        "the same image into an empty store and unpacked; kiln also runs a program in it",
    ),
    ("save", "an image of four layers of 64 MiB to a tar file"),
    ("load", "that tar file into an empty store"),
    (PARSE, "a Dockerfile of 200 lines from text to plan"),
    (START, "one `RUN true`, and a bare start of the program"),
];

const MIB: usize = 1 << 20;
const LAYERS: u64 = 4;
/// Files of 4 MiB in a layer that is moved to and from registries, and in one that is archived.
const LARGE: usize = 64;
const SMALL: usize = 16;

/// The inputs, and how often each thing is measured.
pub(super) struct Bench<'a> {
    binary: &'a Path,
    scratch: &'a Scratch,
    base: String,
    runs: usize,
    /// The large image in a registry, which is made for the first workload that wants it.
    published: OnceCell<Published>,
}

/// An image in a registry of its own.
struct Published {
    image: String,
    _registry: Registry,
    _storage: Scratch,
}

impl<'a> Bench<'a> {
    /// Measures everything `runs` times; builds start from the image `base`.
    pub(super) fn new(binary: &'a Path, scratch: &'a Scratch, base: String, runs: usize) -> Self {
        Self {
            binary,
            scratch,
            base,
            runs,
            published: OnceCell::new(),
        }
    }

    /// Runs one workload with one tool.
    pub(super) fn measure(&self, workload: &str, tool: &Tool) -> Result<Vec<Sample>> {
        match workload {
            "noop" => self.noop(tool),
            "run" => self.run(tool),
            "copy" => self.copy(tool),
            "push" => self.push(tool),
            "pull" => self.pull(tool),
            "repush" => self.repush(tool),
            "unpack" => self.unpack(tool),
            "save" => self.save(tool),
            "load" => self.load(tool),
            other => bail!("unknown workload `{other}`"),
        }
    }

    fn noop(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let context = self.context("noop", |root| {
            generate::small_files(root, 10, 20_000, 1_000, 19_000)
        })?;
        let dockerfile = self.dockerfile(
            "noop",
            &format!("FROM {}\nCOPY . /app\nRUN true\n", self.base),
        )?;
        let build = || tool.build(&context, &dockerfile, "bench/noop:latest");
        process::quiet(&mut build())?;
        self.repeat(tool, || Ok(()), build)
    }

    fn run(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let context = self.context("run", |root| Ok(fs::write(root.join("readme"), "empty\n")?))?;
        let steps = "RUN true\n".repeat(50);
        let dockerfile = self.dockerfile("run", &format!("FROM {}\n{steps}", self.base))?;
        let image = "bench/run:latest";
        self.repeat(
            tool,
            || self.fresh(tool),
            || tool.build(&context, &dockerfile, image),
        )
    }

    fn copy(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let context = self.context("copy", |root| generate::big_files(root, 20, 64, 4 * MIB))?;
        let dockerfile = self.dockerfile("copy", &format!("FROM {}\nCOPY . /app\n", self.base))?;
        let image = "bench/copy:latest";
        self.repeat(
            tool,
            || self.fresh(tool),
            || tool.build(&context, &dockerfile, image),
        )
    }

    fn push(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for _ in 0..self.runs {
            tool.reset()?;
            let (_storage, registry) = self.empty_registry()?;
            let image = format!("{}/bench/layers:latest", registry.address());
            self.build_layers(tool, &image, LARGE)?;
            samples.push(measure::measure(tool.push(&image), tool.daemon())?);
            tool.forget(&image)?;
        }
        Ok(samples)
    }

    fn pull(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let image = self.published()?;
        self.repeat(tool, || tool.forget(image), || tool.pull(image))
    }

    fn repush(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let image = self.published()?;
        tool.forget(image)?;
        process::quiet(&mut tool.pull(image))?;
        let samples = (0..self.runs).map(|_| {
            let (_storage, registry) = self.empty_registry()?;
            let other = format!("{}/bench/layers:latest", registry.address());
            process::quiet(&mut tool.tag(image, &other))?;
            let sample = measure::measure(tool.push(&other), tool.daemon());
            tool.untag(&other)?;
            sample
        });
        samples.collect()
    }

    fn unpack(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let image = self.published()?;
        self.repeat(tool, || tool.forget(image), || tool.unpack(image))
    }

    /// The large image, as kiln builds and pushes it.
    fn published(&self) -> Result<&str> {
        if let Some(published) = self.published.get() {
            return Ok(&published.image);
        }
        // Not where the empty ones are: that is emptied for each of them.
        let storage = Scratch::new("bench-published")?;
        let registry = Registry::start(&storage.join("storage"))?;
        let image = format!("{}/bench/layers:latest", registry.address());
        let publisher = Tool::publisher(self.binary, self.scratch);
        self.build_layers(&publisher, &image, LARGE)?;
        process::quiet(&mut publisher.push(&image))?;
        publisher.reset()?;
        let published = self.published.get_or_init(|| Published {
            image,
            _registry: registry,
            _storage: storage,
        });
        Ok(&published.image)
    }

    fn save(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let image = "bench/layers:latest";
        let archive = self.scratch.join("save.tar");
        self.build_layers(tool, image, SMALL)?;
        let samples = self.repeat(tool, || remove(&archive), || tool.save(image, &archive))?;
        remove(&archive)?;
        Ok(samples)
    }

    fn load(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let image = "bench/layers:latest";
        let archive = self.scratch.join("load.tar");
        self.build_layers(tool, image, SMALL)?;
        remove(&archive)?;
        process::quiet(&mut tool.save(image, &archive))?;
        let samples = self.repeat(tool, || tool.forget(image), || tool.load(&archive))?;
        remove(&archive)?;
        Ok(samples)
    }

    fn repeat(
        &self,
        tool: &Tool,
        prepare: impl Fn() -> Result<()>,
        command: impl Fn() -> Command,
    ) -> Result<Vec<Sample>> {
        (0..self.runs)
            .map(|_| {
                prepare()?;
                measure::measure(command(), tool.daemon())
            })
            .collect()
    }

    /// Leaves nothing but the base image in the store.
    fn fresh(&self, tool: &Tool) -> Result<()> {
        tool.reset()?;
        process::quiet(&mut tool.pull(&self.base))
    }

    /// Builds an image of four layers with so many files each.
    fn build_layers(&self, tool: &Tool, image: &str, files: usize) -> Result<()> {
        let name = format!("layers-{files}");
        let context = self.context(&name, |root| {
            (0..LAYERS).try_for_each(|n| {
                generate::big_files(&root.join(format!("l{n}")), 40 + n, files, 4 * MIB)
            })
        })?;
        let copies: String = (0..LAYERS).map(|n| format!("COPY l{n} /l{n}\n")).collect();
        let from = format!("FROM {}\n{copies}", self.base);
        let dockerfile = self.dockerfile(&name, &from)?;
        process::quiet(&mut tool.build(&context, &dockerfile, image))
    }

    /// Makes a build context once and returns its folder.
    fn context(&self, name: &str, fill: impl Fn(&Path) -> Result<()>) -> Result<PathBuf> {
        let folder = self.scratch.join(&format!("context-{name}"));
        if !folder.exists() {
            fs::create_dir_all(&folder)?;
            fill(&folder).with_context(|| format!("cannot make the context of `{name}`"))?;
            // files younger than the clock's tick cannot be trusted to be unchanged
            std::thread::sleep(std::time::Duration::from_secs(2));
        }
        Ok(folder)
    }

    /// Writes a Dockerfile outside the context and returns its path.
    fn dockerfile(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.scratch.join(&format!("Dockerfile-{name}"));
        fs::write(&path, text)?;
        Ok(path)
    }

    fn empty_registry(&self) -> Result<(Scratch, Registry)> {
        let storage = Scratch::new("bench-registry")?;
        let registry = Registry::start(&storage.join("storage"))?;
        Ok((storage, registry))
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}
