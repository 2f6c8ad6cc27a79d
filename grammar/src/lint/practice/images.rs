//! Rules about images that a Dockerfile builds on, and about the user of the one it makes.

use super::stages::{Step, View};
use crate::ast::Kind;
use crate::diagnostic::Diagnostic;
use crate::source::{Span, Spanned};

/// `UnpinnedImage` of a `FROM`.
pub(super) fn base(view: &View<'_>, found: &mut Vec<Diagnostic>) {
    let base = &view.stage.base;
    if view.parent.is_none() && !base.value.eq_ignore_ascii_case("scratch") {
        found.extend(unpinned(base, true));
    }
}

/// `UnpinnedImage` of a `COPY --from`. A single name without a tag may be a named context.
pub(super) fn copied_from(step: &Step<'_>, found: &mut Vec<Diagnostic>) {
    if let (Kind::Copy(copy), true) = (&step.instruction.kind, step.from_image)
        && let Some(from) = &copy.from
    {
        found.extend(unpinned(from, from.value.contains('/')));
    }
}

/// Looks at the tag of an image's name; `bare` says whether one without a tag is an image at all.
fn unpinned(image: &Spanned<String>, bare: bool) -> Option<Diagnostic> {
    let name = last_part(&image.value);
    if name.contains(['$', '@', '{', '"', '\'']) {
        return None;
    }
    let message = match name.split_once(':') {
        None if bare => format!(
            "image {:?} has no tag, so it is whatever \"latest\" is on the day of the build",
            image.value
        ),
        Some((_, "latest")) => {
            format!("image {:?} is another one after every release", image.value)
        }
        _ => return None,
    };
    let warning = Diagnostic::warning("UnpinnedImage", message, image.span);
    Some(warning.with_hint("name a version as tag, for example alpine:3.22, or a digest"))
}

/// What stands behind the last slash that is not in a `${...}`.
fn last_part(name: &str) -> &str {
    let mut depth = 0_usize;
    let mut start = 0;
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b'/' if depth == 0 => start = at + 1,
            _ => {}
        }
    }
    name.get(start..).unwrap_or(name)
}

/// `LastUserRoot` and `UserNotSet`
pub(super) fn users(stages: &[View<'_>], found: &mut Vec<Diagnostic>) {
    let mut at = stages.last();
    while let Some(view) = at {
        let mut users = view.steps.iter().rev().filter(|step| !step.onbuild);
        let user = users.find_map(|step| match &step.instruction.kind {
            Kind::User(user) => Some(user),
            _ => None,
        });
        if let Some(user) = user {
            let name = user.value.split(':').next().unwrap_or_default();
            if matches!(name.trim_matches(['"', '\'']), "root" | "0") {
                let message = format!("the image runs as root: its last USER is {:?}", user.value);
                let warning = Diagnostic::warning("LastUserRoot", message, user.span);
                found.push(warning.with_hint("end with the USER that the program needs"));
            }
            return;
        }
        match view.parent {
            Some(parent) => at = stages.get(parent),
            None => return no_user(view, stages, found),
        }
    }
}

/// `UserNotSet`, unless the name of the base says that it has a user.
fn no_user(bottom: &View<'_>, stages: &[View<'_>], found: &mut Vec<Diagnostic>) {
    let base = bottom.stage.base.value.to_lowercase();
    let names = ["nonroot", "unprivileged", "rootless"];
    let Some(last) = stages
        .last()
        .filter(|_| !names.iter().any(|name| base.contains(name)))
    else {
        return;
    };
    let message = format!(
        "the image has no USER, so its program runs as the user of {:?}, which is most often root",
        bottom.stage.base.value
    );
    let span: Span = last.stage.base.span;
    let warning = Diagnostic::warning("UserNotSet", message, span);
    found.push(warning.with_hint("add a user and end with USER, for example USER 65532"));
}
