//! One stage at work: its config, file system and history so far, and the instructions that
//! change them.

use std::collections::{BTreeMap, HashMap};

use kiln_grammar::ast::{Instruction, Kind, Word};
use kiln_grammar::diagnostic::{Diagnostic, suggest};
use kiln_grammar::lint::MAX_FOUND;
use kiln_grammar::source::Span;
use kiln_grammar::syntax::MAX_ERRORS;
use kiln_grammar::word::WordError;
use kiln_registry::spec::{ImageConfig, Platform};

use super::contexts::ContextSource;
use super::git;
use super::onbuild::Trigger;
use super::options::{BaseImages, LowerOptions};
use super::plan::HistoryEntry;
use super::scope::{Expansion, Scope};
use super::stages::{Base, Stages};
use crate::graph::{ContextOp, Graph, ImageOp, Op, Origin, Vertex, VertexId};

/// What lowering of all stages shares.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub(super) options: &'a LowerOptions,
    pub(super) bases: &'a BaseImages,
    pub(super) stages: &'a Stages<'a>,
    pub(super) globals: &'a Scope,
    pub(super) escape: char,
    /// Whether nothing will be built: images may be unknown, and what kiln cannot do yet is no
    /// mistake of the file.
    pub(super) looking: bool,
    pub(super) graph: Graph,
    pub(super) errors: Vec<Diagnostic>,
    pub(super) warnings: Vec<Diagnostic>,
    /// What the stages came to, by index.
    pub(super) done: BTreeMap<usize, State>,
    /// All names that an `ARG` of a lowered stage declares.
    pub(super) declared: Vec<String>,
    /// Bytes that the plan holds besides the text of the Dockerfile.
    pub(super) size: usize,
    /// How many unknown names were compared with all that are known.
    pub(super) guesses: usize,
}

/// Where a stage stands after an instruction.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Its file system.
    pub(super) vertex: VertexId,
    /// The config of its image; history and diff ids are the base image's.
    pub(super) config: ImageConfig,
    /// The image that it goes back to.
    pub(super) base: Option<VertexId>,
    /// What comes on top of that image.
    pub(super) history: Vec<HistoryEntry>,
    /// The variables.
    pub(super) scope: Scope,
    /// Where each name stands in the environment of the config.
    pub(super) env_at: HashMap<String, usize>,
    /// Whether this stage itself has a `CMD` (A9.2).
    pub(super) has_cmd: bool,
    /// Whether a `WORKDIR` of this file has set the working directory.
    pub(super) workdir_set: bool,
    /// Whether the environment and working directory that the base image brings are known.
    pub(super) known: bool,
    /// Whether a variable that the unknown base image may define was used: what was made of it may
    /// look wrong without being so.
    pub(super) doubtful: bool,
}

/// Lowers the instructions of one stage.
#[derive(Debug)]
pub(super) struct StageLowering<'a, 'b> {
    pub(super) shared: &'b mut Shared<'a>,
    pub(super) index: usize,
    pub(super) state: State,
    /// Steps named so far, and steps in all (C10.2).
    step: usize,
    total: usize,
}

/// The instruction that is being lowered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'a> {
    pub(super) instruction: &'a Instruction,
    /// Where to point at instead of the instruction's own spans.
    pub(super) place: Option<Span>,
    pub(super) onbuild: bool,
}

/// The rule that says what kiln cannot do yet.
pub(super) const UNSUPPORTED: &str = "Unsupported";

/// How many slips of the pen are looked for: who has more undefined variables has not misspelt them.
pub(super) const GUESSES: usize = 100;

/// Bytes that a plan may hold. A file of a few lines can ask for much more.
const SIZE_LIMIT: usize = 128 << 20;

impl State {
    /// Bytes that a copy of this state takes, about.
    fn size(&self) -> usize {
        let history = self
            .history
            .iter()
            .map(|entry| 100 + entry.created_by.len());
        self.scope.size() + history.sum::<usize>()
    }
}

impl<'a> Shared<'a> {
    /// Keeps a warning, unless there are more than anybody reads.
    pub(super) fn warn(&mut self, warning: Diagnostic) {
        if self.warnings.len() < MAX_FOUND {
            self.warnings.push(warning);
        }
    }

