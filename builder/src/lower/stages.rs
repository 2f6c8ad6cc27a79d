//! Stages: their names and bases, what they need of each other, and which the target needs (A7).

use std::collections::{BTreeSet, HashMap, HashSet};

use kiln_grammar::ast::{self, Dockerfile, Instruction, Kind};
use kiln_grammar::diagnostic::{Diagnostic, suggest};
use kiln_grammar::lint::MAX_FOUND;
use kiln_grammar::source::{Span, Spanned};
use kiln_grammar::syntax::MAX_ERRORS;
use kiln_registry::spec::Platform;

use super::contexts::{self, ContextSource, NamedContext};
use super::globals;
use super::mounts;
use super::onbuild::{self, Trigger};
use super::options::{BaseImages, LowerOptions};
use super::plan::Wanted;
use super::scope::{Expansion, Scope};
use super::stage::GUESSES;

/// The stages of a file.
#[derive(Debug)]
pub(super) struct Stages<'a> {
    /// In the order of the file.
    pub(super) list: Vec<Stage<'a>>,
    /// Index of the stage to build.
    pub(super) target: usize,
    platform: &'a Platform,
    contexts: &'a [NamedContext],
    /// The stages of each name, in order.
    names: HashMap<String, Vec<usize>>,
}

/// A stage whose `FROM` is understood.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) ast: &'a ast::Stage,
    /// How progress names it; empty in a file of one stage (C10.2).
    pub(super) title: String,
    /// What `FROM` names, expanded.
    pub(super) word: String,
    pub(super) base: Base,
    /// Whether a named context takes the place of the whole stage (A7.2).
    replaced: bool,
    pub(super) platform: Platform,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Nothing at all.
    Scratch,
    /// Another stage, which stands earlier in the file.
    Stage(usize),
    /// The files of a named context, by its index.
    Context(usize),
    /// An image, by its reference as written.
    Image(String),
    /// Nobody knows: what names it is wrong, which is reported where it stands.
    Unknown,
}

impl<'a> Stage<'a> {
    /// The instructions that run: none where a named context stands for the stage.
    pub(super) fn instructions(&self) -> &'a [Instruction] {
        if self.replaced {
            &[]
        } else {
            &self.ast.instructions
        }
    }
}

/// Which instruction names a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// `COPY --from`
    Copy,
    /// `RUN --mount=from`
    Mount,
}

/// A stage or image that an instruction reads.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// The name as written.
    pub(super) name: Spanned<String>,
    pub(super) by: Use,
}

/// What the target needs.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// Indexes of stages; in their order inputs come first.
    pub(super) stages: BTreeSet<usize>,
    /// Images, each once.
    pub(super) images: Vec<Wanted>,
    known: HashSet<(String, Platform)>,
}

impl<'a> Stages<'a> {
    /// Resolves the `FROM` of every stage and the target. A stage that is wrong has an unknown base,
    /// a wrong target is the last stage.
    pub(super) fn resolve(
        file: &'a Dockerfile,
        options: &'a LowerOptions,
        globals: &Scope,
        warnings: &mut Vec<Diagnostic>,
        errors: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut stages = Self {
            list: Vec::new(),
            target: 0,
            platform: &options.platform,
            contexts: &options.contexts,
            names: HashMap::new(),
        };
        warn_about_defaults(file, options, warnings);
        for (index, ast) in file.stages.iter().enumerate() {
            let word = base_word(ast, file, globals, warnings).unwrap_or_else(|error| {
                errors.push(error);
                String::new()
            });
            let own = own_platform(ast, file, options, globals, warnings);
            let own = own.unwrap_or_else(|error| {
                errors.push(error);
                options.platform.clone()
            });
            let alias = ast.name.as_ref();
            let replacement = alias.and_then(|alias| stages.context(&alias.value, &own));
            let replaced = replacement.is_some();
            let base = replacement.unwrap_or_else(|| stages.base_of(&word, index, &own));
            let platform = stages.platform_of(&base, own);
            stages.list.push(Stage {
                ast,
                title: title(file, index),
                word,
                base,
                replaced,
                platform,
            });
            if let Some(name) = &ast.name {
                let indexes = stages.names.entry(name.value.to_lowercase());
                indexes.or_default().push(index);
            }
        }
        stages.target = stages.find_target(options).unwrap_or_else(|error| {
            errors.push(error);
            file.stages.len().saturating_sub(1)
        });
        stages
    }

