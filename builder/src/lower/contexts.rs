//! Named contexts, `--build-context NAME=VALUE` (C7): what they are, and which one a name means.

use std::path::PathBuf;

use kiln_grammar::ast::{Dockerfile, Instruction, Kind};
use kiln_grammar::diagnostic::{Diagnostic, suggest};
use kiln_grammar::source::Span;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Platform;

use super::git;
use super::stages::{self, Stages};
use crate::graph::GitOp;

/// A context besides the build context, which takes the place of a stage or an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedContext {
    /// Its name in the shortest form, with `::PLATFORM` where it is for one platform only.
    pub name: String,
    /// Its value as written, without passwords.
    pub value: String,
    /// What it is.
    pub source: ContextSource,
    reference: Reference,
    platform: Option<Platform>,
}

/// What a named context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextSource {
    /// A folder of this machine.
    Folder(PathBuf),
    /// An image: its reference, or [`LAYOUT`] with the path of a layout and perhaps
    /// `:TAG` or `@DIGEST`.
    Image(String),
    /// An empty tree.
    Scratch,
    /// A git repository.
    Git(GitOp),
}

/// How the name of an image begins that lies in an OCI image layout.
pub const LAYOUT: &str = "oci-layout://";

/// A named context that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum NamedContextError {
    /// It has no name or no value.
    #[error("invalid context value: {0}, expected key=value")]
    Form(String),
    /// The name is none, or means something else.
    #[error("invalid context name `{name}`: {reason}")]
    Name {
        /// The name as written.
        name: String,
        /// Why it cannot be one.
        reason: String,
    },
    /// The value is none that can be used.
    #[error("named context \"{name}\": {reason}")]
    Value {
        /// The name as written.
        name: String,
        /// Why it cannot be used.
        reason: String,
    },
}

impl NamedContext {
    /// Reads `NAME=VALUE`. Whether the value's folder or image is there is not looked at.
    ///
    /// # Errors
    /// [`NamedContextError`].
    pub fn parse(text: &str) -> Result<Self, NamedContextError> {
        let (written, value) = text
            .split_once('=')
            .filter(|(name, value)| !name.is_empty() && !value.is_empty())
            .ok_or_else(|| NamedContextError::Form(git::without_login(text)))?;
        let wrong = |reason: String| NamedContextError::Name {
            name: written.to_owned(),
            reason,
        };
        let (name, platform) = match written.split_once("::") {
            Some((name, platform)) => {
                let platform =
                    Platform::parse(platform).map_err(|error| wrong(error.to_string()))?;
                (name, Some(platform.normalized()))
            }
            None => (written, None),
        };
        if matches!(name, "scratch" | "context") {
            return Err(wrong("it is reserved".to_owned()));
        }
        let reference = Reference::parse(name).map_err(|error| wrong(error.to_string()))?;
        let reference = reference.with_default_tag();
        let short = reference.familiar();
        let short = short.strip_suffix(":latest").unwrap_or(&short);
        Ok(Self {
            name: match &platform {
                Some(platform) => format!("{short}::{platform}"),
                None => short.to_owned(),
            },
            value: git::without_login(value),
            source: source(value).map_err(|reason| NamedContextError::Value {
                name: written.to_owned(),
                reason,
            })?,
            reference,
            platform,
        })
    }

    /// How messages name it: `named context "x" (../x)`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("named context \"{}\" ({})", self.name, self.value)
    }
}

fn source(value: &str) -> Result<ContextSource, String> {
    if let Some(image) = value.strip_prefix("docker-image://") {
        if image == "scratch" {
            return Ok(ContextSource::Scratch);
        }
        let reference = Reference::parse(image).map_err(|error| error.to_string())?;
        return Ok(ContextSource::Image(reference.to_string()));
    }
    if let Some(path) = value.strip_prefix(LAYOUT) {
        return if path.is_empty() {
            Err("`oci-layout://` needs the path of a layout".to_owned())
        } else {
            Ok(ContextSource::Image(value.to_owned()))
        };
    }
    if git::is_git(value) {
        return git::parse(value).map(ContextSource::Git);
    }
    if value.starts_with("http://") || value.starts_with("https://") {
        return Err(
            "an archive from a URL is not supported: unpack it into a folder and name that"
                .to_owned(),
        );
    }
    for scheme in ["target:", "input:", "inputs:"] {
        if value.starts_with(scheme) {
            return Err(format!("`{scheme}` is known in bake files only"));
        }
    }
    if let Some((scheme, _)) = value.split_once("://") {
        return Err(format!(
            "`{scheme}://` is not supported: name a folder, a git repository, `docker-image://` \
             or `oci-layout://`"
        ));
    }
    Ok(ContextSource::Folder(value.into()))
}

/// The context that a name means on a platform: one that is for this platform only goes before
/// one that is for all, a later one before an earlier one (C7.2, C7.3).
pub(super) fn find(contexts: &[NamedContext], name: &str, platform: &Platform) -> Option<usize> {
    if contexts.is_empty() {
        return None;
    }
    let wanted = normalized(name)?;
    let named = |context: &NamedContext| context.reference == wanted;
    let own = |context: &NamedContext| {
        let platform = platform.clone().normalized();
        context.platform.as_ref().is_some_and(|own| {
            own.os == platform.os
                && own.architecture == platform.architecture
                && own.variant == platform.variant
        })
    };
    let last = |fits: &dyn Fn(&NamedContext) -> bool| {
        contexts
            .iter()
            .rposition(|context| named(context) && fits(context))
    };
    last(&own).or_else(|| last(&|context| context.platform.is_none()))
}

