//! kiln's own rules: what the field's linters and courses teach, as far as the text shows it.
//!
//! 1. `shell` cuts shell text into commands, `call` finds the program behind `sudo`, `env` and the
//!    like, and `script` reads what a `RUN` runs, each word with its place in the file: in shell
//!    and exec form, in heredocs, in `sh -c "..."`.
//! 2. `stages` puts stages, instructions and their commands together.
//! 3. The rules: `apt`, `packages`, `images`, `files`, `downloads`, `habits`.
//!
//! A rule is on by default only where it is nearly always right; what depends on taste is off. An
//! edit changes nothing but what its rule is about.

mod apt;
mod call;
mod downloads;
mod files;
mod habits;
mod images;
mod packages;
mod script;
mod shell;
mod stages;

use crate::ast::Dockerfile;
use crate::diagnostic::Diagnostic;

/// How much is said of one file: enough for any that a person wrote.
const MAX_FOUND: usize = 1000;

/// Finds what kiln's own rules advise against, in the order of the file.
#[must_use]
pub fn practices(text: &str, file: &Dockerfile) -> Vec<Diagnostic> {
    let stages = stages::read(text, file);
    let mut found = Vec::new();
    for view in &stages {
        images::base(view, &mut found);
        files::copy_before_install(view, &mut found);
        for step in &view.steps {
            if found.len() >= MAX_FOUND {
                break;
            }
            images::copied_from(step, &mut found);
            apt::check(view, step, &mut found);
            packages::check(view, step, &mut found);
            files::check(text, step, &mut found);
            downloads::check(step, &mut found);
            habits::check(step, &mut found);
        }
    }
    images::users(&stages, &mut found);
    found.sort_by_key(|warning| warning.span.start);
    found.truncate(MAX_FOUND);
    found
}
