//! The registry client.

/// Why a request to a registry failed.
#[derive(Debug, thiserror::Error)]
#[error("not written yet")]
pub struct ClientError;
