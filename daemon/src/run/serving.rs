//! From the first request until the process ends, or another has taken over.
//!
//! ```text
//!  serving ─┬─ signal ──▶ drain, end
//!           ├─ engine ended ──▶ out, with the reason
//!           └─ upgrade ──▶ new process prepared ──▶ park, close, give ─┬▶ it serves, end
//!                 ▲                └─ not prepared ─┐                  │
//!                 └──────── serve on ◀──────────────┴◀── open again ◀──┴ it is not healthy
//! ```
//!
//! Owner: `run`. Invariants: this process stops serving only once the new one is prepared; the
//! connections of a hand-over that failed are served on; whoever asked for an upgrade is told its
//! end after it is true. Absent: what goes over the line (`handover`).

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dormouse_core::time::millis;
use sd_notify::NotifyState;
use tokio::task::{JoinHandle, spawn_blocking};

use super::ending::{self, Sign, Signals};
use super::node::Node;
use super::{Ended, Manner, RunError};
use crate::api;
use crate::config::Loaded;
use crate::handover::door::{Asked, Door, Stage};
use crate::handover::old::Successor;
use crate::report;
use crate::server::{self, Idle, Order};

/// How serving came to its end.
pub(super) enum Outcome {
    Ended(Ended),
    /// The hand-over failed when everything was closed: it is to be opened again.
    TakenBack {
        idle: Vec<Idle>,
        asked: Asked,
        why: String,
        loaded: Loaded,
    },
}

/// A node at work.
pub(super) struct Serving {
    node: Node,
    door: Door,
    connections: JoinHandle<Vec<Idle>>,
}

impl Serving {
    pub(super) fn start(
        node: Node,
        door: Door,
        listener: &TcpListener,
        idle: Vec<Idle>,
    ) -> Result<Self, RunError> {
        let refused = |source| RunError::System { what: "to listen", source };
        // A copy, so that newcomers can wait while nobody serves.
        let copy = listener.as_fd().try_clone_to_owned().map_err(refused)?;
        let copy = TcpListener::from(copy);
        copy.set_nonblocking(true).map_err(refused)?;
        let copy = tokio::net::TcpListener::from_std(copy).map_err(refused)?;
        let router = api::router(node.api.clone());
        let orders = node.orders.subscribe();
        let in_force = node.api.in_force.clone();
        let serving = async move { server::serve(copy, idle, router, &in_force, orders).await };
        let connections = tokio::spawn(serving);
        Ok(Self { node, door, connections })
    }

    pub(super) async fn until_over(
        mut self,
        listener: TcpListener,
        manner: Manner,
        signals: &mut Signals,
    ) -> Result<(Outcome, TcpListener), RunError> {
        loop {
            tokio::select! {
                sign = signals.next() => match sign {
                    Sign::HungUp if manner == Manner::Serve => {
                        self.node.api.reload.hang_up().await;
                    }
                    Sign::HungUp | Sign::End => {
                        let ended = self.end(manner, signals).await?;
                        return Ok((Outcome::Ended(ended), listener));
                    }
                },
                result = &mut self.node.engine_ended => {
                    // Nothing can be acknowledged any more: out, so that whoever restarts us can.
                    return Err(result.map_or(RunError::Panicked, |ended| match ended {
                        Ok(()) => RunError::Panicked,
                        Err(error) => RunError::Engine(error),
                    }));
                }
                mut asked = self.door.asked() => match prepare(&asked).await {
                    Ok(successor) => {
                        return self.hand_over(listener, asked, successor, signals).await;
                    }
                    Err(why) => {
                        tracing::warn!(%why, "the upgrade failed; this process serves on");
                        asked.tell(&Stage::Failed { why }).await;
                    }
                }
            }
        }
    }

    async fn end(self, manner: Manner, signals: &mut Signals) -> Result<Ended, RunError> {
        let Serving { node, door, connections } = self;
        node.api.is_draining.store(true, Ordering::Relaxed);
        drop(sd_notify::notify(&[NotifyState::Stopping]));
        door.close().await;
        let within = node.api.in_force.now().config().drain_within;
        let left = ending::drain(&node.api.gateway, within, signals, manner).await;
        node.orders.send_replace(Order::End);
        if let Err(error) = connections.await {
            tracing::error!(%error, "the server panicked");
        }
        node.close().await?;
        tracing::info!(
            turns_left = left.len(),
            "ended; agents that run go on under their bridges, and the next start finds them"
        );
        Ok(if left.is_empty() { Ended::AllFinished } else { Ended::LeftRunning })
    }

    async fn hand_over(
        self,
        listener: TcpListener,
        mut asked: Asked,
        successor: Successor,
        signals: &mut Signals,
    ) -> Result<(Outcome, TcpListener), RunError> {
        let Serving { node, door, connections } = self;
        let in_force = node.api.in_force.clone();
        let (version, pid) = (successor.version.clone(), successor.pid());
        let within = Duration::from_millis(asked.wanted.within_ms);
        tracing::info!(%version, pid, "handing over");
        asked.tell(&Stage::Prepared { version: version.clone(), pid }).await;
        let stopped_at = Instant::now();
        node.orders.send_replace(Order::Park);
        let idle = connections.await.unwrap_or_else(|error| {
            tracing::error!(%error, "the server panicked");
            Vec::new()
        });
        asked.tell(&Stage::Parked { connections: idle.len() }).await;
        door.close().await;
        node.close().await?;
        let give = move || {
            let mut successor = successor;
            let given = successor.give(&listener, &idle, within);
            // One that is not healthy is gone before anything is taken back.
            (given.map(|()| successor), listener, idle)
        };
        let (given, listener, idle) = spawn_blocking(give).await.map_err(|_| RunError::Panicked)?;
        let outcome = match given {
            Ok(successor) => {
                drop(sd_notify::notify(&[NotifyState::MainPid(pid)]));
                successor.release();
                if signals.have_come() {
                    // Meant for whoever serves.
                    ending::pass_on(pid);
                }
                let paused_ms = millis(stopped_at.elapsed());
                tracing::info!(%version, pid, paused_ms, "handed over");
                asked.tell(&Stage::Done { version, pid, paused_ms }).await;
                Outcome::Ended(Ended::AllFinished)
            }
            Err(error) => {
                let (why, loaded) = (report::chain(&error), in_force.now().loaded.clone());
                Outcome::TakenBack { idle, asked, why, loaded }
            }
        };
        Ok((outcome, listener))
    }
}

/// Starts the new process beside this one, which serves on meanwhile.
async fn prepare(asked: &Asked) -> Result<Successor, String> {
    if std::process::id() == 1 {
        let why = "this daemon is a container's first process, and the container ends with it; \
                   replace the container instead";
        return Err(why.to_owned());
    }
    let (program, may_migrate) = (asked.wanted.exec.clone(), asked.wanted.migrate);
    let within = Duration::from_millis(asked.wanted.within_ms);
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let start = move || Successor::prepare(&program, &arguments, may_migrate, within);
    let prepared = spawn_blocking(start).await.map_err(|error| error.to_string())?;
    prepared.map_err(|error| report::chain(&error))
}
