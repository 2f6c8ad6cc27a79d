//! `kiln tag` (D11.4)

use kiln_registry::reference::Reference;

use super::Setup;
use crate::args::TagArgs;
use crate::report::UsageError;

pub(crate) fn run(setup: &Setup, args: &TagArgs) -> anyhow::Result<()> {
    let wrong =
        |error: String| UsageError::new(format!("invalid name \"{}\": {error}", args.target));
    let target = Reference::parse(&args.target).map_err(|error| wrong(error.to_string()))?;
    if target.digest.is_some() {
        return Err(wrong("refusing to create a tag with a digest reference".to_owned()).into());
    }
    let store = setup.store()?;
    let image = store.find(&args.source)?;
    store.tag(&target, &image)?;
    Ok(())
}
