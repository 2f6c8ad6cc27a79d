//! What a run would do, without doing it (`kiln build --plan`).

use std::collections::{BTreeMap, BTreeSet};

use kiln_registry::spec::ChainId;
use serde::Serialize;

use super::define::{Reading, reads_root};
use super::{Failure, Schedule, StepReport};
use crate::cache::remote::Found;
use crate::cache::{content_key, identity};
use crate::event::masked;
use crate::graph::{Op, Vertex, VertexId};
use crate::snapshot::SnapshotId;
use crate::step::{Stack, StepError};

/// What a run would do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Forecast {
    /// The steps that it needs, in order: `hit`, or `miss` with its reason and how long it took before.
    pub steps: Vec<StepReport>,
    /// Steps that would be executed.
    pub misses: usize,
    /// How long these took before, seconds, as far as that is known.
    pub seconds: f64,
    /// Steps that would be executed, and of which nobody knows how long they take.
    pub unknown: usize,
    /// What would be fetched: layers of images, and of steps that a cache elsewhere has.
    pub fetches: Vec<Fetch>,
    /// All these bytes.
    pub fetch_bytes: u64,
}

/// Something to be fetched.
#[derive(Clone, Debug, Serialize)]
pub struct Fetch {
    /// The image, or the step whose layer a cache elsewhere has.
    pub what: String,
    /// Bytes that are not here.
    pub bytes: u64,
}

impl Forecast {
    /// Whether there is nothing to execute and nothing to fetch.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.misses == 0 && self.fetch_bytes == 0
    }

    fn fetch(&mut self, what: &str, bytes: u64) {
        self.fetches.push(Fetch {
            what: masked(what),
            bytes,
        });
        self.fetch_bytes += bytes;
    }
}

impl Schedule {
    /// Foresees what a run would do. Files are read for keys, URLs and git repositories are asked for;
    /// no step is executed, and no layer fetched. A step of which a changed one is part may turn out
    /// to be in the cache once that has been executed, where it leaves the same bytes as before.
    ///
    /// # Errors
    /// The [`Failure`] of what cannot even be foreseen: missing sources, say.
    pub async fn forecast(&mut self, root: VertexId) -> Result<Forecast, Failure> {
        self.define(root, Reading::First).await?;
        let mut foreseen: BTreeMap<VertexId, Stack> = BTreeMap::new();
        let mut hits = BTreeSet::new();
        let mut imported = BTreeMap::new();
        for id in self.definitions.ids() {
            let fail = |error| Failure { vertex: id, error };
            let stack = match &self.graph.vertex(id).op {
                Op::Image(image) => Some(Stack {
                    image: image.layers.clone(),
                    built: Vec::new(),
                }),
                Op::Scratch | Op::Context(_) => Some(Stack::default()),
                Op::Fetch(_) | Op::Git(_) => Some(self.finished(id)),
                Op::Run(_) | Op::Copy(_) | Op::Mkdir(_) => self
                    .foresee(id, &foreseen, &mut imported)
                    .await
                    .map_err(fail)?,
            };
            if let Some(stack) = stack {
                hits.insert(id);
                foreseen.insert(id, stack);
            }
        }
        self.forecast_of(root, &hits, &imported).await
    }

    /// The result of a step that would not be executed.
    async fn foresee(
        &self,
        id: VertexId,
        foreseen: &BTreeMap<VertexId, Stack>,
        imported: &mut BTreeMap<VertexId, u64>,
    ) -> Result<Option<Stack>, StepError> {
        let vertex = self.graph.vertex(id);
        if self.is_forced(id) {
            return Ok(None);
        }
        let root = foreseen.get(&vertex.inputs[0]);
        let known = if self.open.contains(&id) {
            None
        } else {
            self.recorded(self.defined(id).key).await?
        };
        if let (Some(record), Some(root)) = (known, root) {
            let upon = record.upon.as_deref().unwrap_or_default();
            let marks = upon.split(' ').zip(&vertex.inputs);
            let other = |(mark, input): (&str, &VertexId)| {
                let now = foreseen.get(input);
                !matches!(mark, "-" | "")
                    && now.is_some_and(|now| identity(&now.identity()) != mark)
            };
            if !marks.into_iter().any(other) {
                return Ok(Some(root.clone().with(record.snapshot)));
            }
        }
        let inputs: Option<Vec<Stack>> = vertex.inputs[1..]
            .iter()
            .map(|input| foreseen.get(input).cloned())
            .collect();
        let (Some(root), Some(inputs)) = (root, inputs) else {
            return Ok(None);
        };
        if !self.open.contains(&id)
            && let Some(found) = self.imports(self.defined(id).key).await.first()
        {
            let (layer, bytes) = self.foresee_import(id, found)?;
            if bytes > 0 {
                imported.insert(id, bytes);
            }
            return Ok(Some(root.clone().with(layer)));
        }
        let layer = self.foresee_content(id, root, inputs).await?;
        Ok(layer.map(|layer| root.clone().with(layer)))
    }

