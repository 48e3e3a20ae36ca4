//! How a job becomes bytes and comes back.

use std::error::Error;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Makes bytes of a job, and a job of bytes.
///
/// Jobs outlive deployments, so old bytes meet new types: take a format that names its
/// fields. The name of the codec is stored with each job. A job that was written by a
/// codec of another name, or does not decode, goes to the dead letters with its bytes
/// intact, and can be revived once there is a drain that reads it.
///
/// # Examples
///
/// A name of one's own tells generations of a type apart:
///
/// ```
/// use bytes::Bytes;
/// use microbatch_durable::{Codec, Json};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Order { item: String }
///
/// struct OrderV2;
///
/// impl Codec<Order> for OrderV2 {
///     const NAME: &'static str = "order/2";
///
///     fn encode(&self, job: &Order) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
///         Json.encode(job)
///     }
///     fn decode(&self, payload: &[u8]) -> Result<Order, Box<dyn std::error::Error + Send + Sync>> {
///         Json.decode(payload)
///     }
/// }
///
/// let bytes = OrderV2.encode(&Order { item: "fig".to_owned() }).unwrap();
/// assert_eq!(bytes, r#"{"item":"fig"}"#);
/// assert!(OrderV2.decode(b"{}").is_err());
/// ```
pub trait Codec<J>: Send + Sync + 'static {
    /// Stored with each job.
    const NAME: &'static str;

    /// Makes bytes of a job.
    ///
    /// # Errors
    ///
    /// Whatever keeps the job from being written; its caller gets it as
    /// [`Refusal::Unencodable`](crate::Refusal::Unencodable), and a panic likewise.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Codec, Json};
    ///
    /// let bytes = Json.encode(&vec![1, 2]).unwrap();
    /// assert_eq!(bytes, "[1,2]");
    /// ```
    fn encode(&self, job: &J) -> Result<Bytes, Box<dyn Error + Send + Sync>>;

    /// Makes a job of bytes.
    ///
    /// # Errors
    ///
    /// Whatever keeps the bytes from being read; the job goes to the dead letters with it,
    /// as it does after a panic.
    ///
    /// # Examples
    ///
    /// ```
    /// use microbatch_durable::{Codec, Json};
    ///
    /// let job: Vec<u32> = Json.decode(b"[1,2]").unwrap();
    /// assert_eq!(job, [1, 2]);
    /// let error = Codec::<Vec<u32>>::decode(&Json, b"[1,").unwrap_err();
    /// assert!(error.to_string().starts_with("EOF"));
    /// ```
    fn decode(&self, payload: &[u8]) -> Result<J, Box<dyn Error + Send + Sync>>;
}

/// JSON by `serde_json`, the default: it can be read without the type, and fields may be
/// added (`#[serde(default)]`) while old jobs wait. Its name is `json`.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{Codec, Json};
///
/// assert_eq!(<Json as Codec<String>>::NAME, "json");
/// let bytes = Json.encode(&"hello".to_owned()).unwrap();
/// assert_eq!(bytes, "\"hello\"");
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Json;

impl<J: Serialize + DeserializeOwned> Codec<J> for Json {
    const NAME: &'static str = "json";

    fn encode(&self, job: &J) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
        Ok(serde_json::to_vec(job)?.into())
    }

    fn decode(&self, payload: &[u8]) -> Result<J, Box<dyn Error + Send + Sync>> {
        Ok(serde_json::from_slice(payload)?)
    }
}

/// `MessagePack` with the names of the fields, by `rmp-serde`: smaller than JSON, and read
/// with a tool only. Fields may be added as with [`Json`]. Its name is `messagepack`.
///
/// # Examples
///
/// ```
/// use microbatch_durable::{Codec, MessagePack};
///
/// let job = ("fig".to_owned(), 3_u8);
/// let bytes = MessagePack.encode(&job).unwrap();
/// assert_eq!(&bytes[..], [0x92, 0xa3, b'f', b'i', b'g', 3]);
/// let back: (String, u8) = MessagePack.decode(&bytes).unwrap();
/// assert_eq!(back, job);
/// ```
#[cfg(feature = "messagepack")]
#[derive(Debug, Clone, Copy, Default)]
pub struct MessagePack;

#[cfg(feature = "messagepack")]
impl<J: Serialize + DeserializeOwned> Codec<J> for MessagePack {
    const NAME: &'static str = "messagepack";

    fn encode(&self, job: &J) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
        Ok(rmp_serde::to_vec_named(job)?.into())
    }

    fn decode(&self, payload: &[u8]) -> Result<J, Box<dyn Error + Send + Sync>> {
        Ok(rmp_serde::from_slice(payload)?)
    }
}
