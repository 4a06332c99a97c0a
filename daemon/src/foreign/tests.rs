//! Reports as a whole.
