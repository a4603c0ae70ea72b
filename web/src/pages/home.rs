//! Home: a user's vclusters as cards, and what is left of the quota.

use crate::shell::Shell;
use crate::{Fragment, assets, html, link};
use askama::Template;
use docklet_types::size::Size;
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::{AppStatus, AppView, QuotaView, UsageView, VclusterView};

/// A vcluster on the home page.
#[derive(Debug, Clone)]
pub struct HomeVcluster {
    pub view: VclusterView,
    /// Jupyter of its first node, where it was ever started.
    pub jupyter: Option<AppView>,
}

impl HomeVcluster {
    fn open_url(&self) -> Option<&str> {
        self.jupyter.as_ref().filter(|app| app.status == AppStatus::Running).map(|app| app.url.as_str())
    }

    /// Whether its nodes can be used.
    fn is_up(&self) -> bool {
        matches!(self.view.status, Status::Running | Status::Degraded)
    }

    /// Whether Start is the thing to do.
    fn is_stopped(&self) -> bool {
        self.view.status == Status::Stopped
    }
}

/// What the one-click templates create.
#[derive(Debug, Clone)]
pub struct QuickCreate {
    /// A free name.
    pub name: String,
    pub image: String,
    pub size: Size,
}

/// A ready-made cluster on the empty home page.
struct Pick {
    nodes: u32,
    title: &'static str,
    text: &'static str,
}

const PICKS: [Pick; 3] = [
    Pick { nodes: 1, title: "One machine", text: "A notebook, a shell, a place to try things." },
    Pick { nodes: 3, title: "Small cluster", text: "Three machines that reach each other by name and ssh." },
    Pick { nodes: 10, title: "Full rack", text: "Ten machines for MPI, Spark or a class exercise." },
];

/// Everything on the home page that changes while it is open.
#[derive(Debug, Clone)]
pub struct HomeState {
    /// Newest first; for administrators everybody's.
    pub vclusters: Vec<HomeVcluster>,
    pub usage: UsageView,
    /// Absent for administrators, who have no cap.
    pub quota: Option<QuotaView>,
    pub quick: QuickCreate,
    /// The viewer's user name.
    pub viewer: String,
    pub now: Micros,
}

impl HomeState {
    /// All fragments of the page.
    ///
    /// # Errors
    /// None in practice: the templates write into memory.
    pub fn fragments(&self) -> askama::Result<Vec<Fragment>> {
        Ok(vec![
            Fragment { id: HomeCards::ID.to_owned(), html: HomeCards { state: self }.render()? },
            Fragment { id: HomeQuota::ID.to_owned(), html: HomeQuota { state: self }.render()? },
        ])
    }

    fn url(&self, view: &VclusterView, tail: &str) -> String {
        link::vcluster(&view.name, &view.owner, &self.viewer, tail)
    }

    fn terminal(&self, view: &VclusterView) -> String {
        link::terminal(&view.name, &view.owner, &self.viewer, "node1")
    }

    fn jupyter(&self, view: &VclusterView) -> String {
        link::jupyter(&view.name, &view.owner, &self.viewer, "node1")
    }

    fn picks(&self) -> &'static [Pick] {
        &PICKS
    }

    /// Whether the quota has room for that many nodes of the default size.
    fn fits(&self, nodes: &u32) -> bool {
        self.quota.is_none_or(|quota| {
            let n = f64::from(*nodes);
            self.usage.nodes + nodes <= quota.nodes
                && self.usage.cpu + n * f64::from(self.quick.size.cpu) <= quota.cpu + 1e-9
                && self.usage.memory_mib + u64::from(*nodes) * u64::from(self.quick.size.memory_mib) <= quota.memory_mib
        })
    }

    fn meters(&self) -> Option<html::Html> {
        self.quota.as_ref().map(|quota| html::quota_meters(&self.usage, quota))
    }

    /// For an administrator, who sees everybody's: what all of them ask for.
    fn total_nodes(&self) -> u32 {
        self.vclusters.iter().map(|v| v.view.nodes).sum()
    }

    fn total_cpus(&self) -> String {
        html::cpus(self.vclusters.iter().map(|v| f64::from(v.view.nodes) * f64::from(v.view.size.cpu)).sum::<f64>())
    }

    fn total_memory(&self) -> String {
        html::mib(
            self.vclusters.iter().map(|v| u64::from(v.view.nodes) * u64::from(v.view.size.memory_mib)).sum::<u64>(),
        )
    }

    fn running(&self) -> usize {
        self.vclusters.iter().filter(|v| v.is_up()).count()
    }
}

/// The cards. Event and element id: `home-cards`.
#[derive(Debug, Clone, Copy, Template)]
#[template(path = "parts/home_cards.html")]
pub struct HomeCards<'a> {
    pub state: &'a HomeState,
}

impl HomeCards<'_> {
    pub const ID: &'static str = "home-cards";
}

/// The quota bars. Event and element id: `home-quota`.
#[derive(Debug, Clone, Copy, Template)]
#[template(path = "parts/home_quota.html")]
pub struct HomeQuota<'a> {
    pub state: &'a HomeState,
}

impl HomeQuota<'_> {
    pub const ID: &'static str = "home-quota";
}

/// `GET /`
#[derive(Debug, Clone, Template)]
#[template(path = "home.html")]
pub struct HomePage {
    pub shell: Shell,
    pub state: HomeState,
}
