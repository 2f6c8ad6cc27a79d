//! Rules about package managers other than apt-get, and about all of them.

use super::call::{Call, Word, operands};
use super::stages::{Step, View};
use crate::diagnostic::Diagnostic;

/// Options of apk that take a value.
const APK: [&str; 11] = [
    "-t",
    "--virtual",
    "-X",
    "--repository",
    "-p",
    "--root",
    "--arch",
    "--keys-dir",
    "--repositories-file",
    "--cache-dir",
    "--wait",
];

/// Options of pip install that take a value.
const PIP: [&str; 20] = [
    "-r",
    "--requirement",
    "-c",
    "--constraint",
    "-e",
    "--editable",
    "-t",
    "--target",
    "-i",
    "--index-url",
    "--extra-index-url",
    "-f",
    "--find-links",
    "--prefix",
    "--root",
    "--platform",
    "--python-version",
    "--trusted-host",
    "--timeout",
    "--src",
];

/// Options of the other managers that take a value.
const OTHER: [&str; 10] = [
    "-o",
    "-c",
    "-t",
    "--target-release",
    "-x",
    "--exclude",
    "--repo",
    "--repoid",
    "--registry",
    "--prefix",
];

/// Managers that leave metadata in /var/cache.
const MANAGERS: [&str; 6] = ["dnf", "dnf5", "yum", "microdnf", "tdnf", "zypper"];

/// Finds what is wrong with the commands of package managers in an instruction.
pub(super) fn check(view: &View<'_>, step: &Step<'_>, found: &mut Vec<Diagnostic>) {
    let removed = step.mentions("/var/cache");
    let ships = view.ships && !step.onbuild && !removed;
    let apk = ships && !step.mounts("/var/cache/apk") && !step.mounts("/etc/apk/cache");
    let others = ships && !step.mounts("/var/cache");
    let pip = !(view.settled.pip_no_cache
        || step.mentions(".cache")
        || step.mounts("pip")
        || step.mounts(".cache"));
    let cleaned: Vec<&str> = MANAGERS
        .into_iter()
        .filter(|manager| step.calls().any(|call| cleans(call, manager)))
        .collect();
    for call in step.calls() {
        if apk {
            apk_cache(call, found);
        }
        if others && !cleaned.contains(&call.name()) {
            kept_cache(call, found);
        }
        if pip {
            pip_cache(call, found);
        }
        upgrade(call, found);
        unpinned(call, found);
    }
}

/// `ApkNoCache`
fn apk_cache(call: &Call, found: &mut Vec<Diagnostic>) {
    let Some((add, _)) = call.subcommand(&APK).filter(|_| call.name() == "apk") else {
        return;
    };
    let mut words = call.args().iter();
    let given = call.has(&["--no-cache", "--cache-dir", "--no-network"])
        || words.any(|word| word.expands && word.value.contains("OPT"));
    if add.value != "add" || given {
        return;
    }
    let message = "`apk add` keeps the package index in the layer";
    let warning = Diagnostic::warning("ApkNoCache", message, add.span)
        .with_hint("add --no-cache; apk update is not needed then");
    found.push(add.followed_by("--no-cache", warning));
}

/// Whether a command removes the cache of a package manager.
fn cleans(call: &Call, manager: &str) -> bool {
    let subcommand = || call.subcommand(&OTHER).map(|(word, _)| word.value.as_str());
    (call.name() == manager && subcommand() == Some("clean")) || call.name().contains("cleanup")
}

/// `CleanPackageCache`
fn kept_cache(call: &Call, found: &mut Vec<Diagnostic>) {
    let program = call.name();
    let manager = MANAGERS.contains(&program);
    let Some((install, _)) = call.subcommand(&OTHER).filter(|_| manager) else {
        return;
    };
    let installs = ["install", "in", "update", "upgrade", "groupinstall"];
    if !installs.contains(&install.value.as_str()) {
        return;
    }
    let message = format!("`{}` leaves its cache in the layer", call.title(install));
    let warning = Diagnostic::warning("CleanPackageCache", message, install.span);
    found.push(warning.with_hint(format!("end the same RUN with {program} clean all")));
}

