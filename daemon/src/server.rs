//! Accepting connections: bounds per connection, the peer's address, and an orderly end.
//!
//! ```text
//!  Serve ─┬─ End ──▶ requests in work get a while, connections are closed
//!         └─ Park ─▶ the same, but what stays open is given back, for another process
//! ```
//!
//! Owner: `run`. Invariants: a header block is read within 10 s and is at most 16 KiB and 100
//! headers; a body of which nothing comes for 30 s is given up; connections beyond the limit wait
//! in the listener's backlog; at the end no new request is taken and running ones get a while; a
//! connection that may be used for another request is never closed by a `Park`.
//! Absent: routes, TLS (a proxy in front brings it).

mod idle;

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, HeaderMap};
use hyper::server::conn::http1;
use hyper::{Request, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use crate::in_force::InForce;
pub(crate) use idle::Idle;
use idle::Prefixed;

const HEADER_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 100;
const HEADER_WITHIN: Duration = Duration::from_secs(10);
const BODY_SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long running requests may take when the daemon ends; streams are resumable, so they end by
/// themselves before that.
const FINISH_WITHIN: Duration = Duration::from_secs(2);
/// After a failed accept (no file descriptor free, for example), so that it is not tried in a hot
/// loop.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What all connections are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Serve,
    End,
    Park,
}

/// Waits until there is no serving any more.
pub(crate) async fn stops_serving(orders: &mut watch::Receiver<Order>) -> Order {
    // Where nobody gives orders any more, the daemon is over.
    orders.wait_for(|order| *order != Order::Serve).await.map_or(Order::End, |order| *order)
}

/// What each connection is made with.
#[derive(Clone)]
struct Shared {
    router: Router,
    orders: watch::Receiver<Order>,
    parked: mpsc::UnboundedSender<Idle>,
}

/// Serves until it is ordered to stop; gives the connections that stay open, after a `Park`.
pub(crate) async fn serve(
    listener: TcpListener,
    taken_over: Vec<Idle>,
    router: Router,
    in_force: &InForce,
    mut orders: watch::Receiver<Order>,
) -> Vec<Idle> {
    let connections_max = connections_max(in_force);
    let places = Arc::new(Semaphore::new(connections_max));
    let following = follow(in_force.clone(), connections_max, Arc::clone(&places));
    let following = AbortOnDrop(tokio::spawn(following));
    let (parked, mut parking) = mpsc::unbounded_channel();
    let shared = Shared { router, orders: orders.clone(), parked };
    for idle in taken_over {
        // The process before this one had the same limit, or a larger one.
        let place = Arc::clone(&places).try_acquire_owned().ok();
        match idle.into_live() {
            Ok((socket, peer)) => drop(tokio::spawn(shared.clone().converse(socket, peer, place))),
            Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
        }
    }
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place.expect("never closed"),
            _ = stops_serving(&mut orders) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stops_serving(&mut orders) => break,
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
        let conversation = shared.clone().converse(Prefixed::new(socket), peer, Some(place));
        tokio::spawn(conversation);
    }
    drop((listener, shared, following));
    let mut idle = Vec::new();
    // Ends when the last connection has let go of its sender.
    while let Some(connection) = parking.recv().await {
        idle.push(connection);
    }
    idle
}

fn connections_max(in_force: &InForce) -> usize {
    in_force.now().config().gate.connections.min(u32::MAX as usize)
}

/// Connections that are open stay open, however few there may be from now on.
async fn follow(in_force: InForce, mut limit: usize, places: Arc<Semaphore>) {
    let mut changes = in_force.changes();
    while changes.changed().await.is_ok() {
        let wanted = connections_max(&in_force);
        places.add_permits(wanted.saturating_sub(limit));
        for _ in wanted..limit {
            // Each place is taken away when it is free.
            let place = Arc::clone(&places).acquire_owned();
            tokio::spawn(async move { place.await.map(OwnedSemaphorePermit::forget) });
        }
        limit = wanted;
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    /// One connection, from its first request to its last.
    async fn converse(
        self,
        socket: Prefixed,
        peer: SocketAddr,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let Shared { router, mut orders, parked } = self;
        let manners = Arc::new(Manners::default());
        let service = WithPeer { router, peer, manners: Arc::clone(&manners) };
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_WITHIN)
            .max_buf_size(HEADER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(socket), service);
        let order = tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => Err(ended),
            order = stops_serving(&mut orders) => Ok(order),
        };
        let is_parked = matches!(order, Ok(Order::Park));
        let ended = match order {
            Err(ended) => ended,
            Ok(_) => {
                manners.is_over.store(true, Ordering::Relaxed);
                Pin::new(&mut connection).graceful_shutdown();
                let rest = poll_fn(|context| connection.poll_without_shutdown(context));
                match tokio::time::timeout(FINISH_WITHIN, rest).await {
                    Ok(ended) => ended,
                    Err(_) => return tracing::info!(%peer, "a request was cut: it took too long"),
                }
            }
        };
        if let Err(error) = ended {
            return tracing::debug!(%peer, %error, "a connection ended early");
        }
        let parts = connection.into_parts();
        let mut socket = parts.io.into_inner();
        if is_parked && !manners.closes.load(Ordering::Relaxed) {
            match Idle::of(socket, peer, parts.read_buf) {
                // Received as long as there is a sender.
                Ok(idle) => drop(parked.send(idle)),
                Err(error) => tracing::warn!(%peer, %error, "a connection could not be kept"),
            }
        } else {
            // A peer that has gone already is what is wanted.
            drop(socket.shutdown().await);
        }
        drop(place);
    }
}

