//! What lowering makes: a graph and the image that it leads to.

use std::fmt::Write as _;

use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::source::Span;
use kiln_registry::spec::{ImageConfig, Platform};

use crate::graph::{Graph, ImageOp, Op, VertexId, dump};

/// The comment of every history entry that a Dockerfile makes (A16.2).
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// An image that has to be resolved before the Dockerfile can be lowered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The reference as written, after expansion.
    pub reference: String,
    /// The platform it is wanted for.
    pub platform: Platform,
    /// Where it is asked for.
    pub span: Option<Span>,
}

/// All that is to be done, and what the image says when it is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The file systems to make.
    pub graph: Graph,
    /// The vertex whose file system is the image's.
    pub root: VertexId,
    /// The image config: history and diff ids are those of the base image, or none; what
    /// [`Plan::history`] adds is not in it, and no time is.
    pub config: ImageConfig,
    /// The image whose layers come first; `None` for an image from scratch.
    pub base: Option<VertexId>,
    /// What comes on top of the base image, oldest first.
    pub history: Vec<HistoryEntry>,
    /// What is worth a word.
    pub warnings: Vec<Diagnostic>,
}

/// One instruction in the history of the image (A16.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The instruction, in the words of A16.3.
    pub created_by: String,
    /// A remark.
    pub comment: Option<String>,
    /// The vertex that makes its layer: what it changes in its input 0. `None` for an
    /// instruction that makes no layer.
    pub layer: Option<VertexId>,
}

impl HistoryEntry {
    /// A layer that no instruction made, as exporters word it.
    pub(super) fn exported(created_by: String, layer: VertexId) -> Self {
        Self {
            created_by,
            comment: Some("buildkit.exporter.image.v0".to_owned()),
            layer: Some(layer),
        }
    }

    pub(super) fn new(created_by: String, layer: Option<VertexId>) -> Self {
        Self {
            created_by,
            comment: Some(HISTORY_COMMENT.to_owned()),
            layer,
        }
    }
}

impl Plan {
    /// The image whose layers and history come first.
    #[must_use]
    pub fn base_image(&self) -> Option<&ImageOp> {
        match &self.graph.vertex(self.base?).op {
            Op::Image(image) => Some(image),
            _ => None,
        }
    }

    /// The vertices that make the new layers, lowest first.
    pub fn layers(&self) -> impl Iterator<Item = VertexId> {
        self.history.iter().filter_map(|entry| entry.layer)
    }

    /// The plan as text, for tests and dry runs: one line a fact, stable.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut text = dump::dump(&self.graph);
        let _ = writeln!(text, "root {}", self.root.index());
        if let Some(base) = self.base {
            let _ = writeln!(text, "base {}", base.index());
        }
        let config = serde_json::to_value(&self.config).unwrap_or_default();
        if let Some(members) = config.as_object() {
            for (name, value) in members {
                match (name.as_str(), value.as_object()) {
                    ("config", Some(members)) => {
                        for (name, value) in members {
                            let _ = writeln!(text, "config {name} {value}");
                        }
                    }
                    _ => {
                        let _ = writeln!(text, "image {name} {value}");
                    }
                }
            }
        }
        for entry in &self.history {
            let layer = match entry.layer {
                Some(vertex) => format!("layer {}", vertex.index()),
                None => "empty".to_owned(),
            };
            let _ = writeln!(text, "history {layer} {:?}", entry.created_by);
        }
        text
    }
}
