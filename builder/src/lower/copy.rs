//! `COPY` and `ADD` (A10 to A12).

use kiln_grammar::ast::{Add, Copy, Files, Heredoc, Source, Word};
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::source::Span;
use kiln_registry::digest::Digest;

use super::stage::{StageLowering, Step};
use super::stages::{self, Base, Use};
use super::{chmod, git, path};
use crate::graph::{CopyOp, CopySource, FetchOp, GitOp, Op, Vertex, VertexId};

/// What `COPY` and `ADD` do not share.
struct Manner {
    /// The instruction, for messages and history.
    keyword: &'static str,
    parents: bool,
    unpack: bool,
    unpack_fetched: bool,
    keep_owner: bool,
    keep_git_dir: bool,
    /// `--checksum`, expanded, with its place.
    checksum: Option<(String, Span)>,
}

/// The sources of a copy while they are gathered.
struct Gathered {
    /// Input 0 is the file system that is written to.
    inputs: Vec<VertexId>,
    sources: Vec<CopySource>,
    /// As history shows them.
    texts: Vec<String>,
}

/// What kind of place a source names.
#[derive(Debug, PartialEq, Eq)]
enum Location {
    Path,
    Url,
    Git,
}

impl StageLowering<'_, '_> {
    /// `COPY` (A10, A11).
    pub(super) fn copy(&mut self, copy: &Copy, step: &Step<'_>) -> Result<(), Diagnostic> {
        let source = copy.from.clone().map(|name| stages::Source {
            name,
            by: Use::Copy,
        });
        let mut keep_owner = false;
        let from = match source {
            None => None,
            Some(source) => {
                let base = self.shared.stages.lookup(&source, self.index)?;
                // Files of a named context are context files (C7.4).
                keep_owner = !matches!(base, Base::Context(_));
                let origin = self.origin(step);
                Some(self.shared.input(&base, source.name.span, origin)?)
            }
        };
        let manner = Manner {
            keyword: "COPY",
            parents: copy.parents,
            unpack: false,
            unpack_fetched: false,
            keep_owner,
            keep_git_dir: false,
            checksum: None,
        };
        self.files(&copy.files, &manner, from, step)
    }

    /// `ADD`: also unpacks archives and fetches URLs (A12).
    pub(super) fn add(&mut self, add: &Add, step: &Step<'_>) -> Result<(), Diagnostic> {
        let checksum = self.expand_option(add.checksum.as_ref())?;
        let span = add
            .checksum
            .as_ref()
            .map_or(step.instruction.span, |word| word.span);
        let manner = Manner {
            keyword: "ADD",
            parents: false,
            unpack: add.unpack.unwrap_or(true),
            unpack_fetched: add.unpack.unwrap_or(false),
            keep_owner: false,
            keep_git_dir: add.keep_git_dir,
            checksum: checksum.map(|text| (text, span)),
        };
        self.files(&add.files, &manner, None, step)
    }

    fn files(
        &mut self,
        files: &Files,
        manner: &Manner,
        from: Option<VertexId>,
        step: &Step<'_>,
    ) -> Result<(), Diagnostic> {
        let chown = self.expand_option(files.chown.as_ref())?;
        let chmod = self.expand_option(files.chmod.as_ref())?;
        check_chmod(chmod.as_deref(), files.chmod.as_ref())?;
        let written = self.expand(&files.destination)?;
        let destination = path::destination(self.directory(), &written);
        if files.sources.len() > 1 && !manner.parents && !destination.ends_with('/') {
            let message = format!(
                "when using {} with more than one source, the destination must be a directory \
                 and end with a /",
                manner.keyword
            );
            return Err(Diagnostic::error(message, files.destination.span));
        }
        if manner.checksum.is_some() && files.sources.len() != 1 {
            let message = "checksum can't be specified for multiple sources";
            return Err(Diagnostic::error(message, files.destination.span));
        }
        let mut gathered = Gathered {
            inputs: vec![self.state.vertex],
            sources: Vec::new(),
            texts: Vec::new(),
        };
        let name = self.name(step, "");
        for source in &files.sources {
            match source {
                Source::Heredoc(heredoc) => {
                    check_source(manner)?;
                    self.inline(heredoc, &mut gathered)?;
                }
                Source::Path(word) => {
                    self.source(word, manner, from, step, &mut gathered)?;
                }
            }
        }
        let created_by = created_by(
            manner,
            chown.as_deref(),
            chmod.as_deref(),
            &gathered,
            &written,
        );
        let op = Op::Copy(CopyOp {
            sources: gathered.sources,
            destination,
            // A mode makes the link flag without effect (A11.9).
            link: files.link && chmod.is_none(),
            chown,
            chmod,
            exclude: files
                .exclude
                .iter()
                .map(|text| text.value.clone())
                .collect(),
            parents: manner.parents,
            unpack: manner.unpack,
            unpack_fetched: manner.unpack_fetched,
            keep_owner: manner.keep_owner,
            literal: false,
        });
        let origin = Some(self.origin(step));
        let layer = self.push(Vertex {
            op,
            inputs: gathered.inputs,
            name,
            origin,
        });
        self.record(created_by, Some(layer));
        Ok(())
    }