    /// Whether there is no use in going on.
    fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS || self.size > SIZE_LIMIT
    }

    /// Refuses what kiln cannot do yet. It is no mistake of the file, so who only looks at it gets
    /// a warning.
    pub(super) fn unsupported(&mut self, what: &str, span: Span) -> Result<(), Diagnostic> {
        let message = format!("{what} is not supported yet");
        if !self.looking {
            return Err(Diagnostic::error(message, span));
        }
        let warning = Diagnostic::warning(UNSUPPORTED, message, span);
        self.warn(warning);
        Ok(())
    }

    /// Counts bytes that the plan holds besides the text of the Dockerfile, and stops when they
    /// have become too many.
    pub(super) fn charge(&mut self, bytes: usize, span: Span) -> Result<(), Diagnostic> {
        self.size = self.size.saturating_add(bytes);
        if self.size > SIZE_LIMIT {
            let message = format!("the build plan takes more than {} MiB", SIZE_LIMIT >> 20);
            return Err(Diagnostic::error(message, span));
        }
        Ok(())
    }

    /// The vertex of a name that `COPY --from` or `RUN --mount` reads.
    pub(super) fn input(
        &mut self,
        base: &Base,
        span: Span,
        origin: Origin,
    ) -> Result<VertexId, Diagnostic> {
        match base {
            Base::Scratch | Base::Unknown => Ok(self.scratch(origin)),
            Base::Context(index) => Ok(self.named_context(*index, origin)),
            Base::Image(reference) => {
                let platform = self.options.platform.clone();
                match self.image(reference, &platform, span, origin, "")? {
                    Some((vertex, _)) => Ok(vertex),
                    None => Ok(self.scratch(origin)),
                }
            }
            // Stages that are read stand earlier and are lowered in order of the file.
            Base::Stage(index) => match self.done.get(index) {
                Some(state) => Ok(state.vertex),
                None => Err(Diagnostic::error(
                    format!("stage {index} is not built before it is read"),
                    span,
                )),
            },
        }
    }

    /// The build context.
    pub(super) fn context(&mut self) -> VertexId {
        self.graph.add(Vertex {
            op: Op::Context(ContextOp { name: None }),
            inputs: Vec::new(),
            name: "[internal] load build context".to_owned(),
            origin: None,
        })
    }

    /// The files of a named context.
    pub(super) fn named_context(&mut self, index: usize, origin: Origin) -> VertexId {
        let context = &self.options.contexts[index];
        let (op, what) = match &context.source {
            ContextSource::Git(git) => (Op::Git(git.clone()), format!("fetch {}", context.value)),
            _ => {
                let name = Some(context.name.clone());
                let op = Op::Context(ContextOp { name });
                (op, format!("load {}", context.value))
            }
        };
        self.graph.add(Vertex {
            op,
            inputs: Vec::new(),
            name: format!("[context {}] {what}", context.name),
            origin: Some(origin),
        })
    }

    pub(super) fn scratch(&mut self, origin: Origin) -> VertexId {
        self.graph.add(Vertex {
            op: Op::Scratch,
            inputs: Vec::new(),
            name: "FROM scratch".to_owned(),
            origin: Some(origin),
        })
    }

    /// The vertex and config of an image; `None` for one that need not be known.
    pub(super) fn image(
        &mut self,
        reference: &str,
        platform: &Platform,
        span: Span,
        origin: Origin,
        prefix: &str,
    ) -> Result<Option<(VertexId, ImageConfig)>, Diagnostic> {
        let Some(image) = self.bases.get(reference, platform) else {
            if self.looking {
                self.advise_stage(reference, span);
                return Ok(None);
            }
            let platform = platform.to_string();
            let message = format!("image `{reference}` for {platform} is not resolved");
            return Err(Diagnostic::error(message, span));
        };
        let vertex = self.graph.add(Vertex {
            op: Op::Image(ImageOp {
                name: image.name.clone(),
                config: image.config_digest,
                layers: image.config.rootfs.diff_ids.clone(),
            }),
            inputs: Vec::new(),
            name: format!("{prefix}FROM {}", image.name),
            origin: Some(origin),
        });
        Ok(Some((vertex, image.config.clone())))
    }
}

