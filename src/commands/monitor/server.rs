//! A read-only HTTP server: `GET` and `HEAD`, a few names, no files.
//!
//! One thread serves all connections, apart from the one that scans. What a client can make it hold is
//! bounded: the number of connections, the length of a request's head, and how long each may take. A page that
//! a browser has loaded from elsewhere must not be able to read what is here by giving its own name this
//! address (DNS rebinding), so requests must name this host by an address, as `localhost`, or by a name that
//! was allowed.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::uri::Authority;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::board::Board;
use super::page;
use crate::listen::is_this_host;

/// Connections at one time; more wait.
const CONNECTIONS: u32 = 64;
/// A request's head must be here by then.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// And the answer must be taken by then.
const WHOLE_TIME: Duration = Duration::from_secs(30);
/// A request's head is not longer, in bytes and in lines.
const HEAD_BYTES: usize = 16 << 10;
const HEAD_LINES: usize = 64;
/// Answers under way may be finished when it ends.
const PARTING: Duration = Duration::from_secs(1);
/// After an accept that failed, such as for want of descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// Nothing but the page's own style and picture may be loaded, no script may run, and no page may frame it.
const PAGE_POLICY: &str = "default-src 'none'; img-src 'self'; style-src 'self'; base-uri 'none'; \
                           form-action 'none'; frame-ancestors 'none'";
/// For everything that is no page.
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'; sandbox";

/// What is served.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) board: Arc<Board>,
    /// Names of this host that requests may use besides its addresses, in lower case.
    pub(super) names: Vec<String>,
}

/// A server that runs until it is stopped.
#[derive(Debug)]
pub(super) struct Server {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Serves what comes to `listener`.
    ///
    /// # Errors
    /// If the thread, or what waits for connections, cannot be made.
    pub(super) fn start(listener: TcpListener, site: Site) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(serve(listener, Arc::new(site), stopped));
            // Whoever is still there had the time.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(serve)?;
        Ok(Self { stop, thread })
    }

    /// Ends it; answers under way have a moment.
    pub(super) fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

async fn serve(listener: TcpListener, site: Arc<Site>, stopped: oneshot::Receiver<()>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let slots = Arc::new(Semaphore::new(usize::try_from(CONNECTIONS).unwrap_or(1)));
    let accepting = tokio::spawn(accept(listener, site, Arc::clone(&slots)));
    let _ = stopped.await;
    accepting.abort();
    let _ = tokio::time::timeout(PARTING, slots.acquire_many(CONNECTIONS)).await;
}

async fn accept(listener: tokio::net::TcpListener, site: Arc<Site>, slots: Arc<Semaphore>) {
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, Arc::clone(&site), slot))),
            Err(_) => tokio::time::sleep(BREATH).await,
        }
    }
}

/// One request, one answer.
async fn connection(stream: tokio::net::TcpStream, site: Arc<Site>, _slot: OwnedSemaphorePermit) {
    let service = service_fn(|request| {
        let answer = site.answer(&request);
        async { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_LINES)
        .serve_connection(TokioIo::new(stream), service);
    // Whatever is wrong with a connection is the client's affair.
    let _ = tokio::time::timeout(WHOLE_TIME, connection).await;
}

impl Site {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !self.is_meant(request) {
            self.count(true);
            let text = "The request does not name this host by an address. To use another name, give it \
                        with --allow-host.\n";
            return plain(StatusCode::MISDIRECTED_REQUEST, text);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            self.count(true);
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD.\n");
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        self.count(false);
        self.page(request.uri().path())
    }

    fn page(&self, path: &str) -> Response<Full<Bytes>> {
        let shown = self.board.shown();
        match path {
            "/" => {
                let page =
                    shown.map_or_else(|| page::waiting().into_bytes().into(), |s| s.page.clone());
                answer(StatusCode::OK, "text/html; charset=utf-8", PAGE_POLICY, bytes(&page))
            }
            "/style.css" => answer(
                StatusCode::OK,
                "text/css",
                POLICY,
                Bytes::from_static(page::STYLE.as_bytes()),
            ),
            "/metrics" => {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                answer(StatusCode::OK, kind, POLICY, self.board.metrics().into())
            }
            "/health" => match self.board.ill(SystemTime::now()) {
                None => plain(StatusCode::OK, "ok\n"),
                Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            "/audit.json" | "/graph.svg" => match (shown, path) {
                (None, _) => plain(StatusCode::SERVICE_UNAVAILABLE, "nothing was looked at yet\n"),
                (Some(shown), "/audit.json") => {
                    answer(StatusCode::OK, "application/json", POLICY, bytes(&shown.json))
                }
                (Some(shown), _) => {
                    answer(StatusCode::OK, "image/svg+xml", POLICY, bytes(&shown.graph))
                }
            },
            _ => plain(StatusCode::NOT_FOUND, "There is nothing of this name.\n"),
        }
    }

    fn count(&self, refused: bool) {
        let mut figures = self.board.figures();
        let figures = &mut *figures;
        let count = if refused { &mut figures.refused } else { &mut figures.requests };
        *count = count.saturating_add(1);
    }

    /// Whether the Host header names this host (against DNS rebinding).
    fn is_meant(&self, request: &Request<Incoming>) -> bool {
        let in_uri = request.uri().authority().is_none_or(|authority| self.is_own(authority));
        in_uri && self.host(request.headers()).is_some_and(|authority| self.is_own(&authority))
    }

    /// What the only `Host` says.
    fn host(&self, headers: &HeaderMap) -> Option<Authority> {
        let mut all = headers.get_all(header::HOST).iter();
        let host = all.next()?.as_bytes();
        if all.next().is_some() {
            return None;
        }
        Authority::try_from(host).ok()
    }

    fn is_own(&self, authority: &Authority) -> bool {
        let host = authority.host().to_ascii_lowercase();
        !authority.as_str().contains('@') && (is_this_host(&host) || self.names.contains(&host))
    }
}

fn bytes(shared: &Arc<[u8]>) -> Bytes {
    Bytes::from_owner(Arc::clone(shared))
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", POLICY, text.into())
}

fn answer(
    status: StatusCode,
    kind: &'static str,
    policy: &'static str,
    body: Bytes,
) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_localhost_and_what_was_allowed() {
        let site = Site { board: Arc::default(), names: vec!["kvm7.example".into()] };
        let own = |host: &str| Authority::try_from(host).is_ok_and(|host| site.is_own(&host));
        for host in [
            "127.0.0.1:9177",
            "127.0.0.1",
            "[::1]:80",
            "192.0.2.7",
            "localhost:1",
            "KVM7.example:9177",
        ] {
            assert!(own(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "x@127.0.0.1",
            "a@kvm7.example",
            "",
        ] {
            assert!(!own(host), "{host}");
        }
        let mut headers = HeaderMap::new();
        assert!(site.host(&headers).is_none());
        headers.append(header::HOST, HeaderValue::from_static("127.0.0.1"));
        assert!(site.host(&headers).is_some());
        headers.append(header::HOST, HeaderValue::from_static("evil.example"));
        assert!(site.host(&headers).is_none(), "two hosts are none");
    }
}
