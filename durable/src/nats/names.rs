//! Names of streams and subjects, and text that is not safe in them.

use percent_encoding::{
    AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode,
};

use super::error::JetStreamError;

/// The headers of a job.
pub(super) const CODEC: &str = "Microbatch-Codec";
/// When a job that was revived was first appended, in nanoseconds since 1970.
pub(super) const APPENDED: &str = "Microbatch-Appended";
/// The sequence of the dead letter that a job was revived from.
pub(super) const REVIVED: &str = "Microbatch-Revived";

/// The headers that a dead letter has as well.
pub(super) const REASON: &str = "Microbatch-Reason";
pub(super) const ATTEMPT: &str = "Microbatch-Attempt";
/// The sequence that the job had among the live ones.
pub(super) const SEQUENCE: &str = "Microbatch-Sequence";

/// What a job has beside its payload, at most: the names of the headers above, the id as
/// the message id, the codec, and what there is of the reason.
pub(super) const OVERHEAD: usize = 8 << 10;

/// Of the overhead, the bytes for the name of the codec as it is written.
pub(super) const CODEC_LEN: usize = 1 << 10;

/// Of the overhead, the bytes for the reason as it is written.
pub(super) const REASON_LEN: usize = 5 << 10;

/// The names of the streams, the consumer, and the subjects.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) live: String,
    pub(super) dead: String,
    pub(super) freed: String,
    pub(super) consumer: &'static str,
}

impl Names {
    pub(super) fn new(stream: &str) -> Result<Self, JetStreamError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if stream.is_empty() || stream.len() > 128 || !stream.chars().all(is_plain) {
            return Err(JetStreamError::BadOption {
                option: "stream",
                reason: format!(
                    "a name has 1 to 128 letters, digits, `-` and `_`; this is {stream:?}"
                ),
            });
        }
        Ok(Self {
            live: stream.to_owned(),
            dead: format!("{stream}_DEAD"),
            freed: format!("{stream}_FREED"),
            consumer: "workers",
        })
    }

    /// The subject of a live job. `token` is its id as [`encode_id`] writes it.
    pub(super) fn job(&self, token: &str) -> String {
        format!("{}.jobs.{token}", self.live)
    }

    /// The subject of a dead letter.
    pub(super) fn letter(&self, token: &str) -> String {
        format!("{}.dead.{token}", self.live)
    }

    /// The subject of what says that an id was freed.
    pub(super) fn free(&self, token: &str) -> String {
        format!("{}.freed.{token}", self.live)
    }
}

/// What a token of a subject has not: all but letters, digits, `-` and `_`.
const TOKEN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// What the value of a header has not, in ASCII and in one line.
const HEADER: &AsciiSet = &CONTROLS.add(b'%');

/// Writes an id as a token of a subject. Ids that differ have tokens that differ, and the
/// longest has 765 bytes, where a server takes lines of 4096.
pub(super) fn encode_id(id: &str) -> String {
    utf8_percent_encode(id, TOKEN).to_string()
}

/// Writes text as the value of a header, in ASCII and in one line.
pub(super) fn encode_text(text: &str) -> String {
    // A space at an end would be trimmed.
    let inner = utf8_percent_encode(text, HEADER).to_string();
    let start = inner.len() - inner.trim_start_matches(' ').len();
    let end = inner.trim_end_matches(' ').len().max(start);
    let spaces = |count: usize| "%20".repeat(count);
    format!(
        "{}{}{}",
        spaces(start),
        &inner[start..end],
        spaces(inner.len() - end)
    )
}

/// The same, cut so that it has at most so many bytes.
pub(super) fn encode_text_within(text: &str, limit: usize) -> String {
    let whole = encode_text(text);
    if whole.len() <= limit {
        return whole;
    }
    let mark = encode_text(" …");
    let mut end = text.len().min(limit);
    loop {
        end = text.floor_char_boundary_at(end);
        let cut = encode_text(&text[..end]);
        match (cut.len() + mark.len()).checked_sub(limit) {
            None | Some(0) => return cut + &mark,
            _ if end == 0 => return String::new(),
            // Three bytes stand for one at most.
            Some(over) => end -= over.div_ceil(3),
        }
    }
}

trait FloorCharBoundary {
    fn floor_char_boundary_at(&self, at: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_at(&self, mut at: usize) -> usize {
        while !self.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

/// Reads what was written so.
pub(super) fn decode(encoded: &str) -> String {
    percent_decode_str(encoded).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_comes_back_and_is_one_token(id in "\\PC{1,40}|(?s:.{1,40})") {
            let token = encode_id(&id);
            let is_token = |c: char| c.is_ascii_alphanumeric() || "-_%".contains(c);
            prop_assert!(token.chars().all(is_token), "{token}");
            prop_assert_eq!(decode(&token), id);
        }

        #[test]
        fn a_text_comes_back_from_a_header(text in "(?s:.{0,40})") {
            let value = encode_text(&text);
            prop_assert!(value.chars().all(|c| (' '..='~').contains(&c)), "{value}");
            prop_assert_eq!(value.trim(), &value);
            prop_assert_eq!(decode(&value), text);
        }

        #[test]
        fn a_text_is_cut_to_its_limit(text in "(?s:.{0,400})", limit in 16..600usize) {
            let value = encode_text_within(&text, limit);
            prop_assert!(value.len() <= limit);
            let back = decode(&value);
            let whole = back == text;
            prop_assert!(whole || text.starts_with(back.trim_end_matches(" …")), "{back:?}");
        }
    }

    #[test]
    fn a_bad_name_of_a_stream_is_refused() {
        for name in ["", "a.b", "a b", "a*", ">", "é", &"x".repeat(129)] {
            assert!(Names::new(name).is_err(), "{name}");
        }
        assert!(Names::new("microbatch-1_A").is_ok());
    }
}
