//! A Dockerfile looked at without building it.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_grammar::ast::Dockerfile;
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::lint;
use kiln_registry::reference::Reference;

use super::files::{open_folder, read_dockerfile, read_ignore_file};
use super::resolve::stored;
use super::{BuildError, DockerfileFrom, Source, lint_settings};
use crate::lower::{self, BaseImages, LowerOptions};
use crate::store::{Store, StoreError};

/// What is to be looked at.
#[derive(Clone, Debug)]
pub struct CheckRequest {
    /// Folder of the build context.
    pub context: PathBuf,
    /// Where the Dockerfile is.
    pub dockerfile: DockerfileFrom,
    /// What lowering is told.
    pub options: LowerOptions,
    /// Whether kiln's own rules are looked at besides docker's.
    pub practices: bool,
    /// What the command line turns off and on, besides what the Dockerfile says.
    pub settings: lint::Settings,
}

/// What was found.
#[derive(Debug)]
pub struct Checked {
    /// The Dockerfile that was read, and its path where it has one.
    pub source: Source,
    /// Where it lies; `None` for text that was given.
    pub path: Option<PathBuf>,
    /// The Dockerfile, if it could be parsed.
    pub file: Option<Dockerfile>,
    /// What keeps it from being built, in the order of the file.
    pub errors: Vec<Diagnostic>,
    /// What is legal and yet worth a word, in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// The error that the warnings are, where the Dockerfile or the command line wants it so.
    pub violation: Option<Diagnostic>,
}

/// Looks at a Dockerfile. Nothing is built and no registry is asked: base images that are in the
/// store, where there is one, are looked at, all others may hold anything.
///
/// # Errors
/// The context, the Dockerfile or the ignore file cannot be read, or the store. Mistakes in the
/// Dockerfile are in the result.
pub fn check(request: &CheckRequest, store: Option<&Store>) -> Result<Checked, BuildError> {
    open_folder(&request.context)?;
    let (path, source) = read_dockerfile(&request.dockerfile, &request.context)?;
    let mut options = request.options.clone();
    options.ignore = read_ignore_file(path.as_deref(), &request.context)?.map(Arc::new);
    let mut checked = Checked {
        source,
        path,
        file: None,
        errors: Vec::new(),
        warnings: Vec::new(),
        violation: None,
    };
    match kiln_grammar::parse(&checked.source.text) {
        Ok(file) => {
            let bases = store
                .map(|store| known(&file, &options, store))
                .transpose()?;
            checked.look(request, &options, &bases.unwrap_or_default(), file);
        }
        Err(errors) => checked.errors = errors,
    }
    Ok(checked)
}

/// The images of a Dockerfile that are in the store, with those that their triggers name.
fn known(
    file: &Dockerfile,
    options: &LowerOptions,
    store: &Store,
) -> Result<BaseImages, StoreError> {
    let mut bases = BaseImages::default();
    loop {
        let mut news = false;
        for want in lower::wanted_to_check(file, options, &bases, true) {
            // A name that is none is said to be wrong when it is lowered.
            let Ok(reference) = Reference::parse(&want.reference) else {
                continue;
            };
            if let Some(base) = stored(store, &reference, &want.platform)? {
                bases.insert(want.reference, want.platform, base);
                news = true;
            }
        }
        if !news {
            return Ok(bases);
        }
    }
}

impl Checked {
    fn look(
        &mut self,
        request: &CheckRequest,
        options: &LowerOptions,
        bases: &BaseImages,
        file: Dockerfile,
    ) {
        let found = lower::check(&file, options, bases, true);
        self.errors = found.errors;
        let text = &self.source.text;
        match lint_settings(&file, options) {
            Ok(mut settings) => {
                settings.skip.extend(request.settings.skip.clone());
                settings.enable.extend(request.settings.enable.clone());
                settings.error |= request.settings.error;
                let mut warnings = lint::lint(text, &file);
                warnings.extend(found.warnings);
                if request.practices {
                    warnings.extend(lint::practices(text, &file));
                }
                self.warnings = settings.filter(text, &file, warnings);
                self.violation = settings.violation(&file, &self.warnings);
            }
            Err(error) => self.errors.push(error),
        }
        self.file = Some(file);
    }
}
