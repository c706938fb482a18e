//! Where things are in the data root, as daemon and workers both know it.

use std::path::{Path, PathBuf};

/// Where workers build: passed to their jobs.
#[derive(Clone, Debug)]
pub struct Place {
    /// The data root.
    pub root: PathBuf,
    /// Distinguishes this run of the daemon from earlier ones within `staging/`.
    pub(super) run: String,
}

impl Place {
    /// The data root as this run of the daemon uses it.
    pub(super) fn new(root: &Path, now_ns: i64) -> Place {
        Place { root: root.to_owned(), run: format!("{now_ns:x}") }
    }

    /// The name under `staging/` that belongs to a worker.
    pub fn name(&self, worker: u64) -> String {
        format!("{}-{worker}", self.run)
    }

    /// That directory's path; the worker makes it.
    pub fn staging(&self, worker: u64) -> PathBuf {
        self.root.join("staging").join(self.name(worker))
    }

    /// A layer's directory.
    pub fn layer(&self, number: u64) -> PathBuf {
        self.root.join("layers").join(number.to_string())
    }
}
