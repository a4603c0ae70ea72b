//! The images that nodes are made from.

use crate::shell::Shell;
use crate::{assets, html};
use askama::Template;
use docklet_types::view::ImageView;

/// `GET /images`
#[derive(Debug, Clone, Template)]
#[template(path = "images.html")]
pub struct ImagesPage {
    pub shell: Shell,
    pub images: Vec<ImageView>,
}

/// Enough of a digest to tell two apart.
pub(crate) fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}
