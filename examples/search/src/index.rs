//! Exact search: all scores of a batch of queries in one product of matrices.

use std::fmt;
use std::sync::Arc;

use rten::ThreadPool;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::Matrix;

use crate::Error;
use crate::model::DIMENSIONS;

/// A row of the index and how like the query it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The row, from 0.
    pub row: usize,
    /// The cosine of the angle between both vectors: 1 at the most.
    pub score: f32,
}

/// The vectors that are searched, laid out for the processor. It may be shared between
/// threads.
pub struct Index {
    /// None if there are no rows, which cannot be laid out.
    vectors: Option<PackedBMatrix<f32>>,
}

impl Index {
    /// Makes an index of vectors of [`DIMENSIONS`] numbers, one after the other.
    ///
    /// # Panics
    ///
    /// If there are numbers left over.
    #[must_use]
    pub fn new(vectors: &[f32]) -> Self {
        let rows = vectors.len() / DIMENSIONS;
        let vectors = Matrix::from_data([rows, DIMENSIONS], vectors);
        let pack = || GemmExecutor::<f32>::default().prepack_b(vectors.transposed());
        let vectors = (rows > 0).then(pack);
        Self { vectors }
    }

    /// Returns how many vectors there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.vectors.as_ref().map_or(0, PackedBMatrix::cols)
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows();
        f.debug_struct("Index").field("rows", &rows).finish()
    }
}

/// What a thread needs to search an index. It is not `Send`, and need not be.
pub struct Scanner {
    gemm: GemmExecutor<f32>,
    threads: Arc<ThreadPool>,
    scores: Vec<f32>,
}

impl Scanner {
    /// Returns a scanner that computes on these threads.
    #[must_use]
    pub fn new(threads: Arc<ThreadPool>) -> Self {
        Self {
            gemm: GemmExecutor::default(),
            threads,
            scores: Vec::new(),
        }
    }

    /// Returns the `count` best rows for each query, the best first; of rows that are
    /// equally good the first. The queries are vectors one after the other, and those of
    /// the index are read once for all of them.
    ///
    /// # Errors
    ///
    /// [`Error::Compute`].
    ///
    /// # Panics
    ///
    /// If there are numbers left over.
    pub fn best(
        &mut self,
        index: &Index,
        queries: &[f32],
        count: usize,
    ) -> Result<Vec<Vec<Hit>>, Error> {
        let (rows, number) = (index.rows(), queries.len() / DIMENSIONS);
        let Some(vectors) = &index.vectors else {
            return Ok(vec![Vec::new(); number]);
        };
        self.scores.resize(number * rows, 0.0);
        let queries = Matrix::from_data([number, DIMENSIONS], queries);
        let (gemm, scores) = (&self.gemm, &mut self.scores);
        let product = self.threads.run(|| {
            let queries = GemmInputA::Unpacked(queries);
            let vectors = GemmInputB::Packed(vectors);
            gemm.gemm(scores, queries, vectors, GemmOptions::default())
        });
        product.map_err(Error::compute)?;
        let scores = self.scores.chunks(rows);
        Ok(scores.map(|scores| highest(scores, count)).collect())
    }
}

impl fmt::Debug for Scanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scanner").finish_non_exhaustive()
    }
}

/// Returns the highest of these scores in order. Most are compared with the lowest of
/// them only.
fn highest(scores: &[f32], count: usize) -> Vec<Hit> {
    let mut hits: Vec<Hit> = Vec::with_capacity(count + 1);
    for (row, &score) in scores.iter().enumerate() {
        if hits.len() == count && hits.last().is_none_or(|last| score <= last.score) {
            continue;
        }
        let place = hits.partition_point(|hit| hit.score >= score);
        hits.insert(place, Hit { row, score });
        hits.truncate(count);
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_scores_come_in_order_and_the_first_of_equals() {
        let rows = |count| {
            let hits = highest(&[0.1, 0.9, 0.5, 0.9, -1.0], count);
            hits.iter().map(|hit| hit.row).collect::<Vec<_>>()
        };
        assert!(rows(0).is_empty());
        assert_eq!(rows(2), [1, 3]);
        assert_eq!(rows(3), [1, 3, 2]);
        assert_eq!(rows(9), [1, 3, 2, 0, 4]);
    }
}