    /// One source that is not a heredoc.
    fn source(
        &mut self,
        word: &Word,
        manner: &Manner,
        from: Option<VertexId>,
        step: &Step<'_>,
        gathered: &mut Gathered,
    ) -> Result<(), Diagnostic> {
        let text = self.expand(word)?;
        let error = |message: String| Diagnostic::error(message, word.span);
        if text.is_empty() {
            let message = format!("{} source can not be an empty string", manner.keyword);
            return Err(error(message));
        }
        let location = locate(&text);
        if location != Location::Path && manner.keyword == "COPY" {
            return Err(error(match location {
                Location::Git => "source can't be a git ref for COPY".to_owned(),
                _ => "source can't be a URL for COPY".to_owned(),
            })
            .with_hint("use ADD"));
        }
        let (vertex, path) = match location {
            Location::Git => {
                let op = Op::Git(git_op(&text, manner, word.span)?);
                (self.fetched(op, &text, step), ".".to_owned())
            }
            Location::Url => {
                let fetch = fetch_op(&text, manner)?;
                let file = fetch.name.clone();
                (self.fetched(Op::Fetch(fetch), &text, step), file)
            }
            Location::Path => {
                check_source(manner)?;
                if from.is_none() {
                    self.advise_ignored(manner.keyword, &text, word);
                }
                let vertex = from.unwrap_or_else(|| self.shared.context());
                (vertex, text.clone())
            }
        };
        let input = input_index(&mut gathered.inputs, vertex);
        gathered.sources.push(CopySource::Path { input, path });
        gathered.texts.push(match location {
            Location::Path => text,
            Location::Url | Location::Git => git::without_login(&text),
        });
        Ok(())
    }

    /// What comes from an address; progress names it as it is after expansion.
    fn fetched(&mut self, op: Op, address: &str, step: &Step<'_>) -> VertexId {
        let vertex = Vertex {
            op,
            inputs: Vec::new(),
            name: self.fetch_name(step, address),
            origin: Some(self.origin(step)),
        };
        self.shared.graph.add(vertex)
    }

    /// A file given in the Dockerfile (A13.8).
    fn inline(&mut self, heredoc: &Heredoc, gathered: &mut Gathered) -> Result<(), Diagnostic> {
        check_name(heredoc)?;
        let content = if heredoc.expand {
            let expanded = self
                .state
                .scope
                .expand_heredoc(&heredoc.content, self.shared.escape);
            let (expanded, place) = match expanded {
                Ok(expanded) => (Ok(expanded), heredoc.span),
                Err(error) => (Err(error.source), heredoc.place(error.at)),
            };
            let text = self.expanded(expanded, place)?;
            self.shared.charge(text.len(), heredoc.span)?;
            text
        } else {
            heredoc.content.clone()
        };
        gathered.texts.push(format!("<<{}", heredoc.name));
        gathered.sources.push(CopySource::Inline {
            name: heredoc.name.clone(),
            content,
        });
        Ok(())
    }
}

/// Finds an input that is read besides input 0, or adds it.
pub(super) fn input_index(inputs: &mut Vec<VertexId>, vertex: VertexId) -> usize {
    let known = inputs.iter().skip(1).position(|&input| input == vertex);
    known.map_or_else(
        || {
            inputs.push(vertex);
            inputs.len() - 1
        },
        |index| index + 1,
    )
}

/// Refuses a heredoc whose name is no name of a file.
pub(super) fn check_name(heredoc: &Heredoc) -> Result<(), Diagnostic> {
    let name = heredoc.name.as_str();
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) || name.len() > 255 {
        let message = format!("heredoc name `{name}` cannot be the name of a file");
        return Err(Diagnostic::error(message, heredoc.span));
    }
    Ok(())
}

/// Refuses a checksum of what is not downloaded (A12.3).
fn check_source(manner: &Manner) -> Result<(), Diagnostic> {
    match manner.checksum {
        Some((_, span)) => {
            let message = "checksum requires HTTP(S) or Git sources";
            Err(Diagnostic::error(message, span))
        }
        None => Ok(()),
    }
}

