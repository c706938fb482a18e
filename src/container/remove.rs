//! Removing containers: the directory is renamed away at once and deleted by a worker.

use super::record::{Id, Status};
use crate::daemon::{Daemon, Then};
use crate::error::{Error, Kind, Result};
use crate::sys;

/// What to remove besides the container.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveOptions {
    /// Kill it when it runs.
    pub force: bool,
    /// Its anonymous volumes too.
    pub volumes: bool,
}

impl Daemon {
    /// Removes a container; `then` learns when it is gone from the table and from its place on disk.
    pub fn remove_container(&mut self, id: &Id, options: RemoveOptions, then: Then<Result<()>>) {
        if let Err(error) = self.check_removable(id, options) {
            return then(self, Err(error));
        }
        let Some(container) = self.containers.get_mut(id) else { return then(self, Ok(())) };
        container.removing = true;
        if let Some(timer) = container.restart_timer.take() {
            self.timers.cancel(timer);
        }
        let running = container.record.state.is_running() || container.starting;
        if !running {
            let result = self.finish_removal(id, options);
            return then(self, result);
        }
        // Its own auto-removal would race with ours.
        container.record.host.auto_remove = false;
        let target = id.clone();
        self.kill_and_wait(
            id,
            Box::new(move |daemon, killed| {
                let result = match killed {
                    Err(error) if error.kind != Kind::Conflict => Err(Error::new(
                        error.kind,
                        format!("cannot remove container \"{target}\": could not kill container: {}", error.message),
                    )),
                    _ => daemon.finish_removal(&target, options),
                };
                if result.is_err()
                    && let Some(container) = daemon.containers.get_mut(&target)
                {
                    container.removing = false;
                }
                then(daemon, result);
            }),
        );
    }

    fn check_removable(&self, id: &Id, options: RemoveOptions) -> Result<()> {
        let container = self.containers.find(id)?;
        let name = format!("/{}", container.record.name);
        if container.removing {
            return Err(Error::conflict(format!("removal of container {id} is already in progress")));
        }
        let status = container.record.state.status;
        if options.force {
            return Ok(());
        }
        let refuse = |why: &str| Err(Error::conflict(format!("cannot remove container \"{name}\": {why}")));
        match status {
            Status::Paused => refuse("container is paused and must be unpaused first"),
            Status::Restarting => refuse("container is restarting: stop the container before removing or force remove"),
            Status::Running => refuse("container is running: stop the container before removing or force remove"),
            _ if container.starting => refuse("container is running: stop the container before removing or force remove"),
            _ => Ok(()),
        }
    }

    /// Takes a container that does not run out of the world.
    fn finish_removal(&mut self, id: &Id, options: RemoveOptions) -> Result<()> {
        let dir = self.container_dir(id);
        self.unique_trash += 1;
        let trash = format!("container-{id}-trash{}", self.unique_trash);
        let target = self.data_root.join("staging").join(&trash);
        let move_away = || -> std::io::Result<()> {
            let from = sys::cstring(dir.as_os_str().as_encoded_bytes())?;
            let to = sys::cstring(target.as_os_str().as_encoded_bytes())?;
            sys::fs::renameat2(sys::fd::AT_FDCWD, &from, sys::fd::AT_FDCWD, &to, 0)
        };
        match move_away() {
            Ok(()) => {
                if let Ok(name) = sys::cstring(&trash) {
                    self.images.add_trash(name);
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("remove container {id}: rename {}", dir.display()), &e)),
        }
        self.forget_execs(id);
        self.release_volumes(id, options.volumes);
        self.images.release(id);
        let code = self.containers.get(id).map_or(0, |container| container.record.state.exit_code);
        self.emit_container(id, "destroy", &[]);
        self.answer_waiters(id, code, None, true);
        if let Some(container) = self.containers.remove(id) {
            self.drop_hub(container.hub);
        }
        self.sweep_images();
        Ok(())
    }

    /// What `--rm` promised.
    pub(crate) fn auto_remove(&mut self, id: &Id) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.removing {
            return;
        }
        container.removing = true;
        container.record.state.status = Status::Removing;
        if let Err(e) = self.finish_removal(id, RemoveOptions { force: true, volumes: true }) {
            log::error!("{e}");
        }
    }

    /// Renames a container; the new name is kept before the old one is given back.
    pub fn rename_container(&mut self, id: &Id, name: &str, then: Then<Result<()>>) {
        let renamed = self.begin_rename(id, name);
        let (old, new) = match renamed {
            Ok(names) => names,
            Err(error) => return then(self, Err(error)),
        };
        let target = id.clone();
        self.save_container(id, move |daemon, saved| {
            let result = match saved {
                Ok(()) => {
                    daemon.containers.release(&old, &target);
                    daemon.rename_in_networks(&target, &new);
                    daemon.emit_container(&target, "rename", &[("oldName", format!("/{old}"))]);
                    Ok(())
                }
                Err(e) => {
                    daemon.containers.release(&new, &target);
                    if let Some(container) = daemon.containers.get_mut(&target) {
                        container.record.name = old;
                    }
                    Err(Error::io("save the container's name", &e))
                }
            };
            then(daemon, result);
        });
    }

    fn begin_rename(&mut self, id: &Id, name: &str) -> Result<(String, String)> {
        if name.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        let new = super::names::check(name)?.to_string();
        let container = self.containers.find(id)?;
        let old = container.record.name.clone();
        if old == new {
            return Err(Error::invalid("Renaming a container with the same name as its current name"));
        }
        if container.removing {
            return Err(Error::conflict(format!("container {id} is marked for removal and cannot be renamed")));
        }
        self.containers.reserve(&new, id).map_err(|e| Error::conflict(format!("Error when allocating new name: {}", e.message)))?;
        self.containers.find_mut(id)?.record.name = new.clone();
        Ok((old, new))
    }
}
