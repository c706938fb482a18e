//! Keeping a container's record on disk, and reading all of them back at the daemon's start.

use super::record::{Id, Record, Status};
use crate::daemon::Daemon;
use crate::image::state_file;
use std::io;

/// Version of config.json.
const VERSION: u32 = 1;
const FILE: &str = "config.json";

/// The file's bytes.
pub fn encode(record: &Record) -> Vec<u8> {
    state_file::encode(VERSION, record)
}

impl Daemon {
    /// Writes a container's record durably.
    pub fn save_container(&mut self, id: &Id, then: impl FnOnce(&mut Daemon, io::Result<()>) + 'static) {
        let Some(container) = self.containers.get(id) else { return then(self, Ok(())) };
        let bytes = encode(&container.record);
        let path = self.container_dir(id).join(FILE);
        self.write_state(path, bytes, then);
    }

    /// Writes a container's record without waiting for the disk: what the power takes is found out again at the next start.
    pub fn save_container_lazily(&mut self, id: &Id) {
        let Some(container) = self.containers.get(id) else { return };
        let bytes = encode(&container.record);
        let path = self.container_dir(id).join(FILE);
        if let Err(e) = self.write_state_lazily(&path, &bytes) {
            log::error!("write {}: {e}", path.display());
        }
    }

    /// Reads every container back. What ran is dead: its daemon was its parent, and what is left of it is killed.
    pub(crate) fn restore_containers(&mut self) -> io::Result<()> {
        let dir = self.data_root.join("containers");
        let mut restart = Vec::new();
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let path = entry.path().join(FILE);
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(e) => {
                    log::error!("container {}: {e}; it is set aside", entry.path().display());
                    self.set_aside(&entry.path());
                    continue;
                }
            };
            let mut record: Record = match state_file::decode(VERSION, &bytes) {
                Ok(record) => record,
                Err(e) => {
                    log::error!("container {}: {e}; it is set aside", entry.path().display());
                    self.set_aside(&entry.path());
                    continue;
                }
            };
            let id: Id = record.id.as_str().into();
            self.clean_up_after_crash(&mut record);
            let again = matches!(record.host.restart_policy.name.as_str(), "always")
                || (record.host.restart_policy.name == "unless-stopped" && !record.manually_stopped)
                || (record.host.restart_policy.name == "on-failure"
                    && record.state.exit_code != 0
                    && record.state.status == Status::Restarting);
            let auto_remove = record.host.auto_remove;
            let ran = record.state.started_ns.is_some();
            if record.state.status == Status::Restarting {
                record.state.status = Status::Exited;
            }
            self.enter_container(record);
            if auto_remove {
                self.auto_remove(&id);
            } else if again && ran {
                restart.push(id);
            } else {
                self.save_container_lazily(&id);
            }
        }
        for id in restart {
            let name = id.clone();
            self.start_container(
                &id,
                Box::new(move |_, result| {
                    if let Err(e) = result {
                        log::error!("restart container {name}: {e}");
                    }
                }),
            );
        }
        Ok(())
    }

    /// Kills what an earlier daemon left running of a container, and notes that it has ended.
    fn clean_up_after_crash(&mut self, record: &mut Record) {
        let id = record.id.clone();
        if let Some(cgroups) = &mut self.cgroups {
            let none = crate::container::cgroup::devices::Devices::All;
            let numbers = |_: &str| Err(crate::error::Error::system("not looked up"));
            // Only the path matters; limits that name devices are left out of it.
            let resources =
                crate::container::config::Resources { cgroup_parent: record.host.resources.cgroup_parent.clone(), ..Default::default() };
            let plan = crate::container::cgroup::plan(cgroups.facts(), &id, &resources, &none, &numbers);
            match plan.and_then(|plan| cgroups.reopen(&plan.path())) {
                Ok(Some(group)) => {
                    let _ = group.kill_all();
                    self.remove_cgroup(group, 0);
                }
                Ok(None) => {}
                Err(e) => log::warn!("container {id}: {e}"),
            }
        }
        if record.state.is_running() {
            log::warn!("container {} ran when the daemon ended; it is killed", record.name);
            record.state.status = Status::Exited;
            record.state.exit_code = 137;
            record.state.pid = 0;
            record.state.finished_ns = Some(crate::sys::time::realtime_ns());
        }
    }

    fn set_aside(&mut self, path: &std::path::Path) {
        let lost = self.data_root.join("lost");
        let name = path.file_name().unwrap_or_default();
        if let Err(e) = std::fs::create_dir_all(&lost).and_then(|()| std::fs::rename(path, lost.join(name))) {
            log::error!("set {} aside: {e}", path.display());
        }
    }
}
