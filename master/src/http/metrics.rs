//! `GET /metrics`: what Prometheus reads. Names are `docklet_<thing>_<unit>`; labels never name a user or a vcluster.

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::http::Method;
use actix_web::{HttpResponse, web};
use docklet_types::status::Status;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::problem::ApiError;
use crate::app::hosts::Hosts;
use crate::app::vclusters::Vclusters;
use crate::proxy::Proxy;
use crate::reconcile::ClusterView;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: String,
}

type Seconds = Family<MethodRoute, Histogram, fn() -> Histogram>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodRoute {
    method: String,
    route: String,
}

/// See the module.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    seconds: Seconds,
    vclusters: Family<StatusLabel, Gauge>,
    hosts: Family<StatusLabel, Gauge>,
    masters: Gauge,
    nodes: Gauge,
    nodes_ready: Gauge,
    nodes_warm: Gauge,
    store_up: Gauge,
    maintenance: Gauge,
    proxy_requests: Gauge,
    proxy_dials: Gauge,
    proxy_dial_failures: Gauge,
    proxy_tunnels: Gauge,
    terminals: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("docklet");
        let requests = Family::default();
        registry.register("http_requests", "Requests answered by the portal and the API", requests.clone());
        let seconds: Seconds = Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 14)));
        registry.register("http_request_seconds", "From request to the head of its answer", seconds.clone());
        let mut family = |name, help| {
            let family = Family::<StatusLabel, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let vclusters = family("vclusters_count", "Vclusters by status");
        let hosts = family("hosts_count", "Hosts by status");
        let mut gauge = |name, help| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        Self {
            masters: gauge("masters_count", "Masters that are at work"),
            nodes: gauge("nodes_count", "Nodes that are wanted"),
            nodes_ready: gauge("nodes_ready_count", "Nodes that are ready"),
            nodes_warm: gauge("nodes_warm_count", "Nodes booted and frozen for the next vclusters"),
            store_up: gauge("store_up_bool", "1 while the store answers"),
            maintenance: gauge("maintenance_bool", "1 while maintenance is on"),
            proxy_requests: gauge("proxy_requests_count", "Requests to apps since the start"),
            proxy_dials: gauge("proxy_dials_count", "Connections made into nodes since the start"),
            proxy_dial_failures: gauge(
                "proxy_dial_failures_count",
                "Connections into nodes that failed since the start",
            ),
            proxy_tunnels: gauge("proxy_tunnels_count", "Upgraded connections that are open"),
            terminals: gauge("terminals_count", "Terminals that are open"),
            requests,
            seconds,
            vclusters,
            hosts,
            registry: Mutex::new(registry),
        }
    }

    pub fn observe(&self, method: &Method, route: &str, status: u16, took: Duration) {
        // A client may invent methods; each would be a series of its own.
        let known =
            [Method::GET, Method::POST, Method::PATCH, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS];
        let method = if known.contains(method) { method.as_str() } else { "other" }.to_owned();
        let route = route.to_owned();
        self.seconds
            .get_or_create(&MethodRoute { method: method.clone(), route: route.clone() })
            .observe(took.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { method, route, status }).inc();
    }

    fn refresh(&self, vclusters: &Vclusters, hosts: &Hosts, view: &ClusterView, proxy: &Proxy) {
        let mut by_status: BTreeMap<&str, i64> = Status::ALL.iter().map(|s| (s.as_str(), 0)).collect();
        let (mut nodes, mut ready) = (0, 0);
        for shown in vclusters.list(None) {
            *by_status.entry(shown.status.as_str()).or_default() += 1;
            nodes += i64::from(shown.nodes);
            ready += i64::from(shown.nodes_ready);
        }
        for (status, count) in by_status {
            self.vclusters.get_or_create(&StatusLabel { status: status.to_owned() }).set(count);
        }
        let mut by_status: BTreeMap<String, i64> =
            ["ready", "cordoned", "draining", "drained", "clearing", "unreachable", "failed"]
                .iter()
                .map(|s| ((*s).to_owned(), 0))
                .collect();
        let mut warm = 0;
        for host in hosts.list() {
            warm += i64::from(host.nodes_warm);
            *by_status.entry(host.status).or_default() += 1;
        }
        for (status, count) in by_status {
            self.hosts.get_or_create(&StatusLabel { status }).set(count);
        }
        self.masters.set(i64::try_from(view.masters().len()).unwrap_or(i64::MAX));
        self.nodes.set(nodes);
        self.nodes_ready.set(ready);
        self.nodes_warm.set(warm);
        self.store_up.set(i64::from(view.is_live()));
        self.maintenance.set(i64::from(view.maintenance().is_some()));
        let counters = &proxy.counters;
        for (gauge, counter) in [
            (&self.proxy_requests, &counters.requests),
            (&self.proxy_dials, &counters.dials),
            (&self.proxy_dial_failures, &counters.dial_failures),
            (&self.proxy_tunnels, &counters.tunnels_open),
            (&self.terminals, &counters.terminals_open),
        ] {
            gauge.set(as_gauge(counter.load(Ordering::Relaxed)));
        }
    }
}

/// What Prometheus reads.
#[utoipa::path(get, path = "/metrics", tag = "health", security(()), responses(
    (status = 200, description = "OpenMetrics", body = String, content_type = "application/openmetrics-text")))]
pub async fn show(
    metrics: web::Data<Metrics>,
    vclusters: web::Data<Vclusters>,
    hosts: web::Data<Hosts>,
    view: web::Data<ClusterView>,
    proxy: web::Data<Proxy>,
) -> Result<HttpResponse, ApiError> {
    let (vclusters, hosts, view, proxy): (Arc<_>, Arc<_>, Arc<_>, Arc<_>) =
        (vclusters.into_inner(), hosts.into_inner(), view.into_inner(), proxy.into_inner());
    metrics.refresh(&vclusters, &hosts, &view, &proxy);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics.registry.lock()).map_err(ApiError::internal)?;
    Ok(HttpResponse::Ok().content_type("application/openmetrics-text; version=1.0.0; charset=utf-8").body(text))
}
