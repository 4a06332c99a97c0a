//! Readings of ECS documents.
