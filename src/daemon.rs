//! The daemon: all state, owned by one thread.
