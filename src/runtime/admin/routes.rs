//! Which request gets which answer. A further command is a further row of [`ROUTES`].

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use iris_proto::id::UserId;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::asker::{Answer, Ask};
use super::gatherer::{Gather, Gathered};
use super::inboxes::Inboxes;
use super::metrics;
use super::readiness::{Facts, Status, not_healthy, not_ready, notes, reports};
use super::revoker::{RevokeFailure, Wanted, Wish};
use super::tcp::Token;
use super::watcher;
use super::{Ways, latencies, page};
use crate::auth::RevokeError;
use crate::measure::dump::Dump;
use crate::runtime::clock::Clock;

/// Where [`Status`] is as JSON.
pub const STATUS_PATH: &str = "/status";
/// Where the histograms are, as a [`Dump`].
pub const HISTOGRAMS_PATH: &str = "/histograms";
/// The same, and they begin anew.
pub const RESET_PATH: &str = "/histograms/reset";
/// Where a [`TraceBegin`] goes.
pub const TRACE_PATH: &str = "/trace";
/// Where a [`TraceNext`] goes.
pub const TRACE_NEXT_PATH: &str = "/trace/next";
/// Where a [`Revocation`] goes.
pub const REVOKE_PATH: &str = "/revoke";
/// Bytes of a request's body. More are answered 413.
const BODY_BYTES_MAX: usize = 4 * 1024;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Page,
    Health,
    Ready,
    Metrics,
    Status,
    Cores,
    Users,
    Config,
    Histograms,
    Reset,
    Trace,
    TraceNext,
    Revoke,
}

struct Route {
    method: Method,
    path: &'static str,
    action: Action,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// Whoever could open the socket in the data directory: may do everything.
    Owner,
    /// Somebody on this machine, who has to show this token, and may look and not touch.
    Stranger(Arc<Token>),
}

impl Caller {
    /// Whether it may have this.
    fn may(&self, action: Action, method: &Method, headers: &HeaderMap) -> Result<(), Page> {
        let Self::Stranger(token) = self else {
            return Ok(());
        };
        if method == Method::POST {
            let text = "this port takes no orders; use the socket in the data directory, as \
                        `iris revoke` does\n";
            return Err(Page::new(StatusCode::FORBIDDEN, TEXT, text.to_owned()));
        }
        if matches!(action, Action::Health | Action::Page) || token.is_shown_in(headers) {
            return Ok(());
        }
        let text = "show the token of [admin] token_file: `Authorization: Bearer TOKEN`\n";
        Err(Page::new(StatusCode::UNAUTHORIZED, TEXT, text.to_owned()))
    }
}

const fn get(path: &'static str, action: Action) -> Route {
    let method = Method::GET;
    Route {
        method,
        path,
        action,
    }
}

const fn post(path: &'static str, action: Action) -> Route {
    let method = Method::POST;
    Route {
        method,
        path,
        action,
    }
}

/// Everything that can be asked for.
static ROUTES: [Route; 13] = [
    get("/", Action::Page),
    get("/healthz", Action::Health),
    get("/readyz", Action::Ready),
    get("/metrics", Action::Metrics),
    get(STATUS_PATH, Action::Status),
    get("/debug/cores", Action::Cores),
    get("/debug/users", Action::Users),
    get("/debug/config", Action::Config),
    get(HISTOGRAMS_PATH, Action::Histograms),
    post(RESET_PATH, Action::Reset),
    post(TRACE_PATH, Action::Trace),
    post(TRACE_NEXT_PATH, Action::TraceNext),
    post(REVOKE_PATH, Action::Revoke),
];

/// An answer, before it is one of HTTP.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    status: StatusCode,
    content_type: &'static str,
    /// What may be done instead, with 405.
    allow: Option<Method>,
    body: String,
}

impl Page {
    fn new(status: StatusCode, content_type: &'static str, body: String) -> Self {
        Self {
            status,
            content_type,
            allow: None,
            body,
        }
    }
}

/// What is to be revoked, as it comes: of a user, or one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Whose tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Those issued before this second since the Unix epoch; without it, now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_s: Option<u64>,
    /// The token with this `jti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
}

/// Whose messages are to be traced, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceBegin {
    /// Whose.
    pub user: String,
    /// For so many milliseconds.
    pub for_ms: u64,
}

/// Of which trace the next steps are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceNext {
    /// Its number, as the answer to [`TraceBegin`] said it.
    pub watch: u64,
}

