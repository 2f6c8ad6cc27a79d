//! `ONBUILD`: instructions that wait for a stage to be built on their image (A7.12).

use kiln_grammar::ast::{self, Instruction, Kind};
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::source::Span;
use kiln_registry::spec::ImageConfig;

/// The escape character of stored triggers: an image does not say which its Dockerfile had.
const ESCAPE: char = '\\';

/// An instruction that fires at the start of a stage.
#[derive(Debug)]
pub(super) struct Trigger {
    pub(super) instruction: Instruction,
    /// Where to point at instead of the instruction's own spans, which are offsets in the text
    /// of the trigger; `None` for a trigger that stands in this file.
    pub(super) place: Option<Span>,
    /// The image that it comes from.
    image: Option<String>,
}

impl Trigger {
    /// Moves a message about the trigger to where the reader can find it.
    pub(super) fn place(&self, mut diagnostic: Diagnostic) -> Diagnostic {
        if let (Some(span), Some(image)) = (self.place, &self.image) {
            diagnostic.span = span;
            diagnostic.message = format!(
                "ONBUILD trigger `{}` of image `{image}`: {}",
                self.instruction.text, diagnostic.message
            );
        }
        diagnostic
    }
}

/// The triggers that a stage of this file leaves to the stages built on it.
pub(super) fn of_stage(stage: &ast::Stage) -> Vec<Trigger> {
    let onbuild = |instruction: &Instruction| match &instruction.kind {
        Kind::Onbuild(onbuild) => Some(Trigger {
            instruction: (*onbuild.instruction).clone(),
            place: None,
            image: None,
        }),
        _ => None,
    };
    stage.instructions.iter().filter_map(onbuild).collect()
}

/// The triggers of an image that the stage `from` is built on; one that cannot be read is left out.
pub(super) fn of_image(
    config: &ImageConfig,
    image: &str,
    from: Span,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Trigger> {
    let mut triggers = Vec::new();
    for text in config.config.on_build.iter().flatten() {
        match kiln_grammar::parse_trigger(text, ESCAPE) {
            Ok(instruction) => triggers.push(Trigger {
                instruction,
                place: Some(from),
                image: Some(image.to_owned()),
            }),
            Err(wrong) => {
                let reason = match wrong.into_iter().next() {
                    Some(error) => error.message,
                    None => "it cannot be read".to_owned(),
                };
                let message = format!("ONBUILD trigger `{text}` of image `{image}`: {reason}");
                errors.push(Diagnostic::error(message, from));
            }
        }
    }
    triggers
}
