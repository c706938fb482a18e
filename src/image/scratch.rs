//! For tests: a directory of one's own that is gone afterwards.

use crate::sys;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("coracle-test-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn fd(&self) -> OwnedFd {
        sys::fd::open(&sys::cstring(self.0.to_str().unwrap()).unwrap(), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
