//! Readings of Kubernetes documents.
