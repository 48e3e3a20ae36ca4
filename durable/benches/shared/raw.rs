//! Jobs of bytes.

use bytes::Bytes;
use microbatch_durable::Codec;

/// About the size of a flight record.
pub(crate) const PAYLOAD: usize = 200;

/// Bytes as they are: encoding is not what is measured.
pub(crate) struct Raw;

impl Codec<Vec<u8>> for Raw {
    const NAME: &'static str = "raw";

    fn encode(&self, job: &Vec<u8>) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
        Ok(job.clone().into())
    }

    fn decode(&self, payload: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(payload.to_vec())
    }
}
