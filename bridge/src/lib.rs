//! The supervisor beside every agent, and the frames it speaks with the daemon.

pub mod frames;
