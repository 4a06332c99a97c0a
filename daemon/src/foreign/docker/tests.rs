//! Readings of Docker documents.
