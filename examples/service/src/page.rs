//! The page, in one file, which has nothing in it that a caller sent.

use std::sync::LazyLock;

use axum::http::{HeaderName, header};
use axum::response::Html;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

/// Allows the page's own script and style, known by their hashes, and nothing else.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let script = hash("<script>", "</script>");
    let style = hash("<style>", "</style>");
    format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

pub async fn page() -> ([(HeaderName, &'static str); 1], Html<&'static str>) {
    let policy = [(header::CONTENT_SECURITY_POLICY, POLICY.as_str())];
    (policy, Html(PAGE))
}

fn hash(start: &str, end: &str) -> String {
    let (_, rest) = PAGE.split_once(start).unwrap_or_default();
    let (text, _) = rest.split_once(end).unwrap_or_default();
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}
