//! Volumes with a `type=`: mounted at their `_data` with the first user, unmounted with the last.
//!
//! mount(2) may wait for a server (nfs), so a forked child does it, in the daemon's own mount namespace.

use super::Volumes;
use crate::container::config::Labels;
use crate::daemon::{Daemon, Then};
use crate::error::{Error, Result};
use crate::sys;
use std::ffi::{CString, c_ulong};
use std::path::Path;

/// mount(8)'s words that are flags of mount(2); the others are the file system's own options.
const FLAGS: &[(&str, c_ulong)] = &[
    ("ro", libc::MS_RDONLY),
    ("nosuid", libc::MS_NOSUID),
    ("nodev", libc::MS_NODEV),
    ("noexec", libc::MS_NOEXEC),
    ("sync", libc::MS_SYNCHRONOUS),
    ("dirsync", libc::MS_DIRSYNC),
    ("noatime", libc::MS_NOATIME),
    ("nodiratime", libc::MS_NODIRATIME),
    ("relatime", libc::MS_RELATIME),
    ("strictatime", libc::MS_STRICTATIME),
    ("bind", libc::MS_BIND),
    ("rbind", libc::MS_BIND | libc::MS_REC),
    ("rw", 0),
    ("defaults", 0),
];

/// Flags and data of an `o` option.
fn split_options(text: &str) -> (c_ulong, String) {
    let (mut flags, mut data) = (0, Vec::new());
    for word in text.split(',').filter(|word| !word.is_empty()) {
        match FLAGS.iter().find(|(name, _)| *name == word) {
            Some((_, flag)) => flags |= flag,
            None => data.push(word),
        }
    }
    (flags, data.join(","))
}

fn mount(options: &Labels, target: &Path) -> std::io::Result<()> {
    let get = |key: &str| options.get(key).map_or("", String::as_str);
    let (flags, data) = split_options(get("o"));
    let (device, kind) = (sys::cstring(get("device"))?, sys::cstring(get("type"))?);
    let target = sys::cstring(target.as_os_str().as_encoded_bytes())?;
    let data: CString = sys::cstring(data)?;
    sys::mount::mount(Some(&device), &target, Some(&kind), flags, Some(&data))?;
    if flags & libc::MS_BIND != 0 && flags & libc::MS_RDONLY != 0 {
        sys::mount::mount(None, &target, None, flags | libc::MS_REMOUNT, None)?;
    }
    Ok(())
}

fn umount(target: &Path) -> i32 {
    let Ok(target) = sys::cstring(target.as_os_str().as_encoded_bytes()) else { return libc::EINVAL };
    match sys::mount::umount2(&target, libc::MNT_DETACH) {
        Ok(()) => 0,
        Err(e) => e.raw_os_error().unwrap_or(libc::EIO) & 0xff,
    }
}

impl Volumes {
    /// At the daemon's start: what an earlier one left mounted is unmounted.
    pub fn unmount_left_over(&self) {
        for volume in self.iter().filter(|volume| volume.is_mounted_on_use()) {
            // Several may lie on one another, if daemons were killed again and again.
            for _ in 0..16 {
                if umount(&self.data(&volume.name)) != 0 {
                    break;
                }
            }
        }
    }
}

impl Daemon {
    /// Mounts what a container's volumes want mounted, one after the other; `then` goes on with its start.
    pub fn mount_volumes(&mut self, mut names: Vec<String>, then: Then<Result<()>>) {
        let Some(name) = names.pop() else { return then(self, Ok(())) };
        let users = self.volumes.users.entry(name.clone()).or_insert(0);
        *users += 1;
        if *users > 1 {
            return self.mount_volumes(names, then);
        }
        let Some(options) = self.volumes.get(&name).and_then(|volume| volume.options.clone()) else {
            return self.mount_volumes(names, then);
        };
        let target = self.volumes.data(&name);
        let shown = (options.get("device").cloned().unwrap_or_default(), options.get("o").cloned().unwrap_or_default());
        let data = target.clone();
        let work = move || match mount(&options, &target) {
            Ok(()) => 0,
            Err(e) => e.raw_os_error().unwrap_or(libc::EIO) & 0xff,
        };
        let volume = name.clone();
        let forked = self.fork_helper(&format!("mount volume {name}"), work, move |daemon, status| match status.code() {
            0 => daemon.mount_volumes(names, then),
            errno => {
                daemon.volumes.users.remove(&volume);
                let cause = crate::error::strerror(&std::io::Error::from_raw_os_error(errno));
                let (device, o) = shown;
                then(
                    daemon,
                    Err(Error::system(format!(
                        "error while mounting volume '{}': failed to mount local volume: mount {device}:{}, data: {o}: {cause}",
                        data.display(),
                        data.display()
                    ))),
                );
            }
        });
        if let Err(e) = forked {
            self.volumes.users.remove(&name);
            log::error!("fork to mount volume {name}: {e}");
        }
    }

    /// A container that used these has ended.
    pub fn unmount_volumes(&mut self, names: &[String]) {
        for name in names {
            let Some(users) = self.volumes.users.get_mut(name) else { continue };
            *users = users.saturating_sub(1);
            if *users > 0 {
                continue;
            }
            self.volumes.users.remove(name);
            let target = self.volumes.data(name);
            let forked = self.fork_helper(
                &format!("unmount volume {name}"),
                move || umount(&target),
                |_, status| {
                    if status.code() != 0 {
                        log::warn!("unmount a volume: {}", std::io::Error::from_raw_os_error(status.code()));
                    }
                },
            );
            if let Err(e) = forked {
                log::error!("fork to unmount volume {name}: {e}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_flags_or_data() {
        assert_eq!(split_options("ro,size=1m,noexec"), (libc::MS_RDONLY | libc::MS_NOEXEC, "size=1m".to_string()));
        assert_eq!(split_options("addr=1.2.3.4,nolock,rw"), (0, "addr=1.2.3.4,nolock".to_string()));
    }
}