impl<'a, 'b> StageLowering<'a, 'b> {
    /// Lowers one stage, whose inputs are lowered already.
    pub(super) fn run(shared: &'b mut Shared<'a>, index: usize) {
        let stages = shared.stages;
        let stage = &stages.list[index];
        // What is wrong with them was said when the stage was reached.
        let triggers = stages.triggers(index, shared.bases, &mut Vec::new());
        let instructions = triggers.iter().map(|trigger| &trigger.instruction);
        let instructions = instructions.chain(stage.instructions());
        let step = usize::from(matches!(stage.base, Base::Image(_) | Base::Context(_)));
        let total = step + instructions.filter(|one| is_step(one)).count();
        let state = super::from::initial(shared, index, total);
        let mut lowering = StageLowering {
            shared,
            index,
            state,
            step,
            total,
        };
        for trigger in &triggers {
            lowering.fire(trigger);
        }
        for instruction in stage.instructions() {
            let result = lowering.dispatch(&Step {
                instruction,
                place: None,
                onbuild: false,
            });
            lowering.note(result);
        }
        let state = lowering.state;
        if let Err(error) = shared.charge(state.size(), stage.ast.span) {
            shared.errors.push(error);
        }
        shared.done.insert(index, state);
    }

    /// Keeps an error, unless it may come from a value that is not known.
    fn note(&mut self, result: Result<(), Diagnostic>) {
        if let Err(error) = result
            && !self.state.doubtful
        {
            self.shared.errors.push(error);
        }
    }

    /// Lowers an `ONBUILD` trigger; what is said about it points at where it fires.
    fn fire(&mut self, trigger: &Trigger) {
        let before = self.shared.warnings.len();
        let result = self.dispatch(&Step {
            instruction: &trigger.instruction,
            place: trigger.place,
            onbuild: true,
        });
        let warnings = self.shared.warnings.split_off(before);
        let warnings = warnings.into_iter().map(|warning| trigger.place(warning));
        self.shared.warnings.extend(warnings);
        self.note(result.map_err(|error| trigger.place(error)));
    }

    fn dispatch(&mut self, step: &Step<'_>) -> Result<(), Diagnostic> {
        if self.shared.is_full() {
            return Ok(());
        }
        let recorded = self
            .state
            .history
            .last()
            .map_or(0, |entry| entry.created_by.len());
        self.shared.charge(recorded, step.instruction.span)?;
        match &step.instruction.kind {
            Kind::Arg(pairs) => self.arg(pairs),
            Kind::Env(pairs) => self.env(pairs),
            Kind::Label(pairs) => self.label(pairs),
            Kind::Run(run) => self.run_command(run, step),
            Kind::Cmd(command) => self.cmd(command, step),
            Kind::Entrypoint(command) => self.entrypoint(command, step),
            Kind::Shell(shell) => self.shell(shell),
            Kind::Copy(copy) => self.copy(copy, step),
            Kind::Add(add) => self.add(add, step),
            Kind::Volume(volumes) => self.volume(volumes),
            Kind::Expose(ports) => self.expose(ports),
            Kind::Workdir(path) => self.workdir(path, step),
            Kind::User(user) => self.user(user),
            Kind::StopSignal(signal) => self.stop_signal(signal),
            Kind::Healthcheck(check) => self.healthcheck(check),
            Kind::Onbuild(onbuild) => self.onbuild(onbuild),
            Kind::Maintainer(author) => self.maintainer(author),
        }
    }

    /// Expands a word with the variables at this place.
    pub(super) fn expand(&mut self, word: &Word) -> Result<String, Diagnostic> {
        let expanded = self.state.scope.expand(&word.value, self.shared.escape);
        let text = self.expanded(expanded, word.span)?;
        self.shared.charge(text.len(), word.span)?;
        Ok(text)
    }

    /// Expands an optional word; an empty result is none.
    pub(super) fn expand_option(
        &mut self,
        word: Option<&Word>,
    ) -> Result<Option<String>, Diagnostic> {
        let expanded = word.map(|word| self.expand(word)).transpose()?;
        Ok(expanded.filter(|text| !text.is_empty()))
    }

