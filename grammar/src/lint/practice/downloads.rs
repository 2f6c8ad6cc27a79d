//! Rules about what a build fetches.

use super::MAX_FOUND;
use super::call::{Call, Word};
use super::script::Script;
use super::shell::End;
use super::stages::Step;
use crate::ast::{Kind, Source};
use crate::diagnostic::Diagnostic;
use crate::source::Span;

/// Programs that fail by themselves where a download was cut or came empty.
const CHECKING: [&str; 14] = [
    "tar",
    "bsdtar",
    "gunzip",
    "gzip",
    "zcat",
    "unzip",
    "xz",
    "unxz",
    "xzcat",
    "bunzip2",
    "zstd",
    "gpg",
    "sha256sum",
    "sha512sum",
];

/// Finds what is wrong with the downloads of an instruction.
pub(super) fn check(step: &Step<'_>, found: &mut Vec<Diagnostic>) {
    let checked = step.calls().any(checks);
    for script in &step.scripts {
        pipes(script, found);
        for call in &script.calls {
            certificates(call, found);
            call.words()
                .iter()
                .for_each(|word| credentials(&word.value, word.span, found));
            if !checked {
                plain_http(call, found);
            }
        }
    }
    if let Kind::Add(add) = &step.instruction.kind {
        for source in add.files.sources.iter().take(MAX_FOUND) {
            let Source::Path(word) = source else {
                continue;
            };
            credentials(&word.value, word.span, found);
            if plain(&word.value) && add.checksum.is_none() {
                let hint = "fetch it over https, or pin what comes with ADD --checksum=sha256:...";
                found.push(over_http(&word.value, word.span).with_hint(hint));
            }
        }
    }
}

/// `DownloadPipedWithoutPipefail`
fn pipes(script: &Script, found: &mut Vec<Diagnostic>) {
    let mut safe = script.pipefail;
    let mut condition = false;
    let mut start: Option<&Call> = None;
    for call in &script.calls {
        let words = || call.args().iter().map(|word| word.value.as_str());
        if call.name() == "set" && words().any(|word| word == "pipefail") {
            safe = words().next().is_some_and(|word| word.starts_with('-'));
        }
        condition |= call.condition;
        if call.end == End::Pipe {
            let fetches = matches!(call.name(), "curl" | "wget") && !safe;
            start = start.or_else(|| fetches.then_some(call));
            continue;
        }
        let first = start.take();
        let caught = std::mem::take(&mut condition) || call.end == End::Or;
        let Some(first) = first.filter(|_| !caught && !CHECKING.contains(&call.name())) else {
            continue;
        };
        let message = format!(
            "a failure of `{}` goes unnoticed: the step fails only if `{}` does, at the end of the \
             pipe",
            first.name(),
            call.name()
        );
        let span = first.program().span;
        let warning = Diagnostic::warning("DownloadPipedWithoutPipefail", message, span);
        found.push(warning.with_hint(
            "put SHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"] before it, or download to a file first",
        ));
    }
}

/// `CertificateCheckDisabled`
fn certificates(call: &Call, found: &mut Vec<Diagnostic>) {
    let local = |word: &Word| {
        ["://localhost", "://127.0.0.1", "://[::1]"]
            .iter()
            .any(|host| word.value.contains(host))
    };
    let off = |names: [&str; 2]| {
        let mut words = call.words().iter();
        words.find(|word| {
            let value = word.value.to_lowercase();
            names.contains(&value.as_str())
        })
    };
    let word = match call.name() {
        "curl" => call.option(&["--insecure"]).or_else(|| insecure(call)),
        "wget" => call.option(&["--no-check-certificate"]),
        "git" => off(["http.sslverify=false", "http.sslverify"]).filter(|word| {
            word.value.contains('=') || call.args().iter().any(|arg| arg.value == "false")
        }),
        "npm" | "yarn" | "pnpm" => off(["strict-ssl", "strict-ssl=false"])
            .or_else(|| off(["--strict-ssl=false", "--no-strict-ssl"]))
            .filter(|word| {
                word.value != "strict-ssl" || call.args().iter().any(|arg| arg.value == "false")
            }),
        _ => off(["git_ssl_no_verify=true", "git_ssl_no_verify=1"])
            .or_else(|| off(["node_tls_reject_unauthorized=0", "pythonhttpsverify=0"])),
    };
    let Some(word) = word.filter(|_| !call.args().iter().any(local)) else {
        return;
    };
    let message = format!(
        "`{}` lets `{}` take what anybody on the way sends: no certificate is checked",
        word.value,
        call.name()
    );
    let warning = Diagnostic::warning("CertificateCheckDisabled", message, word.span);
    found.push(
        warning.with_hint("install ca-certificates, or add the certificate of your own authority"),
    );
}