    /// What the word behind `FROM` stands for (A7.2).
    fn base_of(&self, word: &str, index: usize, platform: &Platform) -> Base {
        match self.earlier(word, index) {
            Some(earlier) => Base::Stage(earlier),
            None if word.is_empty() => Base::Unknown,
            None if word == "scratch" => Base::Scratch,
            None => self.context_or_image(word, platform),
        }
    }

    /// A stage built on another one has its platform; any other has what `--platform` says, or
    /// the platform that is built for (A7.7).
    fn platform_of(&self, base: &Base, own: Platform) -> Platform {
        match base {
            Base::Stage(earlier) => self.list[*earlier].platform.clone(),
            Base::Scratch | Base::Context(_) => self.platform.clone(),
            Base::Image(_) | Base::Unknown => own,
        }
    }

    /// What the named context of this name stands for, where there is one.
    fn context(&self, name: &str, platform: &Platform) -> Option<Base> {
        let index = contexts::find(self.contexts, name, platform)?;
        Some(match &self.contexts[index].source {
            ContextSource::Folder(_) | ContextSource::Git(_) => Base::Context(index),
            ContextSource::Image(reference) => Base::Image(reference.clone()),
            ContextSource::Scratch => Base::Scratch,
        })
    }

    fn context_or_image(&self, name: &str, platform: &Platform) -> Base {
        let context = self.context(name, platform);
        context.unwrap_or_else(|| Base::Image(name.to_owned()))
    }

    fn find_target(&self, options: &LowerOptions) -> Result<usize, Diagnostic> {
        let end = self.list.len();
        let Some(target) = &options.target else {
            return Ok(end.saturating_sub(1));
        };
        self.earlier(target, end).ok_or_else(|| {
            let names = self.list.iter().filter_map(|stage| stage.ast.name.as_ref());
            let near = suggest(target, names.map(|name| name.value.as_str()));
            let mut message = format!("target stage \"{target}\" could not be found");
            if let Some(name) = near {
                message.push_str(&format!(" (did you mean {name}?)"));
            }
            Diagnostic::error(message, Span::default())
        })
    }

    /// The stages of a name before a stage, and from it on; case does not matter (A7.1, A7.2).
    fn named(&self, name: &str, before: usize) -> (&[usize], &[usize]) {
        let all = self
            .names
            .get(&name.to_lowercase())
            .map_or(&[][..], Vec::as_slice);
        all.split_at(all.partition_point(|&index| index < before))
    }

    /// The latest stage of a name before a stage.
    fn earlier(&self, name: &str, before: usize) -> Option<usize> {
        self.named(name, before).0.last().copied()
    }

    /// The stage that an instruction of the stage `current` means: an earlier one where there is
    /// one.
    fn any(&self, name: &str, current: usize) -> Option<usize> {
        let (earlier, later) = self.named(name, current);
        earlier.last().or(later.first()).copied()
    }