/// Answers one request. A body is read only where one is wanted.
pub(super) async fn answer(
    request: Request<Incoming>,
    caller: &Caller,
    facts: &Facts,
    ways: &Ways,
) -> Response<String> {
    let found = find(request.method(), request.uri().path());
    let found = found.and_then(|action| {
        caller
            .may(action, request.method(), request.headers())
            .map(|()| action)
    });
    let page = match found {
        Ok(Action::Revoke) => match body(request.into_body()).await {
            Ok(body) => revoke(&body, &ways.wishes).await,
            Err(refusal) => refusal,
        },
        Ok(Action::Page) => Page::new(StatusCode::OK, page::HTML, String::new()),
        Ok(Action::Config) => Page::new(StatusCode::OK, TEXT, ways.config.borrow().clone()),
        Ok(action @ (Action::Trace | Action::TraceNext)) => match body(request.into_body()).await {
            Ok(body) => match watch_wanted(action, &body) {
                Ok(what) => watch(what, &ways.watches).await,
                Err(why) => Page::new(StatusCode::BAD_REQUEST, TEXT, why + "\n"),
            },
            Err(refusal) => refusal,
        },
        Ok(Action::Histograms) => histograms(facts, &ways.gathers, false).await,
        Ok(Action::Reset) => histograms(facts, &ways.gathers, true).await,
        Ok(action) => match ask(&ways.asks).await {
            Some(answers) => with_latencies(action, facts, &answers, ways).await,
            None => stopping(),
        },
        Err(refusal) => refusal,
    };
    let mut response = Response::new(page.body);
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if page.content_type == page::HTML {
        page::adorn(&mut response);
    }
    let headers = response.headers_mut();
    if page.status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(Ok(allow)) = page
        .allow
        .map(|method| HeaderValue::from_str(method.as_str()))
    {
        headers.insert(ALLOW, allow);
    }
    response
}

