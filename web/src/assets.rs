//! Styles, scripts and pictures, embedded at build time under names that hold a hash of their content.
//!
//! `dist/manifest.json` maps the plain name (`app.css`) to the hashed one (`app.3f2a91c0.css`); beside each text file
//! lies its gzipped form. A hashed name never changes its content, so browsers may keep it for ever.

use rust_embed::{EmbeddedFile, RustEmbed};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

#[derive(RustEmbed)]
#[folder = "$CARGO_MANIFEST_DIR/dist"]
struct Dist;

/// Where the master serves [`get`].
pub const PREFIX: &str = "/assets/";

/// For every asset's `Cache-Control`.
pub const CACHE_CONTROL: &str = "public, max-age=31536000, immutable";

/// The policy the pages are written for: no script but ours, nothing from elsewhere, WebSocket and SSE to ourselves.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

static MANIFEST: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    Dist::get("manifest.json").and_then(|file| serde_json::from_slice(&file.data).ok()).unwrap_or_default()
});

/// One file as it is served.
pub struct Asset {
    pub body: Cow<'static, [u8]>,
    /// The same, gzipped; absent where that would not pay.
    pub gzip: Option<Cow<'static, [u8]>>,
    pub content_type: &'static str,
}

/// The file with a hashed name, `app.3f2a91c0.css`.
#[must_use]
pub fn get(name: &str) -> Option<Asset> {
    // The manifest is for the build, the gzipped forms are part of their plain file.
    if !MANIFEST.values().any(|hashed| hashed == name) {
        return None;
    }
    let data = |file: EmbeddedFile| file.data;
    Some(Asset {
        body: Dist::get(name).map(data)?,
        gzip: Dist::get(&format!("{name}.gz")).map(data),
        content_type: content_type(name),
    })
}

/// The address of an asset by its plain name; the plain name itself where the front end was not bundled.
#[must_use]
pub fn url(name: &str) -> String {
    format!("{PREFIX}{}", MANIFEST.get(name).map_or(name, String::as_str))
}

/// Whether the front end was bundled before this was compiled. Without it pages work but are plain.
#[must_use]
pub fn present() -> bool {
    !MANIFEST.is_empty()
}

/// The plain names of all assets with their hashed ones.
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    MANIFEST.iter().map(|(plain, hashed)| (plain.as_str(), hashed.as_str()))
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}
