//! What can be wrong with a profile.

use std::io;

/// What is wrong with a profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is not the JSON that docker describes; the message names line and column.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Something in it means nothing.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where, as a path of JSON: `syscalls[3].args[0].op`.
        place: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Two rules contradict each other.
    #[error("the rules for `{name}` contradict each other: {first} and {second}")]
    Conflict {
        /// The system call.
        name: String,
        /// What one rule does.
        first: &'static str,
        /// What another does.
        second: &'static str,
    },
    /// The kernel takes no program of that length.
    #[error(
        "it takes a filter of {length} instructions, and Linux takes {limit} at most: list fewer system calls with arguments"
    )]
    TooLong {
        /// Its instructions.
        length: usize,
        /// What the kernel takes.
        limit: usize,
    },
    /// There is no table of system calls for this machine.
    #[error("there is no list of system calls for {0}, so that none can be filtered")]
    Machine(&'static str),
}

impl ProfileError {
    pub(super) fn invalid(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            place: place.into(),
            problem: problem.into(),
        }
    }
}

impl From<ProfileError> for io::Error {
    fn from(error: ProfileError) -> Self {
        let kind = match error {
            ProfileError::Machine(_) => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}
