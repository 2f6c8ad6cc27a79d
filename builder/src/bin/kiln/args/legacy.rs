//! Flags of docker that old scripts give and that mean nothing here (C2).

use clap::{ArgAction, Args};

use crate::report::UsageError;

/// Flags that are read and have no effect.
#[derive(Debug, Args)]
pub(crate) struct LegacyArgs {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    rm: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    force_rm: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    compress: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    disable_content_trust: Option<bool>,
    #[arg(long, hide = true, value_name = "NAME")]
    builder: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    squash: Option<bool>,
}

impl LegacyArgs {
    /// Whether images need not be signed, whatever the environment says.
    pub(crate) fn disables_content_trust(&self) -> bool {
        self.disable_content_trust == Some(true)
    }

    /// A warning that names those that were given, if any were.
    ///
    /// # Errors
    /// When one asks for something that kiln would have to do.
    pub(crate) fn warning(&self) -> anyhow::Result<Option<String>> {
        if self.squash == Some(true) {
            let message = "--squash is not supported: an image keeps the layers of its steps; \
                           a last stage with COPY --from=… / / has all files in one";
            return Err(UsageError::new(message).into());
        }
        let given = [
            ("--rm", self.rm.is_some()),
            ("--force-rm", self.force_rm.is_some()),
            ("--compress", self.compress.is_some()),
            (
                "--disable-content-trust",
                self.disable_content_trust.is_some(),
            ),
            ("--builder", self.builder.is_some()),
            ("--squash", self.squash.is_some()),
        ];
        let given = given.iter().filter(|(_, given)| *given);
        let names: Vec<_> = given.map(|(name, _)| *name).collect();
        let verb = if names.len() == 1 { "has" } else { "have" };
        let names = names.join(", ");
        Ok((!names.is_empty()).then(|| format!("warning: {names} {verb} no effect with kiln")))
    }
}
