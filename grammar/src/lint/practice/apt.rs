//! Rules about apt-get.

use super::call::{Call, Word, operands};
use super::stages::{Step, View};
use crate::diagnostic::Diagnostic;

/// Options of apt-get that take a value.
const VALUED: [&str; 8] = [
    "-o",
    "--option",
    "-c",
    "--config-file",
    "-t",
    "--target-release",
    "-a",
    "--host-architecture",
];

/// What apt has of apt-get, under the same name.
const SHARED: [&str; 14] = [
    "install",
    "reinstall",
    "update",
    "upgrade",
    "dist-upgrade",
    "remove",
    "purge",
    "autoremove",
    "autopurge",
    "clean",
    "autoclean",
    "build-dep",
    "satisfy",
    "source",
];

/// Subcommands that ask before they act.
const ASKING: [&str; 9] = [
    "install",
    "reinstall",
    "upgrade",
    "dist-upgrade",
    "full-upgrade",
    "remove",
    "purge",
    "autoremove",
    "build-dep",
];

/// What can stand behind `apt-get update` without using the lists.
const HARMLESS: [&str; 9] = [
    "echo", "true", ":", "rm", "sleep", "break", "fi", "done", "}",
];

/// A command of apt-get or apt.
struct Apt<'c> {
    call: &'c Call,
    subcommand: &'c Word,
    rest: &'c [Word],
}

impl<'c> Apt<'c> {
    fn of(call: &'c Call) -> Option<Self> {
        if !matches!(call.name(), "apt-get" | "apt") {
            return None;
        }
        let (subcommand, rest) = call.subcommand(&VALUED)?;
        Some(Self {
            call,
            subcommand,
            rest,
        })
    }

    fn is(&self, subcommands: &[&str]) -> bool {
        subcommands.contains(&self.subcommand.value.as_str())
    }

    fn warning(&self, rule: &'static str, message: String) -> Diagnostic {
        Diagnostic::warning(rule, message, self.subcommand.span)
    }
}

/// Finds what is wrong with the apt-get commands of an instruction.
pub(super) fn check(view: &View<'_>, step: &Step<'_>, found: &mut Vec<Diagnostic>) {
    let mut answered = false;
    for script in &step.scripts {
        for call in &script.calls {
            if let Some(apt) = Apt::of(call) {
                program(&apt, found);
                if !answered && !view.settled.assume_yes {
                    assume_yes(&apt, found);
                }
                if !view.settled.no_recommends {
                    no_recommends(&apt, found);
                }
            }
            // `yes | apt-get install`
            answered = call.end == super::shell::End::Pipe;
        }
    }
    if view.ships && !step.onbuild {
        kept_lists(step, found);
    }
    update_alone(step, found);
}

/// `AptGetInsteadOfApt`
fn program(apt: &Apt<'_>, found: &mut Vec<Diagnostic>) {
    let program = apt.call.program();
    if apt.call.name() != "apt" {
        return;
    }
    let message = format!(
        "`apt {}` is made for a terminal: its options and output may change with any release",
        apt.subcommand.value
    );
    let warning = Diagnostic::warning("AptGetInsteadOfApt", message, program.span);
    found.push(if apt.is(&SHARED) && program.value == "apt" {
        program.replaced_by("apt-get", warning.with_hint("write apt-get"))
    } else {
        warning.with_hint("write apt-get, apt-cache or dpkg-query, whichever does it")
    });
}

/// `AptGetAssumeYes`
fn assume_yes(apt: &Apt<'_>, found: &mut Vec<Diagnostic>) {
    let quiet = |word: &Word| {
        let letters = word.value.strip_prefix('-').unwrap_or_default();
        let letters = if letters.starts_with('-') {
            ""
        } else {
            letters
        };
        letters.matches('q').count()
    };
    let args = apt.call.args();
    let given = apt.call.letter('y').is_some()
        || args.iter().map(quiet).sum::<usize>() > 1
        || apt.call.letter('s').is_some()
        || apt.call.has(&[
            "--yes",
            "--assume-yes",
            "--assume-no",
            "--force-yes",
            "--simulate",
            "--dry-run",
            "--just-print",
            "--recon",
            "--print-uris",
        ])
        || args.iter().any(|word| word.value == "-q=2")
        || may_hold_options(apt);
    if given || !apt.is(&ASKING) {
        return;
    }
    let message = format!(
        "`{}` asks before it goes on, and nobody can answer during a build",
        apt.call.title(apt.subcommand)
    );
    let warning = apt.warning("AptGetAssumeYes", message).with_hint("add -y");
    found.push(apt.subcommand.followed_by("-y", warning));
}

