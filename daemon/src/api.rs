//! The HTTP interface: routes, identity, and the way to the engine and to the store's readers.
//!
//! ```text
//!  request ─▶ bounds ─▶ Caller (key → subject, scopes) ─▶ handler ─┬▶ Gateway (writes)
//!                                                                  └▶ Readers (pages)
//! ```
//!
//! Owner: handlers hold an `Api` (cheap to clone). Invariants: identity comes from the key (DESIGN
//! 14); what belongs to another subject looks as if it did not exist; every route stands in
//! `routes`, from which the router and the document are both made. Absent: decisions about messages
//! (`core`), waiting for the disk (`engine`).

pub(crate) mod body;
mod caller;
pub(crate) mod config;
mod document;
mod files;
mod messages;
mod openai;
mod operate;
pub(crate) mod problem;
mod readers;
mod remedy;
mod sessions;
pub(crate) mod shape;
mod stream;
mod why;
pub(crate) mod words;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use dormouse_core::limits;
use tokio::sync::watch;

pub(crate) use readers::Readers;

use crate::engine::hands::Drivers;
use crate::engine::request::Gateway;
use crate::files::Files;
use crate::gate::Gate;
use crate::hub::Hub;
use crate::in_force::{Current, InForce};
use crate::keys::KeyRing;
use crate::metrics::Metrics;
use crate::reload::Reload;
use crate::server::{Order, stops_serving};
pub(crate) use problem::Problem;

/// What every handler may use.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) gateway: Gateway,
    pub(crate) hub: Hub,
    pub(crate) readers: Readers,
    pub(crate) files: Arc<Files>,
    pub(crate) keys: KeyRing,
    pub(crate) gate: Arc<Gate>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) in_force: InForce,
    pub(crate) reload: Arc<Reload>,
    pub(crate) drivers: Arc<Drivers>,
    pub(crate) is_draining: Arc<AtomicBool>,
    pub(crate) orders: watch::Receiver<Order>,
}

/// After the order to stop, answers that cannot be asked for again get this time to be finished.
const UNREPEATABLE_WITHIN: Duration = Duration::from_millis(1_500);

impl Api {
    /// The config in force.
    fn current(&self) -> Arc<Current> {
        self.in_force.now()
    }

    /// When what waits for something must end, because no request is served any more.
    async fn stops_serving(&self) {
        stops_serving(&mut self.orders.clone()).await;
    }

    /// The same, for an answer whose rest cannot be asked for.
    async fn is_out_of_time(&self) {
        self.stops_serving().await;
        tokio::time::sleep(UNREPEATABLE_WITHIN).await;
    }
}

/// A message's text, JSON-escaped at its worst, and what is around it.
const BODY_BYTES_MAX: usize = 6 * limits::MESSAGE_BYTES_MAX + (64 << 10);

/// One path, its methods, and what the document says of each.
struct Route {
    path: &'static str,
    methods: fn() -> MethodRouter<Api>,
    operations: &'static [document::Operation],
}

