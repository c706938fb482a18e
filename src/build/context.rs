//! The build's context: an archive from the client or the web, unpacked in a jail, and the Dockerfile in it.

use super::fetch;
use super::ignore::{Ignore, clean};
use super::job::Params;
use crate::container::rootfs::{open_in_root, read_regular};
use crate::error::{Error, Result};
use crate::image::archive::apply::{self, Options};
use crate::image::archive::decompress::Decompressor;
use crate::image::archive::from_io;
use crate::image::archive::jail::{self, Policy, Root};
use crate::image::work::Work;
use crate::sys;
use crate::worker::Context;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of a Dockerfile and of a .dockerignore.
const FILE_MAX: usize = 4 << 20;

/// Reads the context into staging: its directory, and the Dockerfile's bytes.
pub fn read(context: &mut Context, work: &mut Work, params: &Params) -> Result<(OwnedFd, Vec<u8>)> {
    let (_, dir) = work.directory()?;
    let name = clean(&params.dockerfile);
    if params.remote.is_empty() {
        unpack(context.body(), dir.as_fd())?;
    } else if fetch::is_url(&params.remote) {
        let answer = fetch::get(&params.settings, &params.remote)?;
        let kind = answer.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        let mut body = answer.body.into_reader();
        if kind == "text/plain" || kind.is_empty() {
            let mut text = Vec::new();
            body.take(FILE_MAX as u64).read_to_end(&mut text).map_err(|e| from_io("download the Dockerfile", e))?;
            return Ok((dir, text));
        }
        unpack(&mut body, dir.as_fd())?;
    } else {
        return Err(Error::not_implemented(format!(
            "remote context {} is not supported: give an archive or a Dockerfile by URL",
            params.remote
        )));
    }
    let text = dockerfile(dir.as_fd(), &name)?;
    forget_ignored(dir.as_fd(), &name)?;
    Ok((dir, text))
}

fn unpack(source: &mut dyn Read, dir: BorrowedFd) -> Result<()> {
    let mut plain = Decompressor::new(source).map_err(|e| from_io("read the build context", e))?;
    jail::stream_in(Policy::new(Root::Directory(dir)), &mut plain, |input, prisoner| {
        let root = sys::fd::open(c"/", libc::O_DIRECTORY, 0).map_err(|e| Error::io("open /", &e))?;
        apply::apply(input, root.as_fd(), None, &Options::context(), &mut (), prisoner)?;
        Ok(Vec::new())
    })
    .map(drop)
    .map_err(|e| Error::new(e.kind, format!("Error processing tar file: {}", e.message)))
}

fn dockerfile(dir: BorrowedFd, name: &str) -> Result<Vec<u8>> {
    let read = |name: &str| sys::cstring(name).and_then(|name| read_regular(dir, &name, FILE_MAX));
    let missing = || Error::invalid(format!("Cannot locate specified Dockerfile: {name}"));
    match read(name) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) && name == "Dockerfile" => read("dockerfile").map_err(|_| missing()),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Err(missing()),
        Err(e) => Err(Error::io(format!("read {name}"), &e)),
        Ok(text) => Ok(text),
    }
}

/// The client sends the Dockerfile and .dockerignore even where the latter excludes them; then they are no sources.
fn forget_ignored(dir: BorrowedFd, name: &str) -> Result<()> {
    let Ok(text) = read_regular(dir, c".dockerignore", FILE_MAX) else { return Ok(()) };
    let ignore = Ignore::read(&String::from_utf8_lossy(&text))?;
    for path in [".dockerignore", name] {
        if !ignore.matches(path) {
            continue;
        }
        let (parent, last) = path.rsplit_once('/').unwrap_or((".", path));
        let gone = || {
            let parent = open_in_root(dir, &sys::cstring(parent)?, libc::O_PATH | libc::O_DIRECTORY)?;
            sys::fs::unlinkat(parent.as_fd(), &sys::cstring(last)?, 0)
        };
        gone().map_err(|e: std::io::Error| Error::io(format!("leave out {path}"), &e))?;
    }
    Ok(())
}
