//! Accepting connections: bounds per connection, the peer's address, and an orderly end.
//!
//! Owner: `run`. Invariants: a header block is read within 10 s and is at most 16 KiB and 100
//! headers; connections beyond the limit wait in the listener's backlog; at the end no new request
//! is taken and running ones get a while.
//! Absent: routes, TLS (a proxy in front brings it).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

const HEADER_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 100;
const HEADER_WITHIN: Duration = Duration::from_secs(10);
/// How long running requests may take when the daemon ends; streams are resumable, so they are cut
/// then.
const FINISH_WITHIN: Duration = Duration::from_secs(2);
/// After a failed accept (no file descriptor free, for example), so that it is not tried in a hot
/// loop.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Serves until `ended` says so.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    mut ended: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(connections_max));
    let connections = GracefulShutdown::new();
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place.expect("never closed"),
            _ = ended.wait_for(|ended| *ended) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ended.wait_for(|ended| *ended) => break,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        // Small answers go out at once; a failure only makes them later.
        drop(socket.set_nodelay(true));
        let router = router.clone();
        let service = TowerToHyperService::new(WithPeer { router, peer });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_WITHIN)
            .max_buf_size(HEADER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(socket), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(FINISH_WITHIN, connections.shutdown()).await.is_err() {
        tracing::info!("open streams were cut; their clients can resume");
    }
}

/// Notes the peer's address in each request.
#[derive(Clone)]
struct WithPeer {
    router: Router,
    peer: SocketAddr,
}

impl<B> tower_service::Service<hyper::Request<B>> for WithPeer
where
    Router: tower_service::Service<hyper::Request<B>>,
{
    type Response = <Router as tower_service::Service<hyper::Request<B>>>::Response;
    type Error = <Router as tower_service::Service<hyper::Request<B>>>::Error;
    type Future = <Router as tower_service::Service<hyper::Request<B>>>::Future;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        tower_service::Service::<hyper::Request<B>>::poll_ready(&mut self.router, context)
    }

    fn call(&mut self, mut request: hyper::Request<B>) -> Self::Future {
        request.extensions_mut().insert(ConnectInfo(self.peer));
        self.router.call(request)
    }
}