/// `AptGetNoInstallRecommends`
fn no_recommends(apt: &Apt<'_>, found: &mut Vec<Diagnostic>) {
    let words = apt.call.args();
    let given = apt
        .call
        .has(&["--no-install-recommends", "--install-recommends"])
        || words
            .iter()
            .any(|word| word.value.contains("Install-Recommends"))
        || may_hold_options(apt);
    let nothing = operands(apt.rest, &VALUED).next().is_none();
    if given || !apt.is(&["install"]) || nothing {
        return;
    }
    let message = format!(
        "`{}` also installs what the packages only recommend",
        apt.call.title(apt.subcommand)
    );
    // Leaving packages out is for a person to decide, so there is no edit.
    let hint = "add --no-install-recommends, and name the recommended packages that are needed";
    let warning = apt.warning("AptGetNoInstallRecommends", message);
    found.push(warning.with_hint(hint));
}

/// Whether a variable may bring the options that are missing: one of such a name, or one before
/// the subcommand.
fn may_hold_options(apt: &Apt<'_>) -> bool {
    let names = ["opt", "arg", "flag"];
    apt.call.args().iter().any(|word| {
        let before = word.span.start <= apt.subcommand.span.start;
        let value = word.value.to_lowercase();
        word.expands && (before || names.iter().any(|name| value.contains(name)))
    })
}

/// `AptGetCleanLists`
fn kept_lists(step: &Step<'_>, found: &mut Vec<Diagnostic>) {
    let commands = || step.calls().filter_map(Apt::of);
    let Some(update) = commands().find(|apt| apt.is(&["update"])) else {
        return;
    };
    let installs =
        commands().any(|apt| apt.is(&["install", "build-dep", "upgrade", "dist-upgrade"]));
    let cleans = commands().any(|apt| apt.is(&["distclean", "dist-clean"]))
        || step.mentions("/var/lib/apt")
        || step.mentions("/var/lib/{")
        || step.calls().any(|call| call.name().contains("clean"));
    if !installs || cleans || step.mounts("/var/lib/apt") {
        return;
    }
    let message = format!(
        "the package lists that `{}` fetches stay in the layer",
        update.call.title(update.subcommand)
    );
    let warning = update.warning("AptGetCleanLists", message);
    found.push(warning.with_hint("end the same RUN with rm -rf /var/lib/apt/lists/*"));
}

/// `AptGetUpdateAlone`
fn update_alone(step: &Step<'_>, found: &mut Vec<Diagnostic>) {
    if step.mounts("/var/lib/apt") {
        return;
    }
    let mut last: Option<Apt<'_>> = None;
    for call in step.calls() {
        match Apt::of(call) {
            Some(apt) if apt.is(&["update"]) => last = Some(apt),
            Some(apt) if apt.is(&["clean", "autoclean"]) => {}
            // Whatever else runs behind it may use the lists.
            _ if HARMLESS.contains(&call.name()) => {}
            _ => last = None,
        }
    }
    let Some(update) = last else {
        return;
    };
    // Lists that are thrown away at once only tell that the mirrors answer.
    if step.mentions("/var/lib/apt/lists") {
        return;
    }
    let message = format!(
        "`{}` has a RUN of its own, so installations behind it may use lists from an old cached \
         layer",
        update.call.title(update.subcommand)
    );
    let warning = update.warning("AptGetUpdateAlone", message);
    found.push(warning.with_hint("write apt-get update && apt-get install in one RUN"));
}
