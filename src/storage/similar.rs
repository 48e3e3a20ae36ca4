//! Jobs of like size together.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use tracing::error;

use super::BatchStorage;
use crate::engine::panics::{catch, trace};
use crate::job::PendingJob;

/// A storage whose batches hold jobs of like size: the oldest job, and those whose keys are
/// nearest to its key.
///
/// Use it where a batch costs as much as its largest job times their number, so that
/// unlike jobs waste the difference: texts that a model pads to the longest one, images
/// that are scaled to one size, requests whose batch is done when the slowest item is. In
/// the training of models this is bucketing by length, as in `tf.data`'s
/// `bucket_by_sequence_length`; here there are no borders of buckets to choose.
///
/// The oldest job is in every batch, so none waits for ever for its like: a job with `n`
/// jobs before it is in one of the next `n + 1` batches. Of jobs with the same key the
/// older go first, also of two jobs equally near. A batch starts with the oldest job, and
/// the others follow by nearness.
///
/// The more jobs are pending, the more alike they are. There are more of them than a batch
/// holds only while batches are waiting for the processor, and at most
/// [`queue_capacity`](crate::MicroBatchBuilder::queue_capacity): let it be several batches.
/// The queue in front of the storage is first come, first served.
///
/// A batch ends at the first neighbour that does not fit under the weight limit. Weights
/// are summed as they are, without what is padded.
///
/// Each job's key is asked for once, when the loop takes it up. If that panics the key is
/// 0. A batch of `b` among `n` jobs is taken in `O(b log n)`.
///
/// # Examples
///
/// ```
/// use microbatch::{CancellationToken, MicroBatch, Similar};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (log, mut batches) = tokio::sync::mpsc::unbounded_channel();
/// let embeddings = MicroBatch::builder(move |texts: Vec<&'static str>| {
///     let logged = log.send(texts.clone());
///     async move { logged.map(|()| texts) }
/// })
/// .max_batch_size(2)
/// .storage(Similar::by(|text: &&'static str| text.len() as u64))
/// .build()?;
///
/// let handles = ["a cat", "a very long sentence", "a dog", "another long sentence"]
///     .map(|text| embeddings.submit(text));
/// tokio::spawn(embeddings.start(CancellationToken::new()));
/// for handle in handles {
///     handle.await?;
/// }
/// assert_eq!(batches.recv().await, Some(vec!["a cat", "a dog"]));
/// let long = vec!["a very long sentence", "another long sentence"];
/// assert_eq!(batches.recv().await, Some(long));
/// # Ok(())
/// # }
/// ```
///
/// Under [`Keyed`](crate::Keyed) and `Tracked` the function sees their entry, whose `job()`
/// is the job.
pub struct Similar<J, R> {
    /// The jobs with each key.
    jobs: BTreeMap<u64, Numbered<J, R>>,
    /// The keys by the numbers of their jobs, which count upwards.
    keys: BTreeMap<u64, u64>,
    next: u64,
    key_of: Box<dyn Fn(&J) -> u64 + Send>,
}

/// Jobs with the same key and their numbers, the oldest first.
type Numbered<J, R> = VecDeque<(u64, PendingJob<J, R>)>;

impl<J, R> Similar<J, R> {
    /// Returns an empty storage, and the function that tells the key of a job: how long or
    /// how large it is.
    ///
    /// # Examples
    ///
    /// ```
    /// # use microbatch::{CancellationToken, MicroBatch, Similar};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # // Each image learns the largest of its batch.
    /// # let scale = |sizes: Vec<u64>| async move {
    /// #     let largest = sizes.iter().copied().max().unwrap_or_default();
    /// #     Ok::<_, String>(vec![largest; sizes.len()])
    /// # };
    /// let images = MicroBatch::builder(scale) // to the size of the largest of a batch
    ///     .max_batch_size(2)
    ///     .storage(Similar::by(|size: &u64| *size))
    ///     .build()?;
    /// let handles = [64, 1024, 128, 800].map(|size| images.submit(size));
    /// tokio::spawn(images.start(CancellationToken::new()));
    ///
    /// let mut scaled = Vec::new();
    /// for handle in handles {
    ///     scaled.push(handle.await?);
    /// }
    /// assert_eq!(scaled, [128, 1024, 128, 1024]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn by<F>(key: F) -> Self
    where
        F: Fn(&J) -> u64 + Send + 'static,
    {
        Self {
            jobs: BTreeMap::new(),
            keys: BTreeMap::new(),
            next: 0,
            key_of: Box::new(key),
        }
    }

    /// Returns the key whose oldest job is nearest to `key`; of two that are equally near,
    /// the key with the older job.
    fn nearest(&self, key: u64) -> Option<u64> {
        let below = self.jobs.range(..=key).next_back();
        let above = self.jobs.range(key..).next();
        let near = |(other, jobs): (&u64, &Numbered<J, R>)| {
            let number = jobs.front().map(|(number, _)| *number);
            (other.abs_diff(key), number, *other)
        };
        let nearest = below.map(near).into_iter().chain(above.map(near)).min();
        nearest.map(|(_, _, other)| other)
    }

    /// Removes the oldest job with that key, if it fits under `room`.
    fn remove(&mut self, key: u64, room: usize) -> Option<PendingJob<J, R>> {
        let jobs = self.jobs.get_mut(&key)?;
        jobs.front().filter(|(_, job)| job.weight() <= room)?;
        let (number, job) = jobs.pop_front()?;
        self.keys.remove(&number);
        if jobs.is_empty() {
            self.jobs.remove(&key);
        }
        Some(job)
    }
}

impl<J: Send + 'static, R: Send + 'static> BatchStorage<J, R> for Similar<J, R> {
    fn len(&self) -> usize {
        self.keys.len()
    }

    fn append(&mut self, job: PendingJob<J, R>) {
        let key = catch(|| (self.key_of)(job.job())).unwrap_or_else(|error| {
            trace(|| error!(%error, "the key of a job panicked"));
            0
        });
        self.keys.insert(self.next, key);
        let jobs = self.jobs.entry(key).or_default();
        jobs.push_back((self.next, job));
        self.next += 1;
    }

    fn take(&mut self, max_jobs: usize, max_weight: usize) -> Vec<PendingJob<J, R>> {
        let mut batch = Vec::new();
        let mut room = max_weight;
        // The oldest job of all is the oldest with its key.
        let Some((_, &oldest)) = self.keys.first_key_value() else {
            return batch;
        };
        while batch.len() < max_jobs {
            let key = self.nearest(oldest);
            let Some(job) = key.and_then(|key| self.remove(key, room)) else {
                break;
            };
            room -= job.weight();
            batch.push(job);
        }
        batch
    }
}

impl<J, R> fmt::Debug for Similar<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Similar")
            .field("len", &self.keys.len())
            .finish_non_exhaustive()
    }
}
