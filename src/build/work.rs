//! The deeds of steps: new configurations, directories, containers, copies.

use super::copy::{self, Target};
use super::dockerfile::{Copy, Dockerfile};
use super::image::Image;
use super::job::Build;
use super::mounts::Kind as MountKind;
use super::stages::{self, Origin};
use super::steps::{RunWork, State};
use super::{engine, fetch, ignore};
use crate::container::config::{Config, Healthcheck, LogConfig, MountSpec, TmpfsOptions};
use crate::container::rootfs;
use crate::container::user::{self, UserSpec};
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::sys;
use serde_json::json;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

impl Build<'_> {
    /// A step that changes nothing but the configuration.
    pub(super) fn configure(&mut self, image: Image, state: &State, command: &[String]) -> Result<Image> {
        if let Some(cached) = self.cached(&image, state, command, &[])? {
            return Ok(cached);
        }
        let made = self.commit(&image, None, state, command)?;
        self.remember(&image, state, command, &[], &made)?;
        Ok(made)
    }

    pub(super) fn workdir(&mut self, image: Image, state: &State, command: &[String], path: &str) -> Result<Image> {
        if let Some(cached) = self.cached(&image, state, command, &[])? {
            return Ok(cached);
        }
        let filling = self.fill(&image)?;
        {
            let view = filling.merged()?;
            let path = sys::cstring(ignore::clean(path)).map_err(|e| Error::io("name a directory", &e))?;
            rootfs::make_directories(view.as_fd(), &path).map_err(|e| Error::io(format!("mkdir {}", path.to_string_lossy()), &e))?;
        }
        let made = self.commit_layer(&image, filling, state, command)?;
        self.remember(&image, state, command, &[], &made)?;
        Ok(made)
    }

    pub(super) fn run_step(
        &mut self,
        file: &Dockerfile,
        index: usize,
        image: Image,
        state: &State,
        command: &[String],
        run: &RunWork,
    ) -> Result<Image> {
        if run.security == "insecure" {
            return Err(Error::invalid("security.insecure is not allowed"));
        }
        let mut depends = vec![run.network.clone()];
        depends.extend(run.script.iter().cloned());
        let mut host = self.params.host.clone();
        let mut argv = run.argv.clone();
        let mut mounts = Vec::new();
        for mount in &run.mounts {
            if let Some((spec, depend)) = self.mount(file, index, mount)? {
                mounts.push(spec);
                depends.push(depend);
            }
        }
        if let Some(script) = &run.script {
            let (spec, target) = self.script(script)?;
            mounts.push(spec);
            argv = vec![target];
        }
        let probe = State { config: without_entrypoint(&state.config), ..state.clone() };
        if let Some(cached) = self.cached(&image, &probe, command, &depends)? {
            return Ok(cached);
        }
        if image.id.is_none() {
            return Err(Error::invalid("Please provide a source image with `from` prior to run"));
        }
        if !mounts.is_empty() {
            host.mounts.get_or_insert_default().extend(mounts);
        }
        if !run.network.is_empty() && run.network != "default" {
            host.network_mode.clone_from(&run.network);
        }
        host.log_config = LogConfig { kind: "none".into(), config: None };
        let config = Config {
            image: image.id.map(|id| id.to_string()).unwrap_or_default(),
            cmd: Some(argv.clone()),
            entrypoint: Some(vec![String::new()]),
            env: Some(run.env.clone()),
            healthcheck: Some(Healthcheck { test: Some(vec!["NONE".into()]), ..Healthcheck::default() }),
            on_build: None,
            attach_stdout: true,
            attach_stderr: true,
            ..state.config.clone()
        };
        let container = engine::create(self.context, &config, &host)?;
        for warning in &container.warnings {
            self.say(&format!(" ---> [Warning] {warning}\n"))?;
        }
        let short = container.id.get(..12).unwrap_or(&container.id).to_owned();
        self.say(&format!(" ---> Running in {short}\n"))?;
        let quiet = self.params.quiet;
        let code = engine::run(self.context, &container.id, |context, stderr, bytes| {
            if quiet {
                return Ok(());
            }
            let text = String::from_utf8_lossy(bytes);
            match stderr {
                true => context.line(&json!({"stream": format!("\u{1b}[91m{text}\u{1b}[0m")})),
                false => context.line(&json!({"stream": text})),
            }
        })?;
        if code != 0 {
            let message = format!("The command '{}' returned a non-zero code: {code}", argv.join(" "));
            if self.params.force_remove {
                self.discard(&container.id, &short)?;
            }
            if !self.context.started() {
                self.context.start(200, "application/json")?;
            }
            self.context.line(&json!({"errorDetail": {"code": code, "message": message}, "error": message}))?;
            // The stream has told; nothing may follow it.
            sys::process::exit(if self.context.finish_stream().is_ok() { 0 } else { 1 });
        }
        let filling = self.fill(&image)?;
        let upper = self.params.place.root.join("containers").join(&container.id).join("upper");
        // The container is over: its upper directory becomes the layer, without a copy.
        std::fs::remove_dir(&filling.upper)
            .and_then(|()| std::fs::rename(&upper, &filling.upper))
            .map_err(|e| Error::io("take over a container's files", &e))?;
        let made = self.commit_layer(&image, filling, state, command)?;
        if self.params.remove || self.params.force_remove {
            self.discard(&container.id, &short)?;
        } else {
            engine::remove(self.context, &container.id)?;
        }
        self.remember(&image, &probe, command, &depends, &made)?;
        Ok(made)
    }

    fn discard(&mut self, id: &str, short: &str) -> Result<()> {
        engine::remove(self.context, id)?;
        self.say(&format!(" ---> Removed intermediate container {short}\n"))
    }

    /// A mount of a RUN step as the container's; `None` for what is absent when it is not required.
    fn mount(&mut self, file: &Dockerfile, index: usize, mount: &super::mounts::Mount) -> Result<Option<(MountSpec, String)>> {
        let target = if mount.target.starts_with('/') { mount.target.clone() } else { format!("/{}", mount.target) };
        let spec = MountSpec { target: target.clone(), read_only: mount.read_only, ..MountSpec::default() };
        match mount.kind {
            MountKind::Tmpfs => {
                let size_bytes = i64::try_from(mount.size).unwrap_or(i64::MAX);
                let tmpfs_options = Some(TmpfsOptions { size_bytes, ..TmpfsOptions::default() });
                Ok(Some((MountSpec { kind: "tmpfs".into(), tmpfs_options, ..spec }, format!("tmpfs {target}"))))
            }
            MountKind::Cache if mount.from.is_empty() => {
                let id = if mount.id.is_empty() { &target } else { &mount.id };
                let dir = self.params.place.root.join("build-cache").join("mounts").join(Digest::of(id.as_bytes()).hex());
                let failed = |e: std::io::Error| Error::io("make a cache mount", &e);
                std::fs::create_dir_all(&dir).map_err(failed)?;
                std::os::unix::fs::chown(&dir, mount.uid, mount.gid).map_err(failed)?;
                let mode = mount.mode.unwrap_or(0o755);
                std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(mode)).map_err(failed)?;
                let source = dir.to_string_lossy().into_owned();
                Ok(Some((MountSpec { kind: "bind".into(), source, ..spec }, format!("cache {id} {target}"))))
            }
            MountKind::Secret | MountKind::Ssh if !mount.required => Ok(None),
            MountKind::Secret => {
                Err(Error::invalid(format!("secret {}: not found", if mount.id.is_empty() { &mount.source } else { &mount.id })))
            }
            MountKind::Ssh => Err(Error::invalid("no SSH key forwarded from the client")),
            MountKind::Bind | MountKind::Cache => {
                // A copy of its own: what a step writes there is thrown away.
                let copy = Copy {
                    sources: vec![if mount.source.is_empty() { ".".into() } else { mount.source.clone() }],
                    dest: "/".into(),
                    ..Copy::default()
                };
                let (root, context) = self.origin(file, index, &mount.from)?;
                let found = copy::find(root.as_fd(), &copy, "RUN --mount", context)?;
                let empty = Image::scratch(None);
                let filling = self.fill(&empty)?;
                let aim = Target { dest: "/", owner: None, mode: None, unpack: false };
                copy::perform(&found, root.as_fd(), &aim, &|| filling.merged())?;
                let single = match found.sources.as_slice() {
                    [copy::Source::Path { path, directory: false, .. }] => filling.upper.join(path.rsplit('/').next().unwrap_or(path)),
                    _ => filling.upper.clone(),
                };
                let source = single.to_string_lossy().into_owned();
                Ok(Some((MountSpec { kind: "bind".into(), source, ..spec }, format!("bind {} {target}", found.hash))))
            }
        }
    }

    /// A here-document that is a program: its file's mount, and its path in the container.
    fn script(&mut self, text: &str) -> Result<(MountSpec, String)> {
        let number = self.context.number;
        let (name, _) = self.work()?.directory()?;
        let path = self.params.place.staging(number).join(name).join("script");
        let failed = |e: std::io::Error| Error::io("write a script", &e);
        std::fs::write(&path, text).map_err(failed)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).map_err(failed)?;
        let target = "/dev/pipes/script".to_owned();
        let source = path.to_string_lossy().into_owned();
        Ok((MountSpec { kind: "bind".into(), source, target: target.clone(), read_only: true, ..MountSpec::default() }, target))
    }

    /// Where `--from` points: an open root, and whether it is the build's context.
    fn origin(&mut self, file: &Dockerfile, index: usize, from: &str) -> Result<(OwnedFd, bool)> {
        if from.is_empty() {
            return Ok((self.sources()?, true));
        }
        let image = match stages::from_flag(&file.stages, index, from)? {
            Origin::Stage(stage) => self.done.get(stage).cloned().flatten().ok_or_else(|| Error::system("a stage was not built"))?,
            Origin::Image(name) => {
                let platform = self.params.platform.clone();
                self.base(&name, platform).map_err(|e| Error::new(e.kind, format!("invalid from flag value {name}: {}", e.message)))?
            }
            Origin::Scratch => Image::scratch(None),
        };
        Ok((self.view(&image)?, false))
    }

    pub(super) fn copy_step(
        &mut self,
        file: &Dockerfile,
        index: usize,
        image: Image,
        state: &State,
        copy: &Copy,
        add: bool,
    ) -> Result<Image> {
        let keyword = if add { "ADD" } else { "COPY" };
        if copy.parents || !copy.exclude.is_empty() {
            return Err(Error::not_implemented(format!("{keyword} --parents and --exclude are not supported yet")));
        }
        let mode = match copy.chmod.as_str() {
            "" => None,
            text => Some(u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o7777).ok_or_else(|| {
                Error::invalid(format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"))
            })?),
        };
        let (remote, local): (Vec<String>, Vec<String>) = copy.sources.iter().cloned().partition(|source| fetch::is_url(source));
        if !add && !remote.is_empty() {
            return Err(Error::invalid("COPY failed: source can't be a URL for COPY"));
        }
        let mut parts: Vec<(OwnedFd, copy::Found, bool)> = Vec::new();
        for url in &remote {
            let (dir, name) = self.download(url, copy)?;
            let one = Copy { sources: vec![name], heredocs: Vec::new(), ..copy.clone() };
            let found = copy::find(dir.as_fd(), &one, keyword, false)?;
            parts.push((dir, found, copy.unpack == Some(true)));
        }
        if !local.is_empty() || !copy.heredocs.is_empty() {
            let (root, context) = self.origin(file, index, &copy.from)?;
            let found = copy::find(root.as_fd(), &Copy { sources: local, ..copy.clone() }, keyword, context)?;
            parts.push((root, found, add && copy.unpack != Some(false)));
        }
        let hashes: Vec<String> = parts.iter().map(|(_, found, _)| found.hash.clone()).collect();
        let chown = if copy.chown.is_empty() { String::new() } else { format!("--chown={}", copy.chown) };
        let comment = format!("{keyword} {chown}{} in {} ", super::cache::sources_name(&hashes), copy.dest);
        let command = state.nop(&[format!("#(nop) {comment}")]);
        let depends = [copy.chmod.clone(), copy.from.clone(), format!("{:?}", copy.unpack)];
        if let Some(cached) = self.cached(&image, state, &command, &depends)? {
            return Ok(cached);
        }
        let filling = self.fill(&image)?;
        let owner = match copy.chown.as_str() {
            "" if !copy.from.is_empty() => None,
            "" => Some((0, 0)),
            text => Some(owner_of(filling.merged()?.as_fd(), text)?),
        };
        let dest = destination(&state.config.working_dir, &copy.dest);
        for (root, found, unpack) in &parts {
            let target = Target { dest: &dest, owner, mode, unpack: *unpack };
            let done = copy::perform(found, root.as_fd(), &target, &|| filling.merged());
            done.map_err(|e| Error::new(e.kind, format!("failed to copy files: {}", e.message)))?;
        }
        let made = self.commit_layer(&image, filling, state, &command)?;
        self.remember(&image, state, &command, &depends, &made)?;
        Ok(made)
    }

    /// Downloads a source of ADD into a directory of its own.
    fn download(&mut self, url: &str, copy: &Copy) -> Result<(OwnedFd, String)> {
        let number = self.context.number;
        let settings = self.params.settings.clone();
        let (name, dir) = self.work()?.directory()?;
        let path = self.params.place.staging(number).join(name);
        let file = fetch::to_file(&settings, url, &path, &copy.dest, &copy.checksum)?;
        self.say("\n")?;
        Ok((dir, file))
    }
}

