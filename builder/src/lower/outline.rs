//! What a Dockerfile takes and offers, for `--call=outline` and `--call=targets` (C9.1, A1.12). No
//! base image is needed: what one would add is left out.

use std::collections::{BTreeMap, BTreeSet};

use kiln_grammar::ast::{ArgPair, Dockerfile, Instruction, Kind, Run, Stage, Word};
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::mount::{self, Mount, MountError};
use kiln_grammar::source::{Span, comments_above};
use kiln_grammar::word;

use super::options::{BaseImages, LowerOptions};
use super::scope::Scope;
use super::stages::{Base, Stages};
use super::{globals as global_scope, mounts, tidy};

/// Bytes that the variables of all stages together may take.
const LIMIT: usize = 256 << 20;

/// What the target stage, and the stages it needs, take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Name of the target stage.
    pub name: Option<String>,
    /// What its comment says of it.
    pub description: Option<String>,
    /// The build arguments, in the order of the file, each name once.
    pub args: Vec<Argument>,
    /// Secrets by their ids.
    pub secrets: Vec<Need>,
    /// Agents of ssh by their ids.
    pub ssh: Vec<Need>,
    /// Cache mounts by their ids.
    pub caches: Vec<Need>,
}

/// A build argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// What its comment says of it.
    pub description: Option<String>,
    /// What it is worth in this build, where it has a value.
    pub value: Option<String>,
    /// Where it is declared.
    pub span: Span,
}

/// Something that a step mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its id.
    pub id: String,
    /// Whether the build fails without it.
    pub required: bool,
    /// Where it is asked for.
    pub span: Span,
}

/// A stage that can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: Option<String>,
    /// Whether it is built when none is asked for.
    pub default: bool,
    /// What its comment says of it.
    pub description: Option<String>,
    /// What it is built on, as written.
    pub base: String,
    /// Its platform, as written.
    pub platform: Option<String>,
    /// Where it starts.
    pub span: Span,
}

/// Lists the stages of a Dockerfile.
#[must_use]
pub fn targets(text: &str, file: &Dockerfile) -> Vec<Target> {
    let last = file.stages.len().saturating_sub(1);
    let target = |(index, stage): (usize, &Stage)| Target {
        name: stage.name.as_ref().map(|name| name.value.clone()),
        default: index == last,
        description: describe_stage(text, stage),
        base: stage.base.value.clone(),
        platform: stage.platform.as_ref().map(|word| word.value.clone()),
        span: stage.span,
    };
    file.stages.iter().enumerate().map(target).collect()
}

/// Tells what the target stage takes, and the stages it needs.
///
/// # Errors
/// The mistakes that stand in the way: in `FROM`, `--from` and `--mount`.
pub fn outline(
    text: &str,
    file: &Dockerfile,
    options: &LowerOptions,
) -> Result<Outline, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let globals = global_scope(file, options, &mut errors);
    let stages = Stages::resolve(file, options, &globals, &mut Vec::new(), &mut errors);
    let bases = BaseImages::default();
    let reached = stages.reach(vec![stages.target], &bases, &mut errors);
    let mut walk = Walk {
        text,
        escape: file.directives.escape,
        options,
        globals: &globals,
        outline: Outline::default(),
        wanted: BTreeSet::new(),
        scope: Scope::default(),
        errors,
    };
    let mut done: BTreeMap<usize, Scope> = BTreeMap::new();
    let mut size = 0;
    for index in reached.stages {
        let stage = &stages.list[index];
        walk.scope = match stage.base {
            Base::Stage(base) => done.get(&base).cloned().unwrap_or_default(),
            _ => Scope::default(),
        };
        walk.from(stage.ast);
        for trigger in stages.triggers(index, &bases, &mut walk.errors) {
            walk.instruction(&trigger.instruction);
        }
        for instruction in &stage.ast.instructions {
            walk.instruction(instruction);
        }
        size += walk.scope.size();
        if size > LIMIT {
            let message = format!("variables take more than {} MiB", LIMIT >> 20);
            walk.errors.push(Diagnostic::error(message, stage.ast.span));
            break;
        }
        done.insert(index, std::mem::take(&mut walk.scope));
    }
    walk.globals(file);
    if !walk.errors.is_empty() {
        return Err(tidy(walk.errors));
    }
    let target = &file.stages[stages.target];
    walk.outline.name = target.name.as_ref().map(|name| name.value.clone());
    walk.outline.description = describe_stage(text, target);
    Ok(walk.finish())
}

/// A walk through the stages that the target needs.
struct Walk<'a> {
    text: &'a str,
    escape: char,
    options: &'a LowerOptions,
    globals: &'a Scope,
    outline: Outline,
    /// Names of arguments before the first `FROM` that are used.
    wanted: BTreeSet<String>,
    /// What variables are worth in the stage.
    scope: Scope,
    errors: Vec<Diagnostic>,
}

