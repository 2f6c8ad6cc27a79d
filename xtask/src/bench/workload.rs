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
use crate::scratch::{self, Scratch};

/// The workloads that are no commands.
pub(super) const PARSE: &str = "parse";
pub(super) const START: &str = "start";
pub(super) const GROWTH: &str = "growth";

/// The workloads and what they are, in the order of the table. `limit` is what the machine does with the
/// same data at best.
pub(super) const WORKLOADS: [(&str, &str); 16] = [
    (
        "noop",
        "rebuild with nothing changed: `COPY` of 20,000 files, 200 MB, then `RUN true`; limit: `find` that looks at each",
    ),
    (
        "touch1",
        "the same with the content of one file changed; limit: `cp -a` of the files",
    ),
    (
        "copybig",
        "one `COPY` of 1 GiB in files of 4 MiB, empty cache; limit: SHA-256 of all",
    ),
    (
        "copymany",
        "one `COPY` of 50,000 files of 1 to 8 KiB, empty cache; limit: `cp -a` of them",
    ),
    (
        "run50",
        "50 steps of `RUN true`, empty cache, base image present",
    ),
    (
        "fanout",
        "four stages of `RUN sleep 2`, joined by a fifth; limit: `sleep 2`",
    ),
    (
        "push",
        "an image just built, four layers of 256 MiB, to an empty registry",
    ),
    ("pushzstd", "the same with layers compressed by zstd"),
    (
        "pull",
        "the same image into an empty store; buildah, podman and docker also unpack it",
    ),
    (
        "repush",
        "the same image, pulled before, to another empty registry; limit: `curl` that sends the layers, all at once",
    ),
    (
        "unpack",
        "the same image into an empty store and unpacked; kiln also runs a program in it",
    ),
    (
        "save",
        "the same image, just built, to a tar file; limit: `cp` of that file",
    ),
    (
        "load",
        "that tar file into an empty store; limit: SHA-256 of it",
    ),
    (PARSE, "a Dockerfile of 200 lines from text to plan"),
    (START, "one `RUN true`, and a bare start of the program"),
    (
        GROWTH,
        "kiln alone with a tenth of the files or steps, all, and up to ten times as many",
    ),
];

/// Workloads whose cost is looked at as they grow, what grows, and the largest size that fits a small
/// disk and its inodes.
pub(super) const GROWING: [(&str, &str, Tenths); 5] = [
    ("noop", "files", Tenths(100)),
    ("touch1", "files", Tenths(100)),
    ("copybig", "bytes", Tenths(30)),
    ("copymany", "files", Tenths(40)),
    ("run50", "steps", Tenths(100)),
];

const MIB: usize = 1 << 20;
const LAYERS: u64 = 4;
/// Files of 4 MiB in each of them.
const LARGE: usize = 64;

/// How much of a workload: the table's size, or as many tenths of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tenths(pub(super) usize);

impl Tenths {
    /// The table's own size.
    pub(super) const ALL: Self = Self(10);

