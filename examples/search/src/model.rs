//! Tokens to vectors: MiniLM in `rten`.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::{fs, iter};

use rten::{ModelOptions, NodeId, RunOptions, ThreadPool};
use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use crate::{Error, Tokens, cache};

/// How many numbers a vector has.
pub const DIMENSIONS: usize = 384;

/// A sentence embedding. It may be shared between threads, and computes on that of its
/// caller's choice.
pub struct Model {
    model: rten::Model,
    ids: NodeId,
    mask: NodeId,
    output: NodeId,
    fingerprint: u64,
}

impl Model {
    /// Reads a model. Its weights are laid out for the processor here, once: without that
    /// a pass takes longer, the shorter its batch the more, and batches look better than
    /// they are.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Io`]; [`Error::Malformed`] if it is no ONNX model with
    /// the inputs and the output of MiniLM.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(Error::at(path))?;
        let fingerprint = cache::hash(&bytes);
        let loaded = ModelOptions::with_all_ops()
            .prepack_weights(true)
            .load(bytes);
        let model = loaded.map_err(|error| Error::malformed(path, error))?;
        let node = |name: &str| {
            let found = model.node_id(name);
            found.map_err(|_| Error::malformed(path, format!("it has no node `{name}`")))
        };
        Ok(Self {
            ids: node("input_ids")?,
            mask: node("attention_mask")?,
            // The mean over a text's own tokens.
            output: node("461")?,
            fingerprint,
            model,
        })
    }

    /// Returns a number that another file would not have.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Returns a vector of length one for each text, one after the other, in one pass: the
    /// texts are padded to the longest, and the padding is masked.
    ///
    /// # Errors
    ///
    /// [`Error::Compute`].
    pub fn embed(&self, texts: &[Tokens], threads: &Arc<ThreadPool>) -> Result<Vec<f32>, Error> {
        let longest = texts.iter().map(Tokens::len).max().unwrap_or(0);
        let shape = [texts.len(), longest];
        let padded = |of: &dyn Fn(i32) -> i32| {
            let rows = texts.iter().flat_map(|text| {
                let padding = longest - text.len();
                let ids = text.ids().iter().map(|&id| of(id));
                ids.chain(iter::repeat_n(0, padding))
            });
            Tensor::from_data(&shape, rows.collect::<Vec<i32>>())
        };
        let (ids, mask) = (padded(&|id| id), padded(&|_| 1));
        let inputs = vec![(self.ids, ids.into()), (self.mask, mask.into())];
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(threads)));
        let run = self.model.run_n(inputs, [self.output], Some(options));
        let [vectors] = run.map_err(Error::compute)?;
        let vectors: Tensor<f32> = vectors.try_into().map_err(Error::compute)?;
        if vectors.shape() != [texts.len(), DIMENSIONS] {
            let shape = vectors.shape();
            let why = format!("the output has the shape {shape:?}");
            return Err(Error::compute(why));
        }
        let mut vectors = vectors.to_vec();
        for vector in vectors.chunks_mut(DIMENSIONS) {
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            for x in vector {
                *x /= length.max(f32::MIN_POSITIVE);
            }
        }
        Ok(vectors)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").finish_non_exhaustive()
    }
}
