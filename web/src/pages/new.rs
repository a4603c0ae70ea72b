//! New vcluster.

use crate::form::Errors;
use crate::shell::Shell;
use crate::{assets, html};
use askama::Template;
use docklet_types::view::{FitView, ImageView, QuotaView, UsageView};

/// The form as it was typed, or its defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewForm {
    pub name: String,
    pub nodes: String,
    pub image: String,
    /// A number of CPUs: `0.5`.
    pub cpu: String,
    pub memory_mib: String,
    pub disk_mib: String,
}

/// Whether what the form asks for finds room now: a part of the page, and the answer to `POST /vclusters/new`.
#[derive(Debug, Clone, Template)]
#[template(path = "parts/new_fit.html")]
pub struct NewFit {
    /// Absent while the form cannot be understood.
    pub fit: Option<FitView>,
}

/// `GET /vclusters/new`, and with errors the answer (422) to a refused `POST /vclusters`.
#[derive(Debug, Clone, Template)]
#[template(path = "new.html")]
pub struct NewPage {
    pub shell: Shell,
    pub form: NewForm,
    /// Fields: `name nodes image cpu memory_mib disk_mib`; others are shown above the form.
    pub errors: Errors,
    pub images: Vec<ImageView>,
    pub usage: UsageView,
    /// Absent for administrators, who have no cap.
    pub quota: Option<QuotaView>,
    pub fit: NewFit,
}

const FIELDS: [&str; 6] = ["name", "nodes", "image", "cpu", "memory_mib", "disk_mib"];

impl NewPage {
    fn general_errors(&self) -> Vec<&str> {
        self.errors.general(&FIELDS)
    }

    fn meters(&self) -> Option<html::Html> {
        self.quota.as_ref().map(|quota| html::quota_meters(&self.usage, quota))
    }

    fn chosen(&self, image: &ImageView) -> bool {
        if self.form.image.is_empty() { image.is_default } else { image.name == self.form.image }
    }

    /// Whether the quota is used up, so that nothing can be created.
    fn is_full(&self) -> bool {
        self.quota.is_some_and(|q| self.usage.nodes >= q.nodes)
    }
}