    fn of(self, count: usize) -> usize {
        count * self.0 / 10
    }
}

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
    storage: Scratch,
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
    pub(super) fn measure(&self, workload: &str, tool: &Tool, size: Tenths) -> Result<Vec<Sample>> {
        match workload {
            "noop" => self.noop(tool, size),
            "touch1" => self.touch1(tool, size),
            "copybig" => self.copy(tool, workload, size),
            "copymany" => self.copy(tool, workload, size),
            "run50" => self.run(tool, size),
            "fanout" => self.fanout(tool),
            "push" => self.push(tool, Tool::push),
            "pushzstd" => self.push(tool, Tool::push_zstd),
            "pull" => self.pull(tool),
            "repush" => self.repush(tool),
            "unpack" => self.unpack(tool),
            "save" => self.save(tool),
            "load" => self.load(tool),
            other => bail!("unknown workload `{other}`"),
        }
    }

    /// What the machine does at best, where a plain command tells.
    pub(super) fn limit(&self, workload: &str) -> Result<Option<Vec<Sample>>> {
        if workload == "repush" {
            return self.repush_limit().map(Some);
        }
        let copy = self.scratch.join("limit");
        let archive = self.scratch.join("layers.tar");
        let command = |program: &str, paths: &[&Path]| {
            let mut command = Command::new(program);
            command.args(paths);
            command
        };
        let copied = |name: &str| -> Result<Command> {
            let context = self.files(name, Tenths::ALL)?;
            let mut command = command("cp", &[]);
            command.arg("-a").args([&context, &copy]);
            Ok(command)
        };
        let make = || -> Result<Option<Command>> {
            Ok(Some(match workload {
                "noop" => {
                    let mut find = command("find", &[&self.files("noop", Tenths::ALL)?]);
                    find.args(["-printf", "%s %T@\n"]);
                    find
                }
                "touch1" => copied("noop")?,
                "copymany" => copied("copymany")?,
                "copybig" => {
                    let context = self.files("copybig", Tenths::ALL)?;
                    let mut files: Vec<PathBuf> = Vec::new();
                    for entry in fs::read_dir(context)? {
                        files.push(entry?.path());
                    }
                    let mut sum = command("openssl", &[]);
                    sum.arg("sha256").args(files);
                    sum
                }
                "fanout" => {
                    let mut sleep = command("sleep", &[]);
                    sleep.arg("2");
                    sleep
                }
                "save" if archive.exists() => command("cp", &[&archive, &copy]),
                "load" if archive.exists() => {
                    let mut sum = command("openssl", &[]);
                    sum.arg("sha256").arg(&archive);
                    sum
                }
                _ => return Ok(None),
            }))
        };
        let mut samples = Vec::new();
        for _ in 0..self.runs {
            scratch::remove(&copy)?;
            let Some(command) = make()? else {
                return Ok(None);
            };
            samples.push(measure::measure(command, None)?);
        }
        scratch::remove(&copy)?;
        Ok(Some(samples))
    }

    /// The files that a workload copies.
    fn files(&self, workload: &str, size: Tenths) -> Result<PathBuf> {
        let name = match size {
            Tenths::ALL => workload.to_owned(),
            Tenths(tenths) => format!("{workload}-{tenths}"),
        };
        self.context(&name, |root| match workload {
            "copybig" => generate::big_files(root, 20, size.of(256), 4 * MIB),
            "copymany" => generate::small_files(root, 30, size.of(50_000), 1 << 10, 8 << 10),
            _ => generate::small_files(root, 10, size.of(20_000), 1_000, 19_000),
        })
    }

    /// Removes the files of a size that is not needed again.
    pub(super) fn discard(&self, workload: &str, size: Tenths) -> Result<()> {
        let workload = if workload == "touch1" {
            "noop"
        } else {
            workload
        };
        scratch::remove(&self.scratch.join(&format!("context-{workload}-{}", size.0)))
    }

    fn noop(&self, tool: &Tool, size: Tenths) -> Result<Vec<Sample>> {
        let context = self.files("noop", size)?;
        let build = self.copy_and_run(tool, &context)?;
        process::quiet(&mut build())?;
        self.repeat(tool, || Ok(()), build)
    }

    fn touch1(&self, tool: &Tool, size: Tenths) -> Result<Vec<Sample>> {
        let context = self.files("noop", size)?;
        let build = self.copy_and_run(tool, &context)?;
        process::quiet(&mut build())?;
        let file = context.join("d00/s07/file00350.txt");
        let original =
            fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
        let samples = (0..self.runs).map(|n| {
            let mut touched = format!("touched {n} by {} ", tool.name()).into_bytes();
            touched.extend_from_slice(&original);
            fs::write(&file, &touched)?;
            measure::measure(build(), tool.daemon())
        });
        let samples = samples.collect();
        fs::write(&file, &original)?;
        samples
    }

    /// The build of what `noop` and `touch1` build.
    fn copy_and_run<'b>(
        &'b self,
        tool: &'b Tool,
        context: &'b Path,
    ) -> Result<impl Fn() -> Command + 'b> {
        let text = format!("FROM {}\nCOPY . /app\nRUN true\n", self.base);
        let dockerfile = self.dockerfile("noop", &text)?;
        Ok(move || tool.build(context, &dockerfile, "bench/noop:latest"))
    }

    fn run(&self, tool: &Tool, size: Tenths) -> Result<Vec<Sample>> {
        let steps = "RUN true\n".repeat(size.of(50));
        self.cold(tool, "run50", &format!("FROM {}\n{steps}", self.base))
    }

    fn fanout(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let mut text = String::new();
        for n in 0..4 {
            let from = &self.base;
            text.push_str(&format!(
                "FROM {from} AS s{n}\nRUN sleep 2 && echo {n} > /out{n}\n"
            ));
        }
        text.push_str(&format!("FROM {}\n", self.base));
        for n in 0..4 {
            text.push_str(&format!("COPY --from=s{n} /out{n} /\n"));
        }
        self.cold(tool, "fanout", &text)
    }

    /// A build without files, with an empty cache.
    fn cold(&self, tool: &Tool, name: &str, text: &str) -> Result<Vec<Sample>> {
        let context = self.context("empty", |root| {
            Ok(fs::write(root.join("readme"), "empty\n")?)
        })?;
        let dockerfile = self.dockerfile(name, text)?;
        let image = format!("bench/{name}:latest");
        self.repeat(
            tool,
            || self.fresh(tool),
            || tool.build(&context, &dockerfile, &image),
        )
    }

    fn copy(&self, tool: &Tool, name: &str, size: Tenths) -> Result<Vec<Sample>> {
        let context = self.files(name, size)?;
        let dockerfile = self.dockerfile(name, &format!("FROM {}\nCOPY . /app\n", self.base))?;
        let image = format!("bench/{name}:latest");
        self.repeat(
            tool,
            || self.fresh(tool),
            || tool.build(&context, &dockerfile, &image),
        )
    }

    fn push(&self, tool: &Tool, push: fn(&Tool, &str) -> Command) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for _ in 0..self.runs {
            tool.reset()?;
            let (_storage, registry) = self.empty_registry()?;
            let image = format!("{}/bench/layers:latest", registry.address());
            self.build_layers(tool, &image)?;
            samples.push(measure::measure(push(tool, &image), tool.daemon())?);
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

    /// Sends the layers as they lie in the registry, all at once and by a program that looks at nothing.
    fn repush_limit(&self) -> Result<Vec<Sample>> {
        let script = r#"
            send() {
                to=$(curl -fsS -o /dev/null -D - -X POST "$1/v2/limit/blobs/uploads/" | tr -d '\r' |
                    sed -n 's/^[Ll]ocation: //p')
                curl -fsS -T "$2" "$to&digest=sha256:$(basename "$(dirname "$2")")"
            }
            registry=$1; shift
            sending=
            for blob; do send "http://$registry" "$blob" & sending="$sending $!"; done
            for one in $sending; do wait "$one" || exit 1; done
        "#;
        self.published()?;
        let published = self.published.get().context("there is no image")?;
        let mut blobs = Vec::new();
        let all = published
            .storage
            .join("storage/docker/registry/v2/blobs/sha256");
        for prefix in fs::read_dir(&all)? {
            for blob in fs::read_dir(prefix?.path())? {
                let data = blob?.path().join("data");
                if fs::metadata(&data)?.len() > MIB as u64 {
                    blobs.push(data);
                }
            }
        }
        let samples = (0..self.runs).map(|_| {
            let (_storage, registry) = self.empty_registry()?;
            let mut send = Command::new("sh");
            send.args(["-c", script, "sh", registry.address()]);
            send.args(&blobs);
            measure::measure(send, None)
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
        self.build_layers(&publisher, &image)?;
        process::quiet(&mut publisher.push(&image))?;
        publisher.reset()?;
        let published = self.published.get_or_init(|| Published {
            image,
            _registry: registry,
            storage,
        });
        Ok(&published.image)
    }

    fn save(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let image = "bench/layers:latest";
        let archive = self.scratch.join("layers.tar");
        self.build_layers(tool, image)?;
        self.repeat(
            tool,
            || scratch::remove(&archive),
            || tool.save(image, &archive),
        )
    }

    fn load(&self, tool: &Tool) -> Result<Vec<Sample>> {
        let image = "bench/layers:latest";
        let archive = self.scratch.join("layers.tar");
        self.build_layers(tool, image)?;
        scratch::remove(&archive)?;
        process::quiet(&mut tool.save(image, &archive))?;
        self.repeat(tool, || tool.forget(image), || tool.load(&archive))
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

    /// Builds the image of four layers.
    fn build_layers(&self, tool: &Tool, image: &str) -> Result<()> {
        let context = self.context("layers", |root| {
            (0..LAYERS).try_for_each(|n| {
                generate::big_files(&root.join(format!("l{n}")), 40 + n, LARGE, 4 * MIB)
            })
        })?;
        let copies: String = (0..LAYERS).map(|n| format!("COPY l{n} /l{n}\n")).collect();
        let from = format!("FROM {}\n{copies}", self.base);
        let dockerfile = self.dockerfile("layers", &from)?;
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
