//! The builder: Dockerfile, steps, cache.
