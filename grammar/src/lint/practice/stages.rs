//! A Dockerfile as rules look at it: stages with what they build on, and steps with what they run.

use std::collections::HashMap;

use super::call::Call;
use super::script::{self, Script, Shell};
use crate::ast::{Dockerfile, Instruction, Kind, Run, Stage};
use crate::source::Span;

/// How many bytes of scripts are read; what comes after is not looked at.
const MAX_SCRIPTS: usize = 1 << 20;

/// A stage.
#[derive(Debug)]
pub(super) struct View<'d> {
    /// The stage itself.
    pub(super) stage: &'d Stage,
    /// Index of the stage it is built on.
    pub(super) parent: Option<usize>,
    /// Whether its layers can end up in an image: nobody only copies from it.
    pub(super) ships: bool,
    /// Its instructions.
    pub(super) steps: Vec<Step<'d>>,
    /// What the files of its system settle before.
    pub(super) settled: Settled,
}

/// Settings of package managers that a stage or one below makes, so that options say nothing new.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settled {
    /// apt-get asks nothing.
    pub(super) assume_yes: bool,
    /// apt-get installs no recommended packages.
    pub(super) no_recommends: bool,
    /// pip keeps no cache.
    pub(super) pip_no_cache: bool,
}

/// An instruction.
#[derive(Debug)]
pub(super) struct Step<'d> {
    /// The instruction; of an `ONBUILD` the one that it stores.
    pub(super) instruction: &'d Instruction,
    /// Whether it runs only in child images.
    pub(super) onbuild: bool,
    /// Whether its `--from` names something that is no stage.
    pub(super) from_image: bool,
    /// What it runs.
    pub(super) scripts: Vec<Script>,
}

impl<'d> Step<'d> {
    /// The `RUN` that it is.
    pub(super) fn run(&self) -> Option<&'d Run> {
        match &self.instruction.kind {
            Kind::Run(run) => Some(run),
            _ => None,
        }
    }

    /// The commands that it runs.
    pub(super) fn calls(&self) -> impl Iterator<Item = &Call> {
        self.scripts.iter().flat_map(|script| &script.calls)
    }

    /// Whether a directory is a cache or temporary mount here.
    pub(super) fn mounts(&self, path: &str) -> bool {
        let mounts = self.run().map(|run| run.mounts.as_slice());
        mounts.unwrap_or_default().iter().any(|mount| {
            let mount = &mount.value;
            (mount.contains("type=cache") || mount.contains("type=tmpfs")) && mount.contains(path)
        })
    }

    /// Whether some word of its commands has a text in it.
    pub(super) fn mentions(&self, text: &str) -> bool {
        let mut words = self.calls().flat_map(Call::words);
        words.any(|word| word.value.contains(text))
    }
}

/// Reads the stages of a Dockerfile.
pub(super) fn read<'d>(text: &str, file: &'d Dockerfile) -> Vec<View<'d>> {
    let mut views: Vec<View<'d>> = Vec::with_capacity(file.stages.len());
    let mut shells: Vec<Shell> = Vec::with_capacity(file.stages.len());
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut copied = vec![false; file.stages.len()];
    let mut left = MAX_SCRIPTS;
    for (index, stage) in file.stages.iter().enumerate() {
        let base = stage.base.value.to_lowercase();
        let parent = names.get(base.as_str()).copied();
        mark_copied(stage, &names, &mut copied);
        let inherited = parent.and_then(|parent| shells.get(parent));
        let mut shell = inherited
            .copied()
            .unwrap_or_else(|| default_shell(file, stage));
        let mut steps = Vec::with_capacity(stage.instructions.len());
        for instruction in &stage.instructions {
            let mut step = step(text, file, instruction, &mut shell, &mut left);
            step.from_image =
                from(step.instruction).is_some_and(|from| index_of(&names, from).is_none());
            steps.push(step);
        }
        let below = parent.and_then(|parent| views.get(parent));
        views.push(View {
            stage,
            parent,
            ships: true,
            steps,
            settled: settle(
                text,
                stage,
                below.map(|view| view.settled).unwrap_or_default(),
            ),
        });
        shells.push(shell);
        if let Some(name) = &stage.name {
            names.insert(&name.value, index);
        }
    }
    mark_shipping(&mut views, &copied);
    views
}