/// The word of curl's short options that has `k`, and not as the value of another one.
fn insecure(call: &Call) -> Option<&Word> {
    // Options whose value can stand in the same word.
    let valued = "AbCcDdEeFHhKmoPQrtTuUwXxYyz";
    call.args().iter().find(|word| {
        let letters = word.value.strip_prefix('-').unwrap_or_default();
        let mut flags = letters
            .chars()
            .take_while(|letter| !valued.contains(*letter));
        !letters.starts_with('-') && flags.any(|letter| letter == 'k')
    })
}

/// Whether an address is of plain HTTP, and neither of this machine nor of its network.
fn plain(url: &str) -> bool {
    let Some(rest) = url.trim_matches(['"', '\'']).strip_prefix("http://") else {
        return false;
    };
    let host = rest.split(['/', ':']).next().unwrap_or_default();
    let near = ["127.", "10.", "192.168.", "169.254.", "0.0.0.0"];
    let own = [".local", ".localhost", ".internal", ".lan"];
    // A host without a dot is one of the own network.
    host.contains('.')
        && !host.contains('$')
        && !near.iter().any(|start| host.starts_with(start))
        && !own.iter().any(|end| host.ends_with(end))
}

fn over_http(url: &str, span: Span) -> Diagnostic {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '"', '\'']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let message = format!("anybody on the way can change what {host:?} sends over plain HTTP");
    Diagnostic::warning("PlainHttpDownload", message, span)
}

/// `PlainHttpDownload` of curl and wget, where nothing checks what came.
fn plain_http(call: &Call, found: &mut Vec<Diagnostic>) {
    if !matches!(call.name(), "curl" | "wget") {
        return;
    }
    let Some(word) = call.args().iter().find(|word| plain(&word.value)) else {
        return;
    };
    let hint = "fetch it over https, or check a sha256 sum in the same RUN";
    found.push(over_http(&word.value, word.span).with_hint(hint));
}

/// Whether a command checks what was fetched.
fn checks(call: &Call) -> bool {
    let name = call.name();
    name.ends_with("sum") || matches!(name, "gpg" | "gpgv" | "cosign" | "minisign" | "openssl")
}

/// `CredentialsInUrl`
fn credentials(word: &str, span: Span, found: &mut Vec<Diagnostic>) {
    let Some((scheme, rest)) = word.split_once("://") else {
        return;
    };
    let authority = rest
        .split(['/', '?', '#', '"', '\'', ' ', '|'])
        .next()
        .unwrap_or_default();
    let Some((user, host)) = authority.rsplit_once('@') else {
        return;
    };
    // A command's output is no longer in the file.
    let computed = user.contains("$(") || user.contains('`');
    let web = scheme.ends_with("http") || scheme.ends_with("https");
    if !web || user.is_empty() || matches!(user, "git" | "anonymous") || computed {
        return;
    }
    let message = format!("the address of {host:?} carries credentials, and the image keeps them");
    let warning = Diagnostic::warning("CredentialsInUrl", message, span);
    found.push(
        warning.with_hint(
            "give them to the step alone: RUN --mount=type=secret, for example as .netrc",
        ),
    );
}
