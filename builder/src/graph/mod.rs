//! The layer graph: vertices whose inputs always have smaller ids, so that there are no cycles
//! and one pass in order of ids sees inputs before what reads them.

pub mod dump;
pub mod limits;
pub mod op;

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use kiln_registry::digest::{Digest, Hasher};

pub use limits::{Amount, LimitError, Limits, Resources, Ulimit};
pub use op::{
    ContextOp, CopyOp, CopySource, FetchOp, GitOp, ImageOp, MkdirOp, MountOp, Network, Op, Origin,
    RunOp, Script, Security,
};

/// Version of the encoding that [`Vertex::digest`] hashes; a change of [`Op`] raises it.
const ENCODING: &[u8] = b"kiln op 1\n";

/// Names a vertex of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VertexId(u32);

impl VertexId {
    /// Its place in [`Graph::vertices`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One operation with its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vertex {
    /// What it does.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<VertexId>,
    /// How progress names it, for example `[builder 2/5] RUN make`.
    pub name: String,
    /// Where it was written.
    pub origin: Option<Origin>,
}

impl Vertex {
    /// Digest of the operation alone, without its inputs.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(ENCODING);
        // Serialising plain structs, strings and numbers cannot fail.
        hasher.update(&serde_json::to_vec(&self.op).unwrap_or_default());
        hasher.finish()
    }
}

/// A graph of operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    vertices: Vec<Vertex>,
    /// The vertices whose inputs and operation have a hash.
    hashes: HashMap<u64, Vec<usize>>,
}

impl Graph {
    /// Adds a vertex, or finds the same one: equal operations on equal inputs are one vertex.
    ///
    /// # Panics
    /// When an input is not a vertex of this graph, which is a bug of the caller.
    pub fn add(&mut self, vertex: Vertex) -> VertexId {
        assert!(
            vertex
                .inputs
                .iter()
                .all(|input| input.index() < self.vertices.len()),
            "inputs come first"
        );
        let mut hasher = DefaultHasher::new();
        (&vertex.inputs, &vertex.op).hash(&mut hasher);
        let alike = self.hashes.entry(hasher.finish()).or_default();
        let same = |known: &Vertex| known.inputs == vertex.inputs && known.op == vertex.op;
        let known = alike.iter().find(|index| same(&self.vertices[**index]));
        let index = known.copied().unwrap_or_else(|| {
            alike.push(self.vertices.len());
            self.vertices.push(vertex);
            self.vertices.len() - 1
        });
        VertexId(
            u32::try_from(index)
                .expect("a Dockerfile of 4 billion instructions does not fit in memory"),
        )
    }

    /// The vertices in order of their ids.
    #[must_use]
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// All ids, in order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = VertexId> + use<> {
        (0..self.vertices.len()).map(|index| VertexId(u32::try_from(index).unwrap_or(u32::MAX)))
    }

    /// Whether a process will run upon the result of a vertex, or upon that with more layers.
    #[must_use]
    pub fn is_run_upon(&self, id: VertexId) -> bool {
        let mut upon = BTreeSet::from([id]);
        for above in self.ids().skip(id.index() + 1) {
            let vertex = self.vertex(above);
            if !vertex
                .inputs
                .first()
                .is_some_and(|base| upon.contains(base))
            {
                continue;
            }
            match vertex.op {
                Op::Run(_) => return true,
                Op::Copy(_) | Op::Mkdir(_) => drop(upon.insert(above)),
                _ => {}
            }
        }
        false
    }

    /// One vertex.
    ///
    /// # Panics
    /// When the id is of another graph.
    #[must_use]
    pub fn vertex(&self, id: VertexId) -> &Vertex {
        &self.vertices[id.index()]
    }
}