fn check_chmod(mode: Option<&str>, word: Option<&Word>) -> Result<(), Diagnostic> {
    match (mode, word) {
        (Some(mode), Some(word)) if !chmod::is_valid(mode) => {
            let message = format!(
                "invalid chmod parameter: '{mode}'. it should be octal string and between 0 and \
                 07777"
            );
            Err(Diagnostic::error(message, word.span)
                .with_hint("symbolic modes are possible too: `u=rwX,go=rX`"))
        }
        _ => Ok(()),
    }
}

fn created_by(
    manner: &Manner,
    chown: Option<&str>,
    chmod: Option<&str>,
    gathered: &Gathered,
    destination: &str,
) -> String {
    let mut text = manner.keyword.to_owned();
    if manner.parents {
        text.push_str(" --parents");
    }
    for (flag, value) in [("chown", chown), ("chmod", chmod)] {
        if let Some(value) = value {
            text.push_str(&format!(" --{flag}={value}"));
        }
    }
    for source in &gathered.texts {
        text.push_str(&format!(" {source}"));
    }
    format!("{text} {destination} # buildkit")
}

/// Tells URLs and git repositories from paths (A12.3, A12.4).
fn locate(text: &str) -> Location {
    if git::is_git(text) {
        Location::Git
    } else if text.starts_with("http://") || text.starts_with("https://") {
        Location::Url
    } else {
        Location::Path
    }
}

/// The repository of an `ADD`, with what its flags say besides the address (A12.4).
fn git_op(text: &str, manner: &Manner, span: Span) -> Result<GitOp, Diagnostic> {
    let address = git::without_login(text);
    let mut op = git::parse(text).map_err(|reason| {
        Diagnostic::error(format!("invalid git address `{address}`: {reason}"), span)
    })?;
    op.keep_git_dir |= manner.keep_git_dir;
    if let Some((text, span)) = &manner.checksum {
        let invalid = |reason| Diagnostic::error(format!("invalid checksum: {reason}"), *span);
        let commit = git::commit(text).map_err(invalid)?;
        match &op.commit {
            Some(other) if !(commit.starts_with(other) || other.starts_with(&commit)) => {
                let message = format!("checksum {commit} differs from {other} in `{address}`");
                return Err(Diagnostic::error(message, *span));
            }
            Some(other) if other.len() > commit.len() => {}
            _ => op.commit = Some(commit),
        }
    }
    Ok(op)
}

fn fetch_op(url: &str, manner: &Manner) -> Result<FetchOp, Diagnostic> {
    let checksum = match &manner.checksum {
        None => None,
        Some((text, span)) => Some(text.parse::<Digest>().map_err(|error| {
            Diagnostic::error(format!("invalid checksum `{text}`: {error}"), *span)
        })?),
    };
    Ok(FetchOp {
        url: url.to_owned(),
        name: file_name(url),
        checksum,
    })
}

/// The last element of a URL's path, decoded, or a name for a file that has none (A12.3).
fn file_name(url: &str) -> String {
    let path = url.split(['#', '?']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let path = path.split_once('/').map_or("", |(_, path)| path);
    let last = path
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let name = git::percent_decode(last);
    if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) || name.len() > 255 {
        return "__unnamed__".to_owned();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A12.3, A12.4
    #[test]
    fn locations_are_told_apart() {
        for (text, location) in [
            ("a/b", Location::Path),
            ("http.txt", Location::Path),
            ("https://example.com/a.tar.gz", Location::Url),
            ("https://example.com/a.git", Location::Git),
            ("https://example.com/a.git#v1:dir", Location::Git),
            ("https://example.com/a?x=b.git", Location::Url),
            ("git@example.com:a/b", Location::Git),
            ("git://example.com/a", Location::Git),
            ("ssh://git@example.com/a", Location::Git),
        ] {
            assert_eq!(locate(text), location, "{text}");
        }
    }

    /// A12.3
    #[test]
    fn urls_name_their_file() {
        for (url, name) in [
            ("https://example.com/a/b.txt", "b.txt"),
            ("https://example.com/a/b.txt?x=/y#z/w", "b.txt"),
            ("https://example.com/a/", "a"),
            ("https://example.com/", "__unnamed__"),
            ("https://example.com", "__unnamed__"),
            ("https://example.com/..", "__unnamed__"),
            ("https://example.com/a%20b", "a b"),
            ("https://example.com/a%2F..%2Fb", "__unnamed__"),
            ("https://example.com/100%", "100%"),
            ("https://example.com/%ff", "%ff"),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
    }
}
