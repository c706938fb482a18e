//! Forked workers: fork, hand-off, the message set; one file per job.
