//! `kiln copy` (D9.3)

use kiln_builder::event::Observer;
use kiln_builder::runtime::Cancel;
use kiln_builder::step::blob_event;
use kiln_registry::copy::{self, Copied, Options, Place, Sink, Source};
use kiln_registry::spec::{Descriptor, Platform};

use super::{Setup, block_on};
use crate::args::CopyArgs;
use crate::render::{self, transfer};
use crate::report::UsageError;

pub(crate) fn run(setup: &Setup, args: &CopyArgs) -> anyhow::Result<()> {
    let place = |text: &str| Place::parse(text).map_err(|error| UsageError::new(error.to_string()));
    let (from, to) = (place(&args.source)?, place(&args.destination)?);
    let wanted = args.platform.as_deref().map(Platform::parse).transpose();
    let options = Options {
        platform: wanted.map_err(|error| UsageError::new(error.to_string()))?,
        all_tags: args.all_tags,
        referrers: args.referrers,
        jobs: args.jobs.into(),
    };
    let client = setup.client(args.quiet)?;
    let source = Source::open(&from, &client, &std::env::temp_dir())?;
    let cancel = Cancel::new()?;
    block_on(&cancel, async {
        let work = async {
            let sink = Sink::open(&to, &client)?;
            let observer = transfer::observer(transfer::COPY, args.quiet);
            move_images(&source, &sink, &options, &observer, args).await?;
            sink.finish().await
        };
        tokio::select! {
            result = work => Ok(result?),
            // What is dropped here removes what is not whole.
            () = cancel.cancelled() => Ok(()),
        }
    })?;
    Ok(())
}

async fn move_images(
    source: &Source,
    sink: &Sink,
    options: &Options,
    observer: &Observer,
    args: &CopyArgs,
) -> Result<(), copy::CopyError> {
    let watch = observer.clone();
    let progress = move |blob: &Descriptor, step| watch.tell(blob_event(blob, step));
    let done = |copied: Copied| {
        let Copied {
            name,
            descriptor,
            referrers,
        } = copied;
        if !args.quiet && referrers > 0 {
            let plural = if referrers == 1 { "" } else { "s" };
            render::err(&format!("{referrers} referrer{plural} came along"));
        }
        // One image is its digest, as for `kiln build -q`; several need their names.
        match name.filter(|_| args.all_tags) {
            Some(name) => render::out(&format!("{name} {}", descriptor.digest)),
            None => render::out(&descriptor.digest.to_string()),
        }
    };
    copy::copy(source, sink, options, &progress, done).await
}
