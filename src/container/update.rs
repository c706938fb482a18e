//! Changing what a container may use, while it runs or before it does.

use super::cgroup::validate;
use super::config::{Resources, RestartPolicy};
use super::record::{Id, Status};
use crate::daemon::{Daemon, Then};
use crate::error::{Error, Kind, Result};

impl Daemon {
    /// Updates resources and restart policy; `then` gets the warnings when the change is durable.
    pub fn update_container(&mut self, id: &Id, resources: Resources, policy: RestartPolicy, then: Then<Result<Vec<String>>>) {
        let warnings = match self.apply_update(id, resources, policy) {
            Ok(warnings) => warnings,
            Err(error) => return then(self, Err(error)),
        };
        let target = id.clone();
        self.save_container(id, move |daemon, saved| {
            let result = match saved {
                Ok(()) => {
                    daemon.emit_container(&target, "update", &[]);
                    Ok(warnings)
                }
                Err(e) => Err(Error::io("save the container's configuration", &e)),
            };
            then(daemon, result);
        });
    }

    fn apply_update(&mut self, id: &Id, mut resources: Resources, policy: RestartPolicy) -> Result<Vec<String>> {
        let container = self.containers.find(id)?;
        let wrap = |e: Error| Error::new(e.kind, format!("Cannot update container {id}: {}", e.message));
        if container.removing || container.record.state.status == Status::Dead {
            return Err(wrap(Error::conflict("container is marked for removal and cannot be updated")));
        }
        if !policy.name.is_empty() {
            super::verify::restart_policy(&policy)?;
            if container.record.host.auto_remove && policy.name != "no" {
                return Err(wrap(Error::conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")));
            }
        }
        let mut warnings = Vec::new();
        if let Some(cgroups) = &self.cgroups {
            warnings = validate::resources(&mut resources, &cgroups.facts().support, true)?;
        }
        let had = container.record.host.resources.clone();
        let merged = validate::merged(&had, &resources).map_err(wrap)?;
        if let Some(group) = self.running_cgroups.get_mut(id) {
            group.update(&had, &merged).map_err(|e| Error::new(Kind::System, format!("Cannot update container {id}: {}", e.message)))?;
        }
        self.tell_scope(id, &merged);
        let container = self.containers.find_mut(id)?;
        container.record.host.resources = merged;
        if !policy.name.is_empty() {
            container.record.host.restart_policy = policy;
        }
        Ok(warnings)
    }

    /// The processes of a running container, as the host numbers them.
    pub fn container_pids(&self, id: &Id) -> Result<Vec<i32>> {
        let container = self.containers.find(id)?;
        match container.record.state.status {
            Status::Running | Status::Paused => {}
            Status::Restarting => return Err(super::lifecycle::restarting(id)),
            _ => return Err(super::lifecycle::not_running(id)),
        }
        match self.running_cgroups.get(id) {
            Some(group) => group.processes().map_err(|e| Error::io(format!("list the processes of container {id}"), &e)),
            None => Ok(vec![container.record.state.pid]),
        }
    }
}