    /// What `--from` or `from=` in a stage stands for: an earlier stage by name or index, nothing,
    /// or an image (A7.2, A10.1).
    pub(super) fn lookup(&self, source: &Source, current: usize) -> Result<Base, Diagnostic> {
        let name = &source.name.value;
        let error = |message: String| Diagnostic::error(message, source.name.span);
        if name.contains('$') {
            return Err(error(match source.by {
                Use::Copy => "variable expansion is not supported for --from, define a new stage \
                              with FROM using ARG from global scope as a workaround"
                    .to_owned(),
                Use::Mount => "'from' doesn't support variable expansion, define alias stage \
                               instead"
                    .to_owned(),
            }));
        }
        let index = if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = name.parse().ok().filter(|number| *number < self.list.len());
            Some(number.ok_or_else(|| error(format!("invalid stage index {name}")))?)
        } else {
            self.any(name, current)
        };
        match index {
            // The files of a context that stands for a stage need not be a layer to be read.
            Some(index) if index < current => Ok(match &self.list[index].base {
                Base::Context(context) if self.list[index].replaced => Base::Context(*context),
                _ => Base::Stage(index),
            }),
            Some(index) if self.reaches(index, current) => {
                let stage = self.stage_name(current);
                Err(error(format!(
                    "circular dependency detected on stage: {stage}"
                )))
            }
            Some(_) => {
                let stage = self.stage_name(current);
                Err(error(match source.by {
                    Use::Copy => format!(
                        "cannot copy from stage \"{name}\", it needs to be defined before current \
                         stage \"{stage}\""
                    ),
                    Use::Mount => format!(
                        "cannot mount from stage \"{name}\" to \"{stage}\", stage needs to be \
                         defined before current command"
                    ),
                }))
            }
            None if name == "scratch" => Ok(Base::Scratch),
            None if name.eq_ignore_ascii_case("context") => {
                Err(error("`context` is a reserved name".to_owned())
                    .with_hint("leave `from` out to read from the build context"))
            }
            None => Ok(self.context_or_image(name, self.platform)),
        }
    }

    /// A name for messages, also where progress shows none.
    fn stage_name(&self, index: usize) -> String {
        match &self.list[index].ast.name {
            Some(name) => name.value.clone(),
            None => format!("stage-{index}"),
        }
    }

    /// Whether one stage needs another, following names in both directions of the file.
    fn reaches(&self, from: usize, to: usize) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(index) = open.pop() {
            if index == to {
                return true;
            }
            if !seen.insert(index) {
                continue;
            }
            if let Base::Stage(base) = self.list[index].base {
                open.push(base);
            }
            for source in self.list[index].instructions().iter().flat_map(sources) {
                let name = &source.name.value;
                let number = name.parse().ok().filter(|number| *number < self.list.len());
                open.extend(number.or_else(|| self.any(name, index)));
            }
        }
        false
    }

    /// The stages and images that some stages need, as far as the base images are known (A7.9).
    /// What names none is an error; an instruction that is lowered again reports it again.
    pub(super) fn reach(
        &self,
        wanted: Vec<usize>,
        bases: &BaseImages,
        errors: &mut Vec<Diagnostic>,
    ) -> Reached {
        let mut reached = Reached::default();
        let mut open = wanted;
        while let Some(index) = open.pop() {
            if !reached.stages.insert(index) || errors.len() >= MAX_ERRORS {
                continue;
            }
            let stage = &self.list[index];
            match &stage.base {
                Base::Scratch | Base::Context(_) | Base::Unknown => {}
                Base::Stage(base) => open.push(*base),
                Base::Image(reference) => {
                    reached.want(reference, &stage.platform, stage.ast.base.span);
                }
            }
            for trigger in self.triggers(index, bases, errors) {
                for source in sources(&trigger.instruction) {
                    let span = trigger.place.unwrap_or(source.name.span);
                    match self.lookup(&source, index) {
                        Ok(base) => self.follow(base, span, &mut reached, &mut open),
                        Err(error) => errors.push(trigger.place(error)),
                    }
                }
            }
            for source in stage.instructions().iter().flat_map(sources) {
                match self.lookup(&source, index) {
                    Ok(base) => self.follow(base, source.name.span, &mut reached, &mut open),
                    Err(error) => errors.push(error),
                }
            }
        }
        reached
    }

    fn follow(&self, base: Base, span: Span, reached: &mut Reached, open: &mut Vec<usize>) {
        match base {
            Base::Scratch | Base::Context(_) | Base::Unknown => {}
            Base::Stage(index) => open.push(index),
            Base::Image(reference) => reached.want(&reference, self.platform, span),
        }
    }

    /// The `ONBUILD` triggers that fire at the start of a stage (A7.12).
    pub(super) fn triggers(
        &self,
        index: usize,
        bases: &BaseImages,
        errors: &mut Vec<Diagnostic>,
    ) -> Vec<Trigger> {
        let stage = &self.list[index];
        // Nothing runs in a stage that a context stands for, but the context's own triggers wait
        // for the stages built on it.
        let below = match &stage.base {
            _ if stage.replaced => return Vec::new(),
            Base::Stage(base) if self.list[*base].replaced => &self.list[*base],
            Base::Stage(base) => return onbuild::of_stage(self.list[*base].ast),
            _ => stage,
        };
        match &below.base {
            Base::Image(reference) => match bases.get(reference, &below.platform) {
                Some(image) => onbuild::of_image(&image.config, reference, stage.ast.span, errors),
                None => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

impl Reached {
    fn want(&mut self, reference: &str, platform: &Platform, span: Span) {
        if self.known.insert((reference.to_owned(), platform.clone())) {
            self.images.push(Wanted {
                reference: reference.to_owned(),
                platform: platform.clone(),
                span: Some(span),
            });
        }
    }
}

/// The stages and images that an instruction names.
pub(super) fn sources(instruction: &Instruction) -> Vec<Source> {
    match &instruction.kind {
        Kind::Copy(copy) => {
            let by = Use::Copy;
            let name = copy.from.clone();
            name.map(|name| Source { name, by }).into_iter().collect()
        }
        Kind::Run(run) => {
            let by = Use::Mount;
            let names = run.mounts.iter().filter_map(mounts::from);
            names.map(|name| Source { name, by }).collect()
        }
        _ => Vec::new(),
    }
}

fn title(file: &Dockerfile, index: usize) -> String {
    match &file.stages[index].name {
        _ if file.stages.len() == 1 => String::new(),
        Some(name) => name.value.clone(),
        None => format!("stage-{index}"),
    }
}

/// The word behind `FROM`, expanded (A7.6).
fn base_word(
    ast: &ast::Stage,
    file: &Dockerfile,
    globals: &Scope,
    warnings: &mut Vec<Diagnostic>,
) -> Result<String, Diagnostic> {
    let word = expand_from(&ast.base, file, globals, warnings)?.value;
    if word.is_empty() {
        let message = format!("base name ({}) should not be blank", ast.base.value);
        return Err(Diagnostic::error(message, ast.base.span));
    }
    Ok(word)
}

/// The platform that `FROM --platform` asks for, else the one that is built for (A7.7).
fn own_platform(
    ast: &ast::Stage,
    file: &Dockerfile,
    options: &LowerOptions,
    globals: &Scope,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Platform, Diagnostic> {
    let Some(word) = &ast.platform else {
        return Ok(options.platform.clone());
    };
    let expanded = expand_from(word, file, globals, warnings)?;
    if expanded.value.is_empty() {
        let message = format!("empty platform value from expression {}", word.value);
        return Err(Diagnostic::error(message, word.span));
    }
    let platform = Platform::parse_on(&expanded.value, &options.build_platform)
        .map_err(|error| Diagnostic::error(error.to_string(), word.span))?;
    warnings.extend(platform_warning(ast, word, &expanded, &platform, globals));
    Ok(platform)
}

/// Expands a word of a `FROM` line in the global scope.
fn expand_from(
    word: &ast::Word,
    file: &Dockerfile,
    globals: &Scope,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Expansion<String>, Diagnostic> {
    let expanded = globals
        .expand(&word.value, file.directives.escape)
        .map_err(|error| Diagnostic::error(error.to_string(), word.span))?;
    for name in &expanded.undefined {
        if warnings.len() >= MAX_FOUND {
            break;
        }
        let mut message = format!("FROM argument '{name}' is not declared");
        let few = warnings.len() < GUESSES;
        let near = few.then(|| suggest(name, globals.names()));
        if let Some(near) = near.flatten() {
            message.push_str(&format!(" (did you mean {near}?)"));
        }
        warnings.push(Diagnostic::warning(
            "UndefinedArgInFrom",
            message,
            word.span,
        ));
    }
    Ok(expanded)
}

/// Warns of a platform that is the default anyway, or always the same (A7.7).
fn platform_warning(
    ast: &ast::Stage,
    word: &ast::Word,
    expanded: &Expansion<String>,
    platform: &Platform,
    globals: &Scope,
) -> Option<Diagnostic> {
    let is_target = globals.get("TARGETPLATFORM") == Some(expanded.value.as_str());
    if expanded.used == ["TARGETPLATFORM"] && is_target {
        let message = format!(
            "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
            word.value
        );
        return Some(Diagnostic::warning(
            "RedundantTargetPlatform",
            message,
            word.span,
        ));
    }
    let name = ast.name.as_ref().map_or("", |name| name.value.as_str());
    let says_so = name.contains(&platform.os) || name.contains(&platform.architecture);
    if !expanded.used.is_empty() || !expanded.undefined.is_empty() || says_so {
        return None;
    }
    let message = format!(
        "FROM --platform flag should not use constant value {:?}",
        expanded.value
    );
    Some(Diagnostic::warning(
        "FromPlatformFlagConstDisallowed",
        message,
        word.span,
    ))
}

/// Warns of a base name that only works with build arguments (A7.6).
fn warn_about_defaults(file: &Dockerfile, options: &LowerOptions, warnings: &mut Vec<Diagnostic>) {
    let mut errors = Vec::new();
    let defaults = globals::evaluate(file, options, &|_| None, &mut errors);
    // What cannot be expanded with defaults alone, `${X:?}`, is meant to need the argument.
    if !errors.is_empty() {
        return;
    }
    for stage in file.stages.iter().take(MAX_FOUND) {
        let base = &stage.base;
        let Ok(name) = defaults.expand(&base.value, file.directives.escape) else {
            continue;
        };
        if name.value.is_empty() || name.value.ends_with([':', '@', '/']) {
            let message = format!(
                "Default value for ARG {} results in empty or invalid base image name",
                base.value
            );
            warnings.push(Diagnostic::warning(
                "InvalidDefaultArgInFrom",
                message,
                base.span,
            ));
        }
    }
}
