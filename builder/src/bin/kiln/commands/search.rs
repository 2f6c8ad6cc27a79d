//! `kiln search` (D9.1)

use kiln_builder::runtime::Cancel;
use kiln_registry::client::{Hit, SEARCH_HOST};
use serde_json::json;

use super::{Setup, block_on};
use crate::args::SearchArgs;
use crate::render::{self, table, text};
use crate::report::UsageError;

/// Characters of a description that docker shows.
const DESCRIPTION: usize = 45;

pub(crate) fn run(setup: &Setup, args: &SearchArgs) -> anyhow::Result<()> {
    let filters = args.filters.iter().map(|text| Filter::parse(text));
    let filters = filters.collect::<Result<Vec<_>, _>>()?;
    let format = Format::parse(args.format.as_deref())?;
    let client = setup.client(false)?;
    let host = args.host.as_deref().filter(|host| !host.is_empty());
    let host = host.unwrap_or(SEARCH_HOST);
    let cancel = Cancel::new()?;
    let limit = usize::from(args.limit);
    let mut hits = block_on(&cancel, async {
        tokio::select! {
            hits = client.search(host, &args.term, limit) => Ok(hits?),
            () = cancel.cancelled() => Ok(Vec::new()),
        }
    })?;
    hits.retain(|hit| filters.iter().all(|filter| filter.lets(hit)));
    for hit in &mut hits {
        hit.name = text::one_line(&hit.name);
        hit.description = text::one_line(&hit.description);
        if !args.no_trunc {
            hit.description = text::cut(&hit.description, DESCRIPTION);
        }
    }
    format.print(&hits);
    Ok(())
}

/// What a repository must be to be shown.
#[derive(Debug)]
enum Filter {
    Stars(u64),
    Official(bool),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, UsageError> {
        let wrong = || {
            let expected = "stars=N or is-official=true|false";
            UsageError::new(format!("invalid filter `{text}`: expected {expected}"))
        };
        match text.split_once('=').ok_or_else(wrong)? {
            ("stars", count) => count.parse().map(Self::Stars).map_err(|_| wrong()),
            ("is-official", "true" | "1") => Ok(Self::Official(true)),
            ("is-official", "false" | "0") => Ok(Self::Official(false)),
            _ => Err(wrong()),
        }
    }

    fn lets(&self, hit: &Hit) -> bool {
        match self {
            Self::Stars(least) => hit.star_count >= *least,
            Self::Official(wanted) => hit.is_official == *wanted,
        }
    }
}

/// How results are printed.
#[derive(Debug, PartialEq, Eq)]
enum Format {
    Json,
    /// Columns that are padded, with their headings.
    Table(Vec<Piece>),
    Lines(Vec<Piece>),
}

/// A part of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Description,
    Stars,
    Official,
    Automated,
}

const DEFAULT: &str = "table {{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}";

impl Format {
    fn parse(text: Option<&str>) -> Result<Self, UsageError> {
        let text = text.unwrap_or("table");
        if text == "json" || text.replace(' ', "") == "{{json.}}" {
            return Ok(Self::Json);
        }
        let text = if text == "table" { DEFAULT } else { text };
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        match text.strip_prefix("table ") {
            Some(rest) => Ok(Self::Table(pieces(rest)?)),
            None => Ok(Self::Lines(pieces(&text)?)),
        }
    }

    fn print(&self, hits: &[Hit]) {
        let line = |pieces: &[Piece], hit: &Hit| -> String {
            let texts = pieces.iter().map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Field(field) => field.of(hit),
            });
            texts.collect()
        };
        match self {
            Self::Json => hits.iter().for_each(|hit| render::out(&as_json(hit))),
            Self::Lines(pieces) => hits.iter().for_each(|hit| render::out(&line(pieces, hit))),
            Self::Table(pieces) => {
                let heading: String = pieces
                    .iter()
                    .map(|piece| match piece {
                        Piece::Text(text) => text,
                        Piece::Field(field) => field.heading(),
                    })
                    .collect();
                let heading: Vec<&str> = heading.split('\t').collect();
                let rows = hits.iter().map(|hit| line(pieces, hit));
                let rows = rows.map(|row| row.split('\t').map(str::to_owned).collect());
                table::print(&heading, &rows.collect::<Vec<_>>());
            }
        }
    }
}

/// docker's fields, all of them texts.
fn as_json(hit: &Hit) -> String {
    json!({
        "Description": hit.description,
        "IsAutomated": hit.is_automated.to_string(),
        "IsOfficial": hit.is_official.to_string(),
        "Name": hit.name,
        "StarCount": hit.star_count.to_string(),
    })
    .to_string()
}

fn pieces(text: &str) -> Result<Vec<Piece>, UsageError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let wrong = || {
            let fields =
                "{{.Name}}, {{.Description}}, {{.StarCount}}, {{.IsOfficial}}, {{.IsAutomated}}";
            UsageError::new(format!("invalid format `{text}`: known are {fields}"))
        };
        let (field, after) = after.split_once("}}").ok_or_else(wrong)?;
        pieces.push(Piece::Text(before.to_owned()));
        pieces.push(Piece::Field(match field.trim() {
            ".Name" => Field::Name,
            ".Description" => Field::Description,
            ".StarCount" => Field::Stars,
            ".IsOfficial" => Field::Official,
            ".IsAutomated" => Field::Automated,
            _ => return Err(wrong()),
        }));
        rest = after;
    }
    pieces.push(Piece::Text(rest.to_owned()));
    Ok(pieces)
}

impl Field {
    fn heading(self) -> &'static str {
        match self {
            Self::Name => "NAME",
            Self::Description => "DESCRIPTION",
            Self::Stars => "STARS",
            Self::Official => "OFFICIAL",
            Self::Automated => "AUTOMATED",
        }
    }

    fn of(self, hit: &Hit) -> String {
        let mark = |is: bool| if is { "[OK]" } else { "" }.to_owned();
        match self {
            Self::Name => hit.name.clone(),
            Self::Description => hit.description.clone(),
            Self::Stars => hit.star_count.to_string(),
            Self::Official => mark(hit.is_official),
            Self::Automated => mark(hit.is_automated),
        }
    }
}