    /// The layer of a step that a cache elsewhere has, and how many bytes of it would be fetched.
    fn foresee_import(&self, id: VertexId, found: &Found) -> Result<(SnapshotId, u64), StepError> {
        let layer = &found.layer;
        if let Some(here) = self.worker.store.layer_snapshot(layer.facts.diff_id)? {
            return Ok((here, 0));
        }
        // What only another layer of the image stands on is fetched when a step needs its files.
        let needed = self.exported.contains(&id);
        Ok((
            SnapshotId::random(),
            if needed { layer.blob.size } else { 0 },
        ))
    }

    /// The layer that is remembered for what a step reads, where that can be read without fetching or
    /// unpacking anything.
    async fn foresee_content(
        &self,
        id: VertexId,
        root: &Stack,
        inputs: Vec<Stack>,
    ) -> Result<Option<SnapshotId>, StepError> {
        let vertex = self.graph.vertex(id);
        let content = match (&vertex.op, self.defined(id).digested()) {
            (_, Some((_, digest))) => Some(digest),
            (Op::Copy(_), None) if self.are_here(&inputs)? => {
                let files = self.select(id, inputs).await?;
                self.read(id, &files, Reading::First).await?;
                files.taken_digest()
            }
            (Op::Copy(_), None) => return Ok(None),
            (Op::Run(_), None) if inputs.is_empty() => None,
            (Op::Run(_), None) if self.are_here(&inputs)? => {
                self.bound(id, inputs, self.copied(vertex)).await?
            }
            (Op::Run(_), None) => return Ok(None),
            _ => None,
        };
        let root = if reads_root(vertex) {
            root.clone()
        } else {
            Stack::default()
        };
        let key = content_key(vertex, &root.identity(), content.as_ref());
        self.remembered(key).await
    }

    /// Whether the files of results lie in the store, unpacked.
    fn are_here(&self, stacks: &[Stack]) -> Result<bool, StepError> {
        for stack in stacks {
            for (chain, diff_id) in ChainId::of(&stack.image).into_iter().zip(&stack.image) {
                let store = &self.worker.store;
                if store.chain_snapshot(chain)?.is_none()
                    && store.sealed_snapshot(*diff_id)?.is_none()
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The forecast for what the root needs: of a step that is there only what it stands on, of one
    /// that is not all that it reads.
    async fn forecast_of(
        &self,
        root: VertexId,
        hits: &BTreeSet<VertexId>,
        imported: &BTreeMap<VertexId, u64>,
    ) -> Result<Forecast, Failure> {
        let mut needed = BTreeSet::from([root]);
        for id in self.definitions.ids().rev() {
            if needed.contains(&id) {
                let inputs = &self.graph.vertex(id).inputs;
                let count = if hits.contains(&id) { 1 } else { inputs.len() };
                needed.extend(inputs.iter().take(count));
            }
        }
        let mut forecast = Forecast::default();
        for id in needed {
            let fail = |error| Failure { vertex: id, error };
            match &self.graph.vertex(id).op {
                Op::Image(_) => self.foresee_fetch(id, &mut forecast).map_err(fail)?,
                Op::Run(_) | Op::Copy(_) | Op::Mkdir(_) => {
                    let hit = hits.contains(&id);
                    if let Some(bytes) = imported.get(&id) {
                        forecast.fetch(&self.graph.vertex(id).name, *bytes);
                    }
                    self.foresee_step(id, hit, &mut forecast)
                        .await
                        .map_err(fail)?;
                }
                Op::Scratch | Op::Context(_) | Op::Fetch(_) | Op::Git(_) => {}
            }
        }
        Ok(forecast)
    }

    async fn foresee_step(
        &self,
        id: VertexId,
        hit: bool,
        forecast: &mut Forecast,
    ) -> Result<(), StepError> {
        let Some(history) = &self.history else {
            return Ok(());
        };
        let mut step = history.blank(id);
        step.result = if hit { "hit" } else { "miss" };
        if !hit {
            let reason = self.explain(id, self.defined(id).digested()).await?;
            step.reason = Some(reason.json());
            step.seconds = history.former_seconds(id)?;
            forecast.misses += 1;
            match step.seconds {
                Some(seconds) => forecast.seconds += seconds,
                None => forecast.unknown += 1,
            }
        }
        forecast.steps.push(step);
        Ok(())
    }

    fn foresee_fetch(&self, id: VertexId, forecast: &mut Forecast) -> Result<(), StepError> {
        let Op::Image(image) = &self.graph.vertex(id).op else {
            return Ok(());
        };
        let Some(source) = self.worker.images.get(&image.config) else {
            return Ok(());
        };
        let bytes = source.missing(&self.worker.store);
        if bytes > 0 {
            forecast.fetch(&image.name, bytes);
        }
        Ok(())
    }

    /// What a forecast has fetched to compute keys, and nobody needs: the files behind URLs.
    pub fn forget_downloads(&self) {
        for id in self.definitions.ids() {
            let vertex: &Vertex = self.graph.vertex(id);
            if let (Op::Fetch(_), Some(layer)) = (&vertex.op, self.finished(id).built.last()) {
                // What stays is space that the next build's download takes, too.
                drop(self.worker.snapshots.forget(layer));
            }
        }
    }
}