    /// Turns an expansion into its value, a warning for each undefined variable, or an error.
    pub(super) fn expanded<T>(
        &mut self,
        expanded: Result<Expansion<T>, WordError>,
        span: Span,
    ) -> Result<T, Diagnostic> {
        let expanded = expanded.map_err(|error| {
            let wanting = matches!(error, WordError::Required { .. });
            self.state.doubtful |= wanting && !self.state.known;
            Diagnostic::error(error.to_string(), span)
        })?;
        self.undefined(expanded.undefined, span);
        Ok(expanded.value)
    }

    /// Warns of variables that nothing defines. An unknown base image may define any; then only what
    /// looks like a slip of the pen is worth a word.
    pub(super) fn undefined(&mut self, names: Vec<String>, span: Span) {
        for name in names {
            self.state.doubtful |= !self.state.known;
            let mut message = format!("Usage of undefined variable '${name}'");
            let unsaid = |other: &&str| self.state.known || *other != "PATH";
            let names = self.state.scope.names().filter(unsaid);
            self.shared.guesses += 1;
            let near = (self.shared.guesses <= GUESSES).then(|| suggest(&name, names));
            match near.flatten() {
                Some(near) => message.push_str(&format!(" (did you mean ${near}?)")),
                None if !self.state.known => continue,
                None => {}
            }
            let warning = Diagnostic::warning("UndefinedVar", message, span);
            self.shared.warn(warning);
        }
    }

    /// Where a step comes from.
    pub(super) fn origin(&self, step: &Step<'_>) -> Origin {
        Origin {
            stage: self.index,
            span: match step.place {
                Some(_) => None,
                None => Some(step.instruction.span),
            },
        }
    }

    /// Names a step, which counts it (C10.2).
    pub(super) fn name(&mut self, step: &Step<'_>, suffix: &str) -> String {
        self.step += 1;
        let prefix = prefix(self.shared, self.index, self.step, self.total);
        let onbuild = if step.onbuild { "ONBUILD " } else { "" };
        let keyword = &step.instruction.keyword.value;
        let rest = step
            .instruction
            .text
            .get(keyword.len()..)
            .unwrap_or_default();
        format!("{prefix}{onbuild}{}{rest}{suffix}", keyword.to_uppercase())
    }

    /// Names what an already named step fetches.
    pub(super) fn fetch_name(&self, step: &Step<'_>, address: &str) -> String {
        let prefix = prefix(self.shared, self.index, self.step, self.total);
        let onbuild = if step.onbuild { "ONBUILD " } else { "" };
        format!("{prefix}{onbuild}ADD {}", git::without_login(address))
    }

    /// Adds a vertex on top of the stage's file system.
    pub(super) fn push(&mut self, vertex: Vertex) -> VertexId {
        self.state.vertex = self.shared.graph.add(vertex);
        self.state.vertex
    }

    /// Adds to the history (A16.2).
    pub(super) fn record(&mut self, created_by: String, layer: Option<VertexId>) {
        let entry = HistoryEntry::new(created_by, layer);
        self.state.history.push(entry);
    }

    /// The working directory, absolute.
    pub(super) fn directory(&self) -> &str {
        match self.state.config.config.working_dir.as_str() {
            "" => "/",
            directory => directory,
        }
    }
}

/// Whether an instruction makes a step that progress counts.
fn is_step(instruction: &Instruction) -> bool {
    matches!(
        instruction.kind,
        Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_)
    )
}

/// The bracket before the name of a step: `[linux/arm64 builder  2/12] `.
pub(super) fn prefix(shared: &Shared<'_>, index: usize, step: usize, total: usize) -> String {
    let stage = &shared.stages.list[index];
    let mut text = String::from("[");
    if shared.options.name_platform {
        text.push_str(&stage.platform.to_string());
        text.push_str(&target_suffix(&stage.platform, &shared.options.platform));
        text.push(' ');
    }
    if !stage.title.is_empty() {
        text.push_str(&stage.title);
        text.push(' ');
    }
    let width = total.to_string().len();
    text.push_str(&format!("{step:width$}/{total}] "));
    text
}

/// What a stage that runs on one platform says of building for another (C10.2).
fn target_suffix(stage: &Platform, target: &Platform) -> String {
    if stage.os != target.os {
        return format!("->{target}");
    }
    if stage.architecture == target.architecture {
        return String::new();
    }
    match &target.variant {
        Some(variant) => format!("->{}/{variant}", target.architecture),
        None => format!("->{}", target.architecture),
    }
}