/// The `install` of a pip command and what stands behind it.
fn pip_install(call: &Call) -> Option<(&Word, &[Word])> {
    let name = call.name();
    let version = |name: &str| {
        name.bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    let (install, rest) = if name.strip_prefix("pip").is_some_and(version) {
        call.subcommand(&[])?
    } else if name.strip_prefix("python").is_some_and(version) {
        // `python -m pip install`
        let at = call.args().windows(2).position(|pair| {
            matches!(pair, [option, module] if option.value == "-m" && module.value == "pip")
        })?;
        let words = call.args().get(at + 2..)?;
        let at = words.iter().position(|word| !word.is_option())?;
        (words.get(at)?, words.get(at + 1..).unwrap_or_default())
    } else {
        return None;
    };
    (install.value == "install").then_some((install, rest))
}

/// `PipNoCacheDir`
fn pip_cache(call: &Call, found: &mut Vec<Diagnostic>) {
    let Some((install, _)) = pip_install(call) else {
        return;
    };
    let mut words = call.words().iter();
    let set = words.any(|word| word.value.starts_with("PIP_NO_CACHE"));
    if set || call.has(&["--no-cache-dir", "--no-cache"]) {
        return;
    }
    let message = "`pip install` keeps what it downloads in the layer";
    let warning = Diagnostic::warning("PipNoCacheDir", message, install.span).with_hint(
        "add --no-cache-dir, or mount a cache: RUN --mount=type=cache,target=/root/.cache/pip",
    );
    found.push(install.followed_by("--no-cache-dir", warning));
}

/// `PackageUpgrade`
fn upgrade(call: &Call, found: &mut Vec<Diagnostic>) {
    let Some((subcommand, rest)) = call.subcommand(&OTHER) else {
        return;
    };
    let all: &[&str] = match call.name() {
        "apt-get" | "apt" => &["upgrade", "dist-upgrade", "full-upgrade"],
        "apk" => &["upgrade"],
        "yum" | "dnf" | "dnf5" | "microdnf" | "tdnf" => &[
            "update",
            "upgrade",
            "distro-sync",
            "distribution-synchronization",
        ],
        "zypper" => &["update", "up", "dist-upgrade", "dup"],
        _ => return,
    };
    // Upgrading one package by name is a decision.
    let named = operands(rest, &OTHER).next().is_some();
    if !all.contains(&subcommand.value.as_str()) || named {
        return;
    }
    let message = format!(
        "`{}` installs other packages on every day it runs",
        call.title(subcommand)
    );
    let warning = Diagnostic::warning("PackageUpgrade", message, subcommand.span);
    found.push(
        warning.with_hint("use a newer base image, or upgrade the packages that need it by name"),
    );
}

/// `UnpinnedPackage`
fn unpinned(call: &Call, found: &mut Vec<Diagnostic>) {
    let subcommand = |names: &[&str], valued| {
        let (word, rest) = call.subcommand(valued)?;
        names.contains(&word.value.as_str()).then_some(rest)
    };
    let global = call.has(&["-g", "--global"]);
    let (rest, valued, signs, example): (_, &[&str], &[&str], _) = match call.name() {
        "apt-get" | "apt" => (subcommand(&["install"], &OTHER), &OTHER, &["="], "=1.2.3-1"),
        "apk" => (
            subcommand(&["add"], &APK),
            &APK,
            &["=", "<", ">", "~"],
            "=1.2.3-r0",
        ),
        "npm" if global => (
            subcommand(&["install", "i", "add"], &OTHER),
            &OTHER,
            &["@"],
            "@1.2.3",
        ),
        "gem" if !call.has(&["-v", "--version"]) => {
            (subcommand(&["install"], &OTHER), &OTHER, &[":"], ":1.2.3")
        }
        _ => {
            let rest = pip_install(call).map(|(_, rest)| rest);
            (rest, &PIP, &["==", "~=", "===", "@", "<"], "==1.2.3")
        }
    };
    let loose = |word: &&Word| {
        let name = word.value.strip_prefix('@').unwrap_or(&word.value);
        let path = name.starts_with(['.', '/']) || name.contains("://");
        let file = [".whl", ".deb", ".apk", ".gem", ".tgz"]
            .iter()
            .any(|end| name.ends_with(end));
        !(word.expands || path || file || signs.iter().any(|sign| name.contains(sign)))
    };
    let Some(first) = operands(rest.unwrap_or_default(), valued).find(loose) else {
        return;
    };
    let message = format!(
        "package {:?} has no version, so another one may be installed tomorrow",
        first.value
    );
    let warning = Diagnostic::warning("UnpinnedPackage", message, first.span);
    found.push(warning.with_hint(format!(
        "write {}{example}, with the version that is wanted",
        first.value
    )));
}
