//! The portal's pages: view models in, HTML out. Nothing here reads a clock, a store or a socket.
//!
//! Each page is one struct that derives [`askama::Template`]; the master fills it from what it knows and sends
//! `page.render()`. Every page has a [`Shell`]: who looks, in which colours, where in the navigation. Pages that live
//! ([`HomePage`], [`VclusterPage`], [`JupyterPage`]) hold a state ([`HomeState`], [`VclusterState`]) whose
//! `fragments()` are the same pieces of HTML that the page was made of: the master sends those that changed over SSE,
//! and the browser puts each in the place of the element with its id.
//!
//! Styles and scripts are built from `assets-src/` into `dist/` by `build.mjs` and embedded: see [`assets`].

pub mod assets;
pub mod form;
pub mod html;
pub mod link;
pub mod live;
mod pages;
mod shell;

pub use askama::Template;
pub use form::{Errors, FieldError};
pub use live::Fragment;
pub use pages::account::{AccountPage, PasswordForm, SessionRow};
pub use pages::home::{HomeCards, HomePage, HomeQuota, HomeState, HomeVcluster, QuickCreate};
pub use pages::hosts::{HostNode, HostPage, HostsPage, MaintenanceForm};
pub use pages::images::ImagesPage;
pub use pages::jupyter::{JupyterPage, JupyterProgress};
pub use pages::new::{NewFit, NewForm, NewPage};
pub use pages::problem::{ErrorPage, NotFoundPage};
pub use pages::sign_in::SignInPage;
pub use pages::terminal::TerminalPage;
pub use pages::users::{UserDeletePage, UserForm, UsersPage};
pub use pages::vcluster::{
    NodeApp, PortForm, ScaleForm, VclusterApps, VclusterDeletePage, VclusterHeader, VclusterNext, VclusterNodes,
    VclusterPage, VclusterPorts, VclusterState, VclusterTimeline,
};
pub use shell::{Flash, FlashKind, Nav, Notice, Shell, Theme, Viewer};