impl Walk<'_> {
    fn from(&mut self, stage: &Stage) {
        self.use_globals(&stage.base);
        if let Some(platform) = &stage.platform {
            self.use_globals(platform);
        }
    }

    /// Notes the arguments that a word of `FROM`, or a default before it, asks for.
    fn use_globals(&mut self, word: &Word) {
        let lookup = |name: &str| self.globals.get(name).map(str::to_owned);
        // What is wrong with the word is said where stages are resolved.
        if let Ok(expanded) = word::expand(&word.value, self.escape, &lookup) {
            self.wanted.extend(expanded.matched);
            self.wanted.extend(expanded.unmatched);
        }
    }

    fn instruction(&mut self, instruction: &Instruction) {
        match &instruction.kind {
            Kind::Arg(pairs) => {
                let mut about = descriptions(self.text, instruction.span);
                for pair in pairs {
                    let about = about.remove(&pair.name.value.to_lowercase());
                    self.arg(pair, about);
                }
            }
            Kind::Env(pairs) => {
                let expand = |word: &Word| self.expand(&word.value);
                let pairs: Vec<_> = pairs
                    .iter()
                    .filter_map(|pair| Some((expand(&pair.key)?, expand(&pair.value)?)))
                    .collect();
                for (name, value) in pairs {
                    self.scope.set(&name, &value);
                }
            }
            Kind::Run(run) => self.run(run),
            _ => {}
        }
    }

    /// What a text becomes; `None` where only a base image could tell.
    fn expand(&self, text: &str) -> Option<String> {
        let expanded = self.scope.expand(text, self.escape).ok()?;
        Some(expanded.value)
    }

    fn arg(&mut self, pair: &ArgPair, about: Option<String>) {
        let name = &pair.name.value;
        let value = match (self.options.build_arg(name), &pair.default) {
            (Some(value), _) => Some(value.to_owned()),
            (None, Some(word)) => self.expand(&word.value),
            (None, None) => {
                self.wanted.insert(name.clone());
                self.globals.get(name).map(str::to_owned)
            }
        };
        self.scope.declare(name, value.as_deref());
        self.add(name, about, value, pair.name.span);
    }

    fn add(&mut self, name: &str, about: Option<String>, value: Option<String>, span: Span) {
        self.outline.args.push(Argument {
            name: name.to_owned(),
            description: about,
            value,
            span,
        });
    }

    fn run(&mut self, run: &Run) {
        for record in &run.mounts {
            let mounted = mount::expand_mount(&record.value, &mut |text| {
                Ok(self.scope.expand(text, self.escape)?.value)
            });
            let need = |id: &str, required| Need {
                id: id.to_owned(),
                required,
                span: record.span,
            };
            match mounted {
                Ok(Mount::Secret(secret)) => {
                    self.outline.secrets.push(need(&secret.id, secret.required));
                }
                Ok(Mount::Ssh(ssh)) => self.outline.ssh.push(need(&ssh.id, ssh.required)),
                Ok(Mount::Cache(cache)) => {
                    let id = mounts::cache_id(&cache);
                    self.outline.caches.push(need(&id, false));
                }
                Ok(Mount::Bind(_) | Mount::Tmpfs(_)) => {}
                // A base image may set what is missing.
                Err(MountError::Expansion { .. }) => {}
                Err(error) => {
                    let error = Diagnostic::error(error.to_string(), record.span);
                    self.errors.push(error);
                }
            }
        }
    }

    /// Adds the arguments before the first `FROM` that are used, also by the defaults of others.
    fn globals(&mut self, file: &Dockerfile) {
        for instruction in file.global_args.iter().rev() {
            let Kind::Arg(pairs) = &instruction.kind else {
                continue;
            };
            let mut about = descriptions(self.text, instruction.span);
            for pair in pairs.iter().rev() {
                let name = &pair.name.value;
                if !self.wanted.contains(name) {
                    continue;
                }
                if let Some(default) = &pair.default {
                    self.use_globals(default);
                }
                let about = about.remove(&name.to_lowercase());
                let value = self.globals.get(name).map(str::to_owned);
                self.add(name, about, value, pair.name.span);
            }
        }
    }

    /// Puts everything in the order of the file, and each name once.
    fn finish(self) -> Outline {
        let mut outline = self.outline;
        let mut args: Vec<Argument> = Vec::new();
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        outline.args.sort_by_key(|arg| arg.span);
        for arg in outline.args {
            match known.get(&arg.name).and_then(|&index| args.get_mut(index)) {
                Some(first) => {
                    first.description = first.description.take().or(arg.description);
                    first.value = first.value.take().or(arg.value);
                }
                None => {
                    known.insert(arg.name.clone(), args.len());
                    args.push(arg);
                }
            }
        }
        outline.args = args;
        for needs in [&mut outline.secrets, &mut outline.ssh, &mut outline.caches] {
            once(needs);
        }
        outline
    }
}

/// Leaves each id once, in the order of the file; it is required where one of its uses says so.
fn once(needs: &mut Vec<Need>) {
    needs.sort_by_key(|need| need.span);
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let mut kept: Vec<Need> = Vec::new();
    for need in needs.drain(..) {
        match known.get(&need.id).and_then(|&index| kept.get_mut(index)) {
            Some(first) => first.required |= need.required,
            None => {
                known.insert(need.id.clone(), kept.len());
                kept.push(need);
            }
        }
    }
    *needs = kept;
}

fn describe_stage(text: &str, stage: &Stage) -> Option<String> {
    let name = stage.name.as_ref()?;
    descriptions(text, stage.span).remove(&name.value.to_lowercase())
}

/// What the comments directly above an instruction say of names: `# name text` (A1.12).
fn descriptions(text: &str, span: Span) -> BTreeMap<String, String> {
    let mut descriptions = BTreeMap::new();
    for comment in comments_above(text, span.start) {
        if let Some((name, rest)) = comment.value.split_once(char::is_whitespace) {
            let name = descriptions.entry(name.to_lowercase());
            name.or_insert_with(|| rest.trim().to_owned());
        }
    }
    descriptions
}
