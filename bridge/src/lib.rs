//! The supervisor beside every agent, and the frames it speaks with the daemon.

pub mod framer;
pub mod frames;
mod log;
pub mod rundir;
pub mod sse;
mod template;
#[cfg(test)]
mod testing;
mod turn;
mod utf8;
