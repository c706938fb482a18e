//! The loop: descriptors, timers, signals, children.
