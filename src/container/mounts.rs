//! A container's mounts: binds, volumes, tmpfs and images, from its configuration to the launch plan.

use super::plan_mounts::MountInput;
use super::record::{Id, Record};
use crate::daemon::Daemon;
use crate::error::Result;

impl Daemon {
    /// The mounts of a start, their sources found.
    pub(super) fn mounts_of(&mut self, _record: &Record) -> Result<Vec<MountInput>> {
        Ok(Vec::new())
    }

    /// The container is going: its volumes lose a user, and the anonymous ones go with it when `remove` says so.
    pub(super) fn release_volumes(&mut self, _id: &Id, _remove: bool) {}
}