fn step<'d>(
    text: &str,
    file: &Dockerfile,
    written: &'d Instruction,
    shell: &mut Shell,
    left: &mut usize,
) -> Step<'d> {
    let (instruction, onbuild) = match &written.kind {
        Kind::Onbuild(onbuild) => (&*onbuild.instruction, true),
        _ => (written, false),
    };
    let mut scripts = Vec::new();
    match &instruction.kind {
        Kind::Shell(words) if !onbuild => *shell = Shell::of(words.iter().map(String::as_str)),
        Kind::Run(run) => {
            let length = instruction.span.range().len();
            *left = left.saturating_sub(length);
            if *left > 0 {
                let escape = file.directives.escape;
                scripts = script::read(text, escape, instruction, run, *shell);
            }
        }
        _ => {}
    }
    Step {
        instruction,
        onbuild,
        from_image: false,
        scripts,
    }
}

/// The `--from` of a `COPY`.
fn from(instruction: &Instruction) -> Option<&str> {
    match &instruction.kind {
        Kind::Copy(copy) => copy.from.as_ref().map(|from| from.value.as_str()),
        _ => None,
    }
}

/// The stage of a name or number in a `from=`.
fn index_of(names: &HashMap<&str, usize>, from: &str) -> Option<usize> {
    let name = from.to_lowercase();
    names
        .get(name.as_str())
        .copied()
        .or_else(|| name.parse().ok())
}

/// The shell of a stage that names none: Windows has another one.
fn default_shell(file: &Dockerfile, stage: &Stage) -> Shell {
    let base = stage.base.value.to_lowercase();
    let windows = ["windows", "nanoserver", "servercore"];
    if file.directives.escape == '`' || windows.iter().any(|name| base.contains(name)) {
        return Shell::Other;
    }
    Shell::Posix { pipefail: false }
}

fn mark_copied(stage: &Stage, names: &HashMap<&str, usize>, copied: &mut [bool]) {
    let mut mark = |name: &str| {
        let index = index_of(names, name);
        if let Some(copied) = index.and_then(|index| copied.get_mut(index)) {
            *copied = true;
        }
    };
    for instruction in &stage.instructions {
        match &instruction.kind {
            Kind::Copy(_) => {
                if let Some(from) = from(instruction) {
                    mark(from);
                }
            }
            Kind::Run(run) => {
                for mount in &run.mounts {
                    let fields = mount.value.split(',');
                    let from = fields.filter_map(|field| field.trim().strip_prefix("from="));
                    from.for_each(&mut mark);
                }
            }
            _ => {}
        }
    }
}

/// A stage ships if it is the last, if one built on it ships, or if nobody uses it: then it is
/// there to be built by name.
fn mark_shipping(views: &mut [View<'_>], copied: &[bool]) {
    let mut children = vec![(false, false); views.len()];
    for index in (0..views.len()).rev() {
        let last = index + 1 == views.len();
        let (used, ships) = children[index];
        let copied = copied.get(index).copied().unwrap_or_default();
        let ships = last || ships || !(used || copied);
        views[index].ships = ships;
        if let Some(parent) = views[index].parent {
            children[parent].0 = true;
            children[parent].1 |= ships;
        }
    }
}

/// Looks for settings in the text of a stage: what writes them has many forms, their names one.
fn settle(text: &str, stage: &Stage, below: Settled) -> Settled {
    let end = stage
        .instructions
        .last()
        .map_or(stage.span, |last| last.span);
    let span: Span = stage.span.join(end);
    let text = text.get(span.range()).unwrap_or_default();
    let apt_conf = stage.instructions.iter().any(|instruction| {
        let files = match &instruction.kind {
            Kind::Copy(copy) => &copy.files,
            Kind::Add(add) => &add.files,
            _ => return false,
        };
        files.destination.value.contains("/etc/apt/apt.conf")
    });
    let pip = ["PIP_NO_CACHE_DIR", "pip config set"];
    Settled {
        assume_yes: below.assume_yes || apt_conf || text.contains("Get::Assume-Yes"),
        no_recommends: below.no_recommends || apt_conf || text.contains("Install-Recommends"),
        pip_no_cache: below.pip_no_cache || pip.iter().any(|name| text.contains(name)),
    }
}
