//! Which request gets which answer. A further command is a further row of [`ROUTES`].

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{mpsc, oneshot};

use super::asker::{Answer, Ask};
use super::metrics;
use super::readiness::{Facts, Status, not_healthy, not_ready};

/// Where [`Status`] is as JSON.
pub const STATUS_PATH: &str = "/status";

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Health,
    Ready,
    Metrics,
    Status,
}

struct Route {
    method: Method,
    path: &'static str,
    action: Action,
}

const fn get(path: &'static str, action: Action) -> Route {
    let method = Method::GET;
    Route {
        method,
        path,
        action,
    }
}

/// Everything that can be asked for.
static ROUTES: [Route; 4] = [
    get("/healthz", Action::Health),
    get("/readyz", Action::Ready),
    get("/metrics", Action::Metrics),
    get(STATUS_PATH, Action::Status),
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

/// Answers one request. A body that came with it is not read.
pub(super) async fn answer(
    request: &Request<Incoming>,
    facts: &Facts,
    asks: &mpsc::Sender<Ask>,
) -> Response<String> {
    let page = match find(request.method(), request.uri().path()) {
        Ok(action) => match ask(asks).await {
            Some(answers) => perform(action, facts, &answers),
            None => Page::new(
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                "stopping\n".to_owned(),
            ),
        },
        Err(refusal) => refusal,
    };
    let mut response = Response::new(page.body);
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    if let Some(Ok(allow)) = page
        .allow
        .map(|method| HeaderValue::from_str(method.as_str()))
    {
        headers.insert(ALLOW, allow);
    }
    response
}

/// What the cores say. `None`: the thread is about to end.
async fn ask(asks: &mpsc::Sender<Ask>) -> Option<std::sync::Arc<Vec<Answer>>> {
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
        Action::Ready => probe(&not_ready(answers), "ready"),
        Action::Metrics => Page::new(StatusCode::OK, METRICS, metrics::render(facts, answers)),
        Action::Status => match serde_json::to_string(&Status::of(facts, answers)) {
            Ok(body) => Page::new(StatusCode::OK, JSON, body + "\n"),
            Err(error) => Page::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                TEXT,
                format!("cannot write the status as JSON ({error}); this is a bug, report it\n"),
            ),
        },
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
    use super::super::readiness::tests::healthy;
    use super::*;

    fn facts() -> Facts {
        Facts::of_this_process("127.0.0.1:7447".parse().unwrap())
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