/// RUN's own view of the configuration: its command replaces an entrypoint.
fn without_entrypoint(config: &Config) -> Config {
    Config { entrypoint: None, ..config.clone() }
}

/// A destination against the working directory; a trailing slash stays.
fn destination(working_dir: &str, dest: &str) -> String {
    let slash = if dest.ends_with('/') || dest == "." || dest.ends_with("/.") { "/" } else { "" };
    let path = if dest.starts_with('/') { ignore::clean(dest) } else { ignore::clean(&format!("/{working_dir}/{dest}")) };
    if path == "/" { path } else { format!("{path}{slash}") }
}

/// `--chown`: numbers, or names of the image's own files.
fn owner_of(root: BorrowedFd, text: &str) -> Result<(u32, u32)> {
    let refuse = |why: String| Error::invalid(format!("unable to convert uid/gid chown string to host mapping: {why}"));
    let spec = UserSpec::parse(text, &[]).map_err(|e| refuse(e.to_string()))?;
    let identity = user::resolve(root, &spec).map_err(|e| refuse(e.to_string()))?;
    // A user alone gives its group too, as a number or by name.
    let gid = if text.contains(':') || text.parse::<u32>().is_err() { identity.gid } else { identity.uid };
    Ok((identity.uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_follow_the_working_directory() {
        for (dir, dest, path) in [
            ("/w", "a", "/w/a"),
            ("/w", "a/", "/w/a/"),
            ("", "a", "/a"),
            ("/w", ".", "/w/"),
            ("/w", "/", "/"),
            ("/w", "/x/../y/", "/y/"),
            ("/w", "./", "/w/"),
        ] {
            assert_eq!(destination(dir, dest), path);
        }
    }
}