/// Warns of contexts that nothing in the file names; `triggers` are instructions of base images.
pub(super) fn unused(
    file: &Dockerfile,
    contexts: &[NamedContext],
    stages: &Stages<'_>,
    triggers: &[Instruction],
) -> Vec<Diagnostic> {
    if contexts.is_empty() {
        return Vec::new();
    }
    let instructions = file.stages.iter().flat_map(|stage| &stage.instructions);
    let sources = instructions.chain(triggers).flat_map(sources);
    let mut names: Vec<String> = sources.map(|source| source.name.value).collect();
    for stage in &stages.list {
        names.push(stage.word.clone());
        names.extend(stage.ast.name.as_ref().map(|name| name.value.clone()));
    }
    let syntax = file.directives.syntax.as_ref();
    names.extend(syntax.map(|syntax| syntax.value.clone()));
    let used: Vec<Reference> = names.iter().filter_map(|name| normalized(name)).collect();
    contexts
        .iter()
        .filter(|context| !used.contains(&context.reference))
        .map(|context| {
            let message = format!(
                "named context `{}` is not used by any FROM, COPY --from or RUN --mount",
                context.name
            );
            let warning = Diagnostic::warning("UnusedBuildContext", message, Span::default());
            match suggest(&context.name, names.iter().map(String::as_str)) {
                Some(near) => warning.with_hint(format!("did you mean `{near}`?")),
                None => warning,
            }
        })
        .collect()
}

/// What an instruction reads, also when it waits for a child image.
fn sources(instruction: &Instruction) -> Vec<stages::Source> {
    match &instruction.kind {
        Kind::Onbuild(onbuild) => stages::sources(&onbuild.instruction),
        _ => stages::sources(instruction),
    }
}

/// A name as names are compared: `alpine`, `alpine:latest` and `docker.io/library/alpine` are one.
fn normalized(name: &str) -> Option<Reference> {
    let reference = Reference::parse(name).or_else(|_| Reference::parse(&name.to_lowercase()));
    Some(reference.ok()?.with_default_tag())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NamedContext, String> {
        NamedContext::parse(text).map_err(|error| error.to_string())
    }

    /// C7.1
    #[test]
    fn values_say_what_they_are() {
        let source = |value: &str| parse(&format!("x={value}")).map(|context| context.source);
        assert_eq!(source("../a=b"), Ok(ContextSource::Folder("../a=b".into())));
        assert_eq!(
            source("docker-image://alpine:3"),
            Ok(ContextSource::Image(
                "docker.io/library/alpine:3".to_owned()
            ))
        );
        assert_eq!(source("docker-image://scratch"), Ok(ContextSource::Scratch));
        assert_eq!(
            source("oci-layout:///a:1"),
            Ok(ContextSource::Image("oci-layout:///a:1".to_owned()))
        );
        assert!(matches!(
            source("https://h/x.git#v1"),
            Ok(ContextSource::Git(op)) if op.reference.as_deref() == Some("v1")
        ));
        for (value, reason) in [
            ("https://h/x.tar", "unpack it"),
            ("target:x", "bake files"),
            ("input:x", "bake files"),
            ("ftp://h/x", "`ftp://` is not supported"),
            ("oci-layout://", "needs the path"),
            ("docker-image://A", "named context \"x\": "),
            ("https://h/x.git#-a", "no valid git reference"),
        ] {
            let error = source(value).unwrap_err();
            assert!(error.contains(reason), "{value}: {error}");
        }
    }

    /// C7.2
    #[test]
    fn names_are_references() {
        for (text, name) in [
            ("alpine=.", "alpine"),
            ("alpine:latest=.", "alpine"),
            ("docker.io/library/alpine=.", "alpine"),
            ("r.example/a/b:1=.", "r.example/a/b:1"),
            ("a::linux/arm64=.", "a::linux/arm64"),
        ] {
            assert_eq!(parse(text).unwrap().name, name);
        }
        for (text, reason) in [
            ("scratch=.", "reserved"),
            ("context=.", "reserved"),
            ("Upper=.", "invalid context name `Upper`"),
            ("a::b/c/d/e=.", "invalid context name"),
            ("a=", "expected key=value"),
            ("=a", "expected key=value"),
            ("a", "expected key=value"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    /// C7.2, C7.3
    #[test]
    fn a_context_for_one_platform_goes_first() {
        let contexts: Vec<NamedContext> = ["a=1", "a::linux/arm64=2", "a=3", "b::linux/arm64=4"]
            .iter()
            .map(|text| NamedContext::parse(text).unwrap())
            .collect();
        let on = |name: &str, arch: &str| find(&contexts, name, &Platform::linux(arch, None));
        assert_eq!(on("a", "amd64"), Some(2));
        assert_eq!(on("docker.io/library/A:latest", "amd64"), Some(2));
        assert_eq!(on("a", "arm64"), Some(1));
        assert_eq!(on("a:1", "amd64"), None);
        assert_eq!(on("b", "amd64"), None);
        assert_eq!(on("not a name", "amd64"), None);
    }

    #[test]
    fn passwords_are_not_kept() {
        let context = parse("x=https://u:hunter2@h/x.git").unwrap();
        assert!(!format!("{context:?}").contains("hunter2"));
    }
}
