//! Rules about `COPY` and `ADD`.

use super::MAX_FOUND;
use super::call::{Call, operands};
use super::stages::{Step, View};
use crate::ast::{Add, Files, Kind, Source, Word};
use crate::diagnostic::{Diagnostic, shorten};

/// Ends of the names of archives, and of formats that are archives by another name: `ADD` unpacks
/// them.
const ARCHIVES: [&str; 14] = [
    "tar", "tgz", "tbz", "tbz2", "txz", "tlz", "tzst", "gz", "bz2", "xz", "zst", "gem", "crate",
    "apk",
];

/// Names of files and directories that hold secrets and nothing else.
const SECRETS: [&str; 26] = [
    ".env",
    ".npmrc",
    ".netrc",
    "_netrc",
    ".pypirc",
    ".pgpass",
    ".my.cnf",
    ".git-credentials",
    ".dockercfg",
    ".dockerconfigjson",
    ".vault-token",
    ".terraformrc",
    ".aws",
    ".ssh",
    ".gnupg",
    ".kube",
    "kubeconfig",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "credentials.json",
    "service-account.json",
    "secrets.json",
    "secrets.yml",
    "secrets.yaml",
];

/// Ends of paths that hold secrets.
const SECRET_PATHS: [&str; 4] = [
    ".docker/config.json",
    ".aws/credentials",
    ".kube/config",
    ".cargo/credentials.toml",
];

/// Finds what is wrong with a `COPY` or `ADD`.
pub(super) fn check(text: &str, step: &Step<'_>, found: &mut Vec<Diagnostic>) {
    match &step.instruction.kind {
        Kind::Copy(copy) => secrets("COPY", &copy.files, found),
        Kind::Add(add) => {
            secrets("ADD", &add.files, found);
            copy_serves(text, step, add, found);
        }
        _ => {}
    }
}

/// A path without quotes, and its last part in lower case.
fn file_name(word: &Word) -> (&str, String) {
    let path = word.value.trim_matches(['"', '\'']).trim_end_matches('/');
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    (path, name.to_lowercase())
}

fn is_remote(path: &str) -> bool {
    path.contains("://") || path.starts_with("git@")
}

fn extension(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, extension)| extension)
}

/// `CopyInsteadOfAdd`: everything that it adds is a file or directory of the context, and no
/// archive.
fn copy_serves(text: &str, step: &Step<'_>, add: &Add, found: &mut Vec<Diagnostic>) {
    if add.checksum.is_some() || add.keep_git_dir || add.unpack.is_some() {
        return;
    }
    // A name without an end is most often a directory, but ADD looks into files.
    let mut certain = true;
    for source in &add.files.sources {
        let Source::Path(word) = source else {
            continue;
        };
        let (path, name) = file_name(word);
        let end = extension(&name);
        let unknown =
            path.contains('$') || end.is_some_and(|end| end.contains(['*', '?', '[', ']']));
        let open = end.is_none() && name.contains(['*', '?', '[']);
        if is_remote(path) || unknown || open || end.is_some_and(|end| ARCHIVES.contains(&end)) {
            return;
        }
        let directory = word.value.ends_with('/') || matches!(path, "" | "." | "..");
        let known =
            end.is_some_and(|end| end.starts_with(|first: char| first.is_ascii_alphabetic()));
        certain &= directory || known;
    }
    let keyword = &step.instruction.keyword;
    let first = add.files.sources.first().map(|source| match source {
        Source::Path(word) => &word.value,
        Source::Heredoc(heredoc) => &heredoc.name,
    });
    let message = format!(
        "ADD fetches and unpacks, and {:?} needs neither",
        shorten(first.map_or("", |first| first.trim_matches(['"', '\''])))
    );
    let warning = Diagnostic::warning("CopyInsteadOfAdd", message, keyword.span)
        .with_hint("write COPY: it does the same for files and directories");
    let word = match keyword.value.as_str() {
        "ADD" => "COPY",
        "add" => "copy",
        _ => "Copy",
    };
    let plain = text.get(keyword.span.range()) == Some(&keyword.value);
    found.push(if certain && plain {
        warning.with_edit(keyword.span, word)
    } else {
        warning
    });
}

/// `SecretFileCopied`
fn secrets(keyword: &str, files: &Files, found: &mut Vec<Diagnostic>) {
    let destination = files.destination.value.to_lowercase();
    // Public keys of package repositories have the same names.
    let public = [
        "keyring",
        "trusted",
        "/apt",
        "/gpg",
        "ca-certificates",
        "/pki/",
    ];
    let public = public.iter().any(|part| destination.contains(part));
    for source in files.sources.iter().take(MAX_FOUND) {
        let Source::Path(word) = source else {
            continue;
        };
        let (path, name) = file_name(word);
        if is_remote(path) || !is_secret(path, &name, public) {
            continue;
        }
        let message = format!(
            "{keyword} puts {:?} into a layer, and such files hold secrets",
            shorten(path)
        );
        let warning = Diagnostic::warning("SecretFileCopied", message, word.span);
        found.push(warning.with_hint(
            "give it to the step that needs it: RUN --mount=type=secret, and list it in .dockerignore",
        ));
    }
}