/// Every route. The order is the document's.
fn routes() -> Vec<Route> {
    use document::operations as op;
    let route = |path, methods, operations| Route { path, methods, operations };
    vec![
        route("/v1/sessions/{agent}/{key}/messages", || post(messages::submit), op::SUBMIT),
        route(
            "/v1/messages/{id}",
            || get(messages::show).delete(operate::drop_pending),
            op::MESSAGE,
        ),
        route("/v1/messages/{id}/why", || get(why::why_message), op::WHY_MESSAGE),
        route("/v1/sessions", || get(sessions::list), op::SESSIONS),
        route("/v1/sessions/{agent}/{key}", || get(sessions::show), op::SESSION),
        route("/v1/sessions/{agent}/{key}/journal", || get(sessions::journal), op::JOURNAL),
        route("/v1/sessions/{agent}/{key}/why", || get(why::why), op::WHY),
        route("/v1/sessions/{agent}/{key}/logs", || get(sessions::logs), op::LOGS),
        route("/v1/sessions/{agent}/{key}/wake", || post(sessions::wake), op::WAKE),
        route("/v1/sessions/{agent}/{key}/stop", || post(sessions::stop), op::STOP),
        route("/v1/sessions/{agent}/{key}/restart", || post(sessions::restart), op::RESTART),
        route("/v1/sessions/{agent}/{key}/files", || get(files::list), op::FILES),
        route(
            "/v1/sessions/{agent}/{key}/files/{*path}",
            || {
                get(files::get)
                    .put(files::put)
                    .delete(files::delete)
                    .layer(DefaultBodyLimit::disable())
            },
            op::FILE,
        ),
        route(
            "/v1/sessions/{agent}/{key}/checkpoints",
            || get(files::checkpoints),
            op::CHECKPOINTS,
        ),
        route("/v1/sessions/{agent}/{key}/restore", || post(files::restore), op::RESTORE),
        route("/v1/queue", || get(operate::queue), op::QUEUE),
        route("/v1/dead-letters", || get(operate::dead_letters), op::DEAD_LETTERS),
        route("/v1/dead-letters/{id}", || get(operate::dead_letter), op::DEAD_LETTER),
        route("/v1/dead-letters/{id}/redrive", || post(operate::redrive), op::REDRIVE),
        route("/v1/dead-letters/{id}/drop", || post(operate::drop_dead), op::DROP_DEAD),
        route("/v1/agents", || get(operate::agents), op::AGENTS),
        route("/v1/agents/{agent}/rollout/{what}", || post(operate::rollout), op::ROLLOUT),
        route("/v1/config", || get(config::show), config::SHOW),
        route("/v1/config/plan", || post(config::plan), config::PLAN),
        route("/v1/config/apply", || post(config::apply), config::APPLY),
        route("/v1/config/rollback", || post(config::rollback), config::ROLLBACK),
        route("/v1/config/history", || get(config::history), config::HISTORY),
        route("/v1/config/history/{number}", || get(config::earlier), config::EARLIER),
        route("/v1/keys", || get(operate::keys).post(operate::create_key), op::KEYS),
        route("/v1/keys/{id}", || delete(operate::revoke_key), op::KEY),
        route("/v1/chat/completions", || post(openai::chat), op::CHAT),
        route("/v1/models", || get(openai::models), op::MODELS),
        route("/healthz", || get(healthz), op::HEALTHZ),
        route("/readyz", || get(readyz), op::READYZ),
        route("/metrics", || get(metrics), op::METRICS),
        route("/openapi.json", || get(document::show), op::DOCUMENT),
        route("/", || get(hello), op::HELLO),
    ]
}

pub(crate) fn router(api: Api) -> Router {
    let router = routes()
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, (route.methods)()));
    let router = router.fallback(wrong_path).method_not_allowed_fallback(wrong_method);
    router.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).with_state(api)
}

async fn wrong_path() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_path",
        "nothing is at this path",
        "GET /openapi.json lists what there is",
    )
}

async fn wrong_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong_method",
        "this path does not take this method",
        "GET /openapi.json lists what it takes",
    )
}

/// Alive: the process answers. Says nothing about whether messages can be accepted.
async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready: the engine takes requests. Else the reasons.
async fn readyz(State(api): State<Api>) -> Response {
    let mut reasons = Vec::new();
    if api.is_draining.load(Ordering::Relaxed) {
        reasons.push("draining: running turns end, messages wait for the next start");
    }
    if !api.gateway.is_open() {
        reasons.push("the engine has ended");
    }
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = BTreeMap::from([
        ("ready", serde_json::Value::from(reasons.is_empty())),
        ("reasons", serde_json::Value::from(reasons)),
    ]);
    (status, axum::Json(body)).into_response()
}

async fn metrics(State(api): State<Api>, caller: caller::Operator) -> Result<Response, Problem> {
    let caller::Operator(_) = caller;
    let counts = api.readers.read(|reader| reader.counts()).await?;
    let as_gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    api.metrics.waiting.set(as_gauge(counts.waiting()));
    api.metrics.set_sessions(&counts.sessions_by_phase);
    api.metrics.bridges.set(as_gauge(api.drivers.connected_bridges() as u64));
    let text = api.metrics.text().map_err(|error| {
        tracing::error!(%error, "the metrics could not be written");
        Problem::internal()
    })?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut response = text.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// For people who open the address in a browser.
async fn hello() -> &'static str {
    "Dormouse is running. It keeps AI agents answering.\n\n\
     Write to an agent:   dormouse send python \"print(6 * 7)\"\n\
     See who is awake:    dormouse ps\n\
     The HTTP interface:  /openapi.json\n"
}