fn stopping() -> Page {
    let text = "stopping\n".to_owned();
    Page::new(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
}

/// A request's body, whole.
async fn body(mut body: Incoming) -> Result<Vec<u8>, Page> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| {
            let text = format!("the body of the request did not come whole ({error})\n");
            Page::new(StatusCode::BAD_REQUEST, TEXT, text)
        })?;
        let Ok(data) = frame.into_data() else {
            continue; // trailers
        };
        if bytes.len() + data.len() > BODY_BYTES_MAX {
            let text = format!("a body has {BODY_BYTES_MAX} bytes at most\n");
            return Err(Page::new(StatusCode::PAYLOAD_TOO_LARGE, TEXT, text));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

async fn revoke(body: &[u8], wishes: &mpsc::Sender<Wish>) -> Page {
    let revoke = match wanted(body) {
        Ok(revoke) => revoke,
        Err(why) => return Page::new(StatusCode::BAD_REQUEST, TEXT, why + "\n"),
    };
    let (answer, outcome) = oneshot::channel();
    if wishes.send(Wish { revoke, answer }).await.is_err() {
        return stopping();
    }
    match outcome.await {
        Ok(Ok(revoked)) => json(&revoked),
        Ok(Err(failure)) => {
            let status = match failure {
                RevokeFailure::Refused(RevokeError::TooMany { .. }) => StatusCode::CONFLICT,
                RevokeFailure::Refused(_) => StatusCode::BAD_REQUEST,
                RevokeFailure::NotDurable(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            Page::new(status, TEXT, format!("{failure}\n"))
        }
        Err(_) => stopping(),
    }
}

/// Exactly one of the two kinds.
fn wanted(body: &[u8]) -> Result<Wanted, String> {
    let Revocation {
        user,
        before_s,
        jti,
    } = serde_json::from_slice(body).map_err(|error| {
        format!("this is no revocation ({error}); send {{\"user\": …}} or {{\"jti\": …}} as JSON")
    })?;
    match (user, before_s, jti) {
        (Some(user), before_s, None) => {
            let user = UserId::new(&user)
                .map_err(|error| format!("there can be no user {user:?}: {error}"))?;
            Ok(Wanted::User { user, before_s })
        }
        (None, None, Some(jti)) => Ok(Wanted::Token { jti }),
        _ => Err("give a user, with or without an instant, or a jti, and nothing else".to_owned()),
    }
}

/// What the cores say, and for two pages what they have recorded, too.
async fn with_latencies(action: Action, facts: &Facts, answers: &[Answer], ways: &Ways) -> Page {
    match action {
        Action::Status => {
            let (look, latencies) = oneshot::channel();
            let asked = ways.looks.send(look).await;
            let latencies = match asked {
                Ok(()) => latencies.await.unwrap_or_default(),
                Err(_) => Vec::new(), // stopping
            };
            json(&Status {
                latencies,
                ..Status::of(facts, answers)
            })
        }
        Action::Metrics => {
            let mut page = perform(action, facts, answers);
            if let Some(gathered) = latencies::gather(&ways.gathers, false).await {
                page.body.push_str(&latencies::render(&gathered));
            }
            page
        }
        action => perform(action, facts, answers),
    }
}

async fn watch(what: watcher::Wanted, watches: &mpsc::Sender<watcher::Wish>) -> Page {
    let (answer, traced) = oneshot::channel();
    if watches.send(watcher::Wish { what, answer }).await.is_err() {
        return stopping();
    }
    match traced.await {
        Ok(Ok(traced)) => json(&traced),
        Ok(Err(why)) => Page::new(StatusCode::CONFLICT, TEXT, why + "\n"),
        Err(_) => stopping(),
    }
}

/// What is wanted of a trace.
fn watch_wanted(action: Action, body: &[u8]) -> Result<watcher::Wanted, String> {
    let no_sense = |error| format!("this is no question about a trace ({error}); see `iris trace`");
    if action == Action::TraceNext {
        let TraceNext { watch } = serde_json::from_slice(body).map_err(no_sense)?;
        return Ok(watcher::Wanted::Next { watch });
    }
    let TraceBegin { user, for_ms } = serde_json::from_slice(body).map_err(no_sense)?;
    let user =
        UserId::new(&user).map_err(|error| format!("there can be no user {user:?}: {error}"))?;
    let time = Duration::from_millis(for_ms);
    Ok(watcher::Wanted::Begin { user, time })
}

/// What the cores have recorded.
async fn histograms(facts: &Facts, gathers: &mpsc::Sender<Gather>, reset: bool) -> Page {
    match latencies::gather(gathers, reset).await {
        Some(gathered) => dump(facts, &gathered),
        None => stopping(),
    }
}

fn dump(facts: &Facts, gathered: &Gathered) -> Page {
    let mut dump = Dump::default();
    for (core, recorded) in (0..).zip(gathered) {
        let Some(recorded) = recorded else {
            dump.silent.push(core);
            continue;
        };
        if let Err(error) = dump.add_core(&facts.node, core, recorded) {
            let body = format!("{error}; this is a bug, report it\n");
            return Page::new(StatusCode::INTERNAL_SERVER_ERROR, TEXT, body);
        }
    }
    Page::new(StatusCode::OK, JSON, dump.to_text() + "\n")
}

/// What the cores say. `None`: the thread is about to end.
async fn ask(asks: &mpsc::Sender<Ask>) -> Option<Arc<Vec<Answer>>> {
    let (ask, answers) = oneshot::channel();
    asks.send(ask).await.ok()?;
    answers.await.ok()
}

/// HEAD is a GET whose body hyper leaves out.
fn find(method: &Method, path: &str) -> Result<Action, Page> {
    let asked = if method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    let mut allowed = None;
    for route in ROUTES.iter().filter(|route| route.path == path) {
        if route.method == asked {
            return Ok(route.action);
        }
        allowed = Some(&route.method);
    }
    let Some(allowed) = allowed else {
        let rows = ROUTES
            .iter()
            .map(|route| format!("{} {}", route.method, route.path));
        let known = rows.collect::<Vec<_>>().join(", ");
        let body = format!("there is no such path; there are {known}\n");
        return Err(Page::new(StatusCode::NOT_FOUND, TEXT, body));
    };
    let body = format!("this path takes {allowed} only\n");
    let mut page = Page::new(StatusCode::METHOD_NOT_ALLOWED, TEXT, body);
    page.allow = Some(allowed.clone());
    Err(page)
}

fn perform(action: Action, facts: &Facts, answers: &[Answer]) -> Page {
    match action {
        Action::Health => probe(&not_healthy(answers), "ok"),
        Action::Ready => {
            let mut page = probe(&not_ready(answers), "ready");
            for note in notes(answers, Clock::read().unix_s()) {
                page.body.push_str(&format!("note: {note}\n"));
            }
            page
        }
        Action::Metrics => Page::new(StatusCode::OK, METRICS, metrics::render(facts, answers)),
        Action::Status => json(&Status::of(facts, answers)),
        Action::Cores => json(&reports(answers).collect::<Vec<_>>()),
        Action::Users => json(&Inboxes::of(answers)),
        Action::Page
        | Action::Config
        | Action::Histograms
        | Action::Reset
        | Action::Trace
        | Action::TraceNext
        | Action::Revoke => {
            unreachable!("it asks no core how it is")
        }
    }
}

fn json(answer: &impl Serialize) -> Page {
    match serde_json::to_string(answer) {
        Ok(body) => Page::new(StatusCode::OK, JSON, body + "\n"),
        Err(error) => Page::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            TEXT,
            format!("cannot write the answer as JSON ({error}); this is a bug, report it\n"),
        ),
    }
}

/// One word, or one line for each reason.
fn probe(reasons: &[String], fine: &str) -> Page {
    if reasons.is_empty() {
        return Page::new(StatusCode::OK, TEXT, format!("{fine}\n"));
    }
    let body = reasons.join("\n") + "\n";
    Page::new(StatusCode::SERVICE_UNAVAILABLE, TEXT, body)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::readiness::tests::healthy;
    use super::*;
    use crate::measure::dump::Row;
    use crate::measure::{Histograms, Stage};

    fn facts() -> Facts {
        Facts::of_this_process("127.0.0.1:7447".parse().unwrap(), Arc::default())
    }

    #[test]
    fn each_path_is_found_and_nothing_else_is() {
        assert_eq!(find(&Method::GET, "/readyz"), Ok(Action::Ready));
        assert_eq!(find(&Method::HEAD, "/healthz"), Ok(Action::Health));
        let unknown = find(&Method::GET, "/nothing").unwrap_err();
        assert_eq!(unknown.status, StatusCode::NOT_FOUND);
        assert!(unknown.body.contains("GET /metrics"), "{}", unknown.body);
        let refused = find(&Method::POST, "/metrics").unwrap_err();
        assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refused.allow, Some(Method::GET));
    }

    /// R: A-3
    #[test]
    fn a_revocation_is_of_a_user_or_of_a_token_and_nothing_else_is_one() {
        let ann = UserId::new("ann").unwrap();
        let of_ann = |before_s| {
            Ok(Wanted::User {
                user: ann.clone(),
                before_s,
            })
        };
        assert_eq!(wanted(br#"{"user":"ann"}"#), of_ann(None));
        assert_eq!(wanted(br#"{"user":"ann","before_s":7}"#), of_ann(Some(7)));
        let jti = "j".to_owned();
        assert_eq!(wanted(br#"{"jti":"j"}"#), Ok(Wanted::Token { jti }));
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"user":"ann","jti":"j"}"#,
            r#"{"jti":"j","before_s":7}"#,
            r#"{"before_s":7}"#,
            r#"{"user":""}"#,
            r#"{"user":"a b"}"#,
            r#"{"user":"ann","befor_s":7}"#,
            r#"{"user":"ann","before_s":-7}"#,
            r#"{"user":"ann","user":"ben"}"#,
        ] {
            assert!(wanted(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    /// R: E-1
    #[test]
    fn a_dump_names_the_node_each_core_and_who_was_silent() {
        let mut recorded = Histograms::new(5);
        recorded.record(Stage::Batch, 70);
        let page = dump(&facts(), &vec![None, Some(Box::new(recorded))]);
        assert_eq!(page.status, StatusCode::OK);
        let read = Dump::parse(&page.body).unwrap();
        assert_eq!(read.silent, [0]);
        assert_eq!(read.histograms.len(), Stage::ALL.len());
        let is_mine = |row: &Row| row.node == facts().node && row.core == Some(1);
        assert!(read.histograms.iter().all(is_mine));
        assert!(read.histograms[0].node.ends_with(":7447"), "{}", page.body);
        let batch = read.histograms.iter().find(|row| row.stage == "batch");
        assert_eq!(batch.unwrap().count, 1);
    }

    /// R: E-2
    #[test]
    fn health_and_readiness_say_which_core_is_silent() {
        let fine = [Answer::Report(healthy(0)), Answer::Report(healthy(1))];
        let page = perform(Action::Health, &facts(), &fine);
        assert_eq!((page.status, page.body.as_str()), (StatusCode::OK, "ok\n"));
        let page = perform(Action::Ready, &facts(), &fine);
        assert_eq!(
            (page.status, page.body.as_str()),
            (StatusCode::OK, "ready\n")
        );
        let silent = [Answer::Report(healthy(0)), Answer::Silent];
        for action in [Action::Health, Action::Ready] {
            let page = perform(action, &facts(), &silent);
            assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(page.body, "core 1 did not answer within 1000 ms\n");
        }
    }

    #[test]
    fn the_status_is_json_that_reads_back() {
        let answers = [Answer::Silent, Answer::Report(healthy(1))];
        let page = perform(Action::Status, &facts(), &answers);
        let status: Status = serde_json::from_str(&page.body).unwrap();
        assert_eq!(status, Status::of(&facts(), &answers));
        assert!(!status.ready && status.cores.len() == 1);
        assert!(page.body.contains("\"space\":\"enough\""), "{}", page.body);
    }
}