/// How one connection goes on after the request that is in work. Everything happens in its task.
#[derive(Default)]
struct Manners {
    /// No further request is taken: from now on answers say that the connection will be closed.
    is_over: AtomicBool,
    /// The client was told so, or wanted it.
    closes: AtomicBool,
}

/// Notes the peer's address in each request, and watches over its body.
struct WithPeer {
    router: Router,
    peer: SocketAddr,
    manners: Arc<Manners>,
}

impl hyper::service::Service<Request<Incoming>> for WithPeer {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let manners = Arc::clone(&self.manners);
        if is_last(request.version(), request.headers()) {
            manners.closes.store(true, Ordering::Relaxed);
        }
        request.extensions_mut().insert(ConnectInfo(self.peer));
        let request = request.map(|body| Body::new(Watched::new(body, BODY_SILENCE_MAX)));
        // A router is ready at any time.
        let answer = self.router.clone().call(request);
        Box::pin(async move {
            let answer = answer.await;
            if manners.is_over.load(Ordering::Relaxed) {
                manners.closes.store(true, Ordering::Relaxed);
            }
            answer
        })
    }
}

/// The client waits for the connection's end.
fn is_last(version: Version, headers: &HeaderMap) -> bool {
    let says_close = headers.get_all(CONNECTION).iter().any(|value| {
        let words = value.to_str().unwrap_or_default().split(',');
        words.map(str::trim).any(|word| word.eq_ignore_ascii_case("close"))
    });
    version < Version::HTTP_11 || says_close
}

/// A body that ends with an error when nothing of it comes for too long while it is waited for.
struct Watched<B> {
    body: B,
    silence_max: Duration,
    /// There from the first time that it had to be waited for.
    given_up_at: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, thiserror::Error)]
enum BodyError<E> {
    #[error("the body could not be read")]
    Read(#[source] E),
    #[error("nothing more of the body came")]
    Silent,
}

impl<B> Watched<B> {
    fn new(body: B, silence_max: Duration) -> Self {
        Self { body, silence_max, given_up_at: None }
    }
}

impl<B> hyper::body::Body for Watched<B>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + 'static,
{
    type Data = Bytes;
    type Error = BodyError<B::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            if let Some(timer) = &mut this.given_up_at {
                timer.as_mut().reset(Instant::now() + this.silence_max);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Read)));
        }
        let silence_max = this.silence_max;
        let timer =
            this.given_up_at.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence_max)));
        timer.as_mut().poll(context).map(|()| Some(Err(BodyError::Silent)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream::unfold;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    /// A piece after each of these pauses.
    async fn read(pauses_ms: &[u64], silence_max_ms: u64) -> Result<usize, String> {
        let pieces = unfold(pauses_ms.iter(), |mut pauses| async move {
            tokio::time::sleep(Duration::from_millis(*pauses.next()?)).await;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))), pauses))
        });
        let body = StreamBody::new(Box::pin(pieces));
        let watched = Watched::new(body, Duration::from_millis(silence_max_ms));
        let collected = watched.collect().await.map_err(|error| error.to_string())?;
        Ok(collected.to_bytes().len())
    }

    #[tokio::test]
    async fn a_slow_body_is_read_to_its_end_and_a_silent_one_is_given_up() {
        assert_eq!(read(&[0, 0, 0], 60_000).await, Ok(3));
        assert_eq!(read(&[30, 30, 30, 30], 90).await, Ok(4), "each piece starts the clock anew");
        let silent = Err("nothing more of the body came".to_owned());
        assert_eq!(read(&[0, 60_000], 20).await, silent);
    }
}
