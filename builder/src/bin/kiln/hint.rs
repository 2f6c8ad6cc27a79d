//! What the user could do about a failure; apart from the failure itself, which only says what is.

use std::io;
use std::path::Path;

use kiln_builder::context::select::SelectError;
use kiln_builder::pipeline::{BuildError, ShellError};
use kiln_builder::runtime::RuntimeError;
use kiln_builder::runtime::cgroup::CgroupError;
use kiln_builder::runtime::isolation::IsolationError;
use kiln_builder::snapshot::SnapshotError;
use kiln_builder::step::StepError;
use kiln_builder::step::agent::AgentError;
use kiln_builder::step::copy::CopyError;
use kiln_builder::step::git::GitError;
use kiln_builder::store::StoreError;
use kiln_registry::archive::ArchiveError;
use kiln_registry::client::ClientError;
use kiln_registry::copy::CopyError as TransferError;
use kiln_registry::credentials::CredentialsError;
use kiln_registry::settings::SettingsError;

use crate::report::{NotPushed, find};

/// What programs print when a disk is full.
const NO_SPACE: &str = "No space left on device";

/// A hint, where somebody knows one; `again` is how to call kiln with the same store.
pub(crate) fn hint(error: &anyhow::Error, store: Option<&Path>, again: &str) -> Option<String> {
    if let Some(NotPushed { names, .. }) = error.downcast_ref() {
        let commands = names.iter().map(|name| format!("{again} push {name}"));
        let commands = commands.collect::<Vec<_>>().join(" && ");
        let more = find::<ClientError>(error)
            .and_then(ClientError::hint)
            .map_or(String::new(), |hint| format!("; {hint}"));
        return Some(format!("continue with: {commands}{more}"));
    }
    if is_disk_full(error) || printed_disk_full(error) {
        return Some(disk_full(error, store));
    }
    if let Some(shell) = find::<ShellError>(error)
        && let Some(hint) = shell.hint()
    {
        return Some(hint.to_owned());
    }
    find::<BuildError>(error)
        .and_then(build)
        .or_else(|| find::<CopyError>(error).and_then(CopyError::hint))
        .or_else(|| find::<SelectError>(error).and_then(SelectError::hint))
        .or_else(|| find::<RuntimeError>(error).and_then(program))
        .or_else(|| find::<StepError>(error).and_then(StepError::hint))
        .or_else(|| find::<AgentError>(error).and_then(AgentError::hint))
        .or_else(|| find::<CgroupError>(error).and_then(CgroupError::hint))
        .or_else(|| find::<GitError>(error).and_then(GitError::hint))
        .or_else(|| find::<IsolationError>(error).and_then(IsolationError::hint))
        .or_else(|| find::<StoreError>(error).and_then(StoreError::hint))
        .or_else(|| find::<SnapshotError>(error).and_then(SnapshotError::hint))
        .or_else(|| find::<TransferError>(error).and_then(TransferError::hint))
        .or_else(|| find::<ClientError>(error).and_then(|client| client_hint(error, client)))
        .or_else(|| find::<CredentialsError>(error).and_then(CredentialsError::hint))
        .or_else(|| find::<SettingsError>(error).and_then(SettingsError::hint))
}

/// Hints about refusals speak of registries; a file that `ADD` fetches lies in none.
fn client_hint(error: &anyhow::Error, client: &ClientError) -> Option<String> {
    let file = matches!(find(error), Some(StepError::Fetch { .. }));
    match client {
        ClientError::Refused(_) if file => None,
        _ => client.hint(),
    }
}

fn build(error: &BuildError) -> Option<String> {
    match error {
        BuildError::NoDockerfile { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Some("name the Dockerfile with -f, or give the folder that holds it".to_owned())
        }
        BuildError::NamedContext { source, .. } => match &**source {
            BuildError::NoContext(path) if !path.starts_with("/") && !path.starts_with(".") => {
                Some(format!(
                    "an image is named as `docker-image://{}`",
                    path.display()
                ))
            }
            _ => None,
        },
        BuildError::Resolve { near, .. } => near
            .as_ref()
            .map(|stage| format!("there is no stage of that name; did you mean `{stage}`?")),
        _ => None,
    }
}

fn program(error: &RuntimeError) -> Option<String> {
    match error {
        RuntimeError::NotFound { program } if program == "/bin/sh" => Some(
            "the image has no shell: write the command as a JSON array, as in RUN [\"/program\", \"argument\"]"
                .to_owned(),
        ),
        RuntimeError::Unmapped { .. } => Some(
            "give your user a larger range in /etc/subuid and /etc/subgid, and start with a new store"
                .to_owned(),
        ),
        RuntimeError::Foreign { machine, .. } => Some(format!(
            "install qemu-user-static (Debian and Ubuntu; elsewhere the package with qemu's binfmt_misc \
             handlers), which runs programs for {machine} on this machine"
        )),
        _ => None,
    }
}

/// Whether a disk was full.
pub(crate) fn is_disk_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        });
        io || matches!(cause.downcast_ref(), Some(StoreError::Database { .. }))
            && cause.downcast_ref().is_some_and(StoreError::is_disk_full)
    })
}

/// Whether a step failed and said that a disk was full.
fn printed_disk_full(error: &anyhow::Error) -> bool {
    match find::<StepError>(error) {
        Some(StepError::Exit { log, .. }) => log.iter().any(|line| line.contains(NO_SPACE)),
        Some(StepError::Git { source, .. }) => source.to_string().contains(NO_SPACE),
        _ => false,
    }
}

fn disk_full(error: &anyhow::Error, store: Option<&Path>) -> String {
    // An archive that is written need not lie where the store is.
    let elsewhere = matches!(find(error), Some(ArchiveError::Io { .. }));
    match store.filter(|_| !elsewhere) {
        Some(store) => format!(
            "the disk that holds the store `{}` is full: free some space there, or choose another place with --root",
            store.display()
        ),
        None => "the disk is full: free some space there".to_owned(),
    }
}