fn is_secret(path: &str, name: &str, public: bool) -> bool {
    let examples = [
        "example", "sample", "template", "dist", "default", "defaults", "test", "schema", "d",
    ];
    if let Some(rest) = name.strip_prefix(".env.") {
        let parts = rest.split(['.', '-', '_']);
        return !parts.into_iter().any(|part| examples.contains(&part));
    }
    let words = || name.split(['.', '-', '_']);
    let private_key = match extension(name) {
        Some("key") => {
            !public && !words().any(|word| matches!(word, "pub" | "public" | "gpg" | "asc"))
        }
        // Certificates have this end more often than keys.
        Some("pem") => words().any(|word| matches!(word, "key" | "private" | "privkey" | "priv")),
        Some("p12" | "pfx" | "ppk") => true,
        _ => false,
    };
    let path = path.to_lowercase();
    private_key || SECRETS.contains(&name) || SECRET_PATHS.iter().any(|end| path.ends_with(end))
}

/// `CopyBeforeInstall`: the whole context is copied, then a step installs what a small file of it
/// lists.
pub(super) fn copy_before_install(view: &View<'_>, found: &mut Vec<Diagnostic>) {
    let mut context: Option<&Word> = None;
    let mut installed: Vec<&str> = Vec::new();
    for step in view.steps.iter().filter(|step| !step.onbuild) {
        if let Some(word) = whole_context(step) {
            context.get_or_insert(word);
        }
        let cached = step.run().is_some_and(|run| {
            let mut mounts = run.mounts.iter();
            mounts.any(|mount| mount.value.contains("type=cache"))
        });
        for call in step.calls() {
            let Some(tool) = dependencies(call).filter(|tool| !installed.contains(tool)) else {
                continue;
            };
            if let Some(context) = context.filter(|_| !cached) {
                let message = format!(
                    "`{tool}` runs again whenever any file changes: all of the context is copied \
                     before it"
                );
                let warning = Diagnostic::warning("CopyBeforeInstall", message, context.span);
                found.push(warning.with_hint(format!(
                    "copy what {} reads first, install, and copy the rest behind it",
                    call.name()
                )));
                return;
            }
            installed.push(tool);
        }
    }
}

/// The `.` of a `COPY . somewhere`.
fn whole_context<'d>(step: &Step<'d>) -> Option<&'d Word> {
    let files = match &step.instruction.kind {
        Kind::Copy(copy) if copy.from.is_none() => &copy.files,
        Kind::Add(add) => &add.files,
        _ => return None,
    };
    files.sources.iter().find_map(|source| match source {
        Source::Path(word) => {
            let path = word.value.trim_matches(['"', '\'']);
            matches!(path, "." | "./" | "/" | "*" | "./*").then_some(word)
        }
        Source::Heredoc(_) => None,
    })
}

/// The command's title, if it installs what a file of the project lists.
fn dependencies(call: &Call) -> Option<&'static str> {
    let args = call.args();
    let mut words = operands(
        args,
        &["--prefix", "--cwd", "-C", "-d", "--working-dir", "--mount"],
    );
    let first = words.next().map(|word| word.value.as_str());
    let alone = words.next().is_none();
    let global = call.has(&["-g", "--global"]);
    let requirements = || call.has(&["-r", "--requirement"]) || call.letter('r').is_some();
    let tool = match (call.name(), first) {
        ("npm", Some("ci" | "clean-install")) => "npm ci",
        ("npm", Some("install" | "i")) if alone && !global => "npm install",
        ("yarn", None) if !args.iter().any(|word| word.value == "--version") => "yarn install",
        ("yarn", Some("install")) => "yarn install",
        ("pnpm", Some("install" | "i" | "fetch")) if alone && !global => "pnpm install",
        ("bun", Some("install" | "i")) if alone && !global => "bun install",
        ("pip" | "pip3", Some("install")) if requirements() => "pip install",
        ("poetry", Some("install")) => "poetry install",
        ("pipenv", Some("install" | "sync")) if alone => "pipenv install",
        ("uv", Some("sync")) => "uv sync",
        ("bundle", Some("install")) => "bundle install",
        ("composer", Some("install")) => "composer install",
        ("go", Some("mod")) if args.iter().any(|word| word.value == "download") => {
            "go mod download"
        }
        ("cargo", Some("fetch")) => "cargo fetch",
        ("mvn" | "mvnw", Some(_)) if maven(args) => "mvn dependency:resolve",
        ("gradle" | "gradlew", Some("dependencies")) => "gradle dependencies",
        ("dotnet", Some("restore")) => "dotnet restore",
        ("mix", Some("deps.get")) => "mix deps.get",
        _ => return None,
    };
    Some(tool)
}

fn maven(args: &[super::call::Word]) -> bool {
    args.iter()
        .any(|word| word.value.starts_with("dependency:"))
}
