//! Copy-up: what an image has at a volume's target becomes the content of an empty volume.
//!
//! A worker does it: the image's layers as a read-only overlay, read in one jail, written in another.

use crate::container::plan::Overlay;
use crate::container::{overlay, rootfs};
use crate::error::{Error, Result};
use crate::image::archive::apply::{self, Options};
use crate::image::archive::jail::{self, Policy, Root};
use crate::image::archive::write::{self, Writer};
use crate::sys;
use crate::worker::Job;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

/// One volume to fill.
#[derive(Clone, Debug)]
pub struct Fill {
    /// The volume's `_data`.
    pub data: PathBuf,
    /// Absolute, in the container.
    pub target: String,
}

/// The worker's job; `layers` are the image's, top first.
pub fn job(layers: Vec<PathBuf>, fills: Vec<Fill>) -> Job {
    Job::new("copy-up", move |_| fills.iter().try_for_each(|fill| copy(&layers, fill)))
}

/// Whether a layer seems to have something at `target`: worth a worker. A look only, nothing is opened.
pub fn is_worth_it(layers: &[PathBuf], target: &str) -> bool {
    layers.iter().any(|layer| std::fs::symlink_metadata(layer.join(target.trim_start_matches('/'))).is_ok())
}

fn copy(layers: &[PathBuf], fill: &Fill) -> Result<()> {
    let failed = |what: &'static str| move |e: std::io::Error| Error::io(what, &e);
    if std::fs::read_dir(&fill.data).map_err(failed("read the volume"))?.next().is_some() {
        return Ok(());
    }
    let c = |path: &Path| sys::cstring(path.as_os_str().as_encoded_bytes());
    let lower = layers.iter().map(|layer| c(layer)).collect::<std::io::Result<_>>().map_err(failed("name a layer"))?;
    let root = overlay::mount(&Overlay { lower, upper: None, work: None }).map_err(failed("mount the image's layers"))?;
    let volume =
        sys::fd::open(&c(&fill.data).map_err(failed("name the volume"))?, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0)
            .map_err(failed("open the volume"))?;
    let target = sys::cstring(&fill.target).map_err(failed("name the target"))?;
    let (read, write) = jail::wide_pipe()?;
    let mut policy = Policy::new(Root::Mount(root.as_fd()));
    policy.keep.push(write.as_raw_fd());
    let reader = jail::start(policy, |_| {
        let here = sys::fd::open(c"/", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed("open the image's root"))?;
        // Links in the image are the image's own: they end inside its root.
        let source = match rootfs::open_in_root(here.as_fd(), &target, libc::O_RDONLY | libc::O_DIRECTORY) {
            Ok(source) => source,
            Err(_) => return Ok(b"nothing".to_vec()),
        };
        let mut out = std::fs::File::from(write.try_clone().map_err(failed("dup"))?);
        let mut writer = Writer::new(&mut out);
        writer.tree(source.as_fd(), c".", b"./", &write::Options { whiteouts: false, hide_mounts: true, live: false })?;
        writer.finish()?;
        Ok(Vec::new())
    })?;
    drop(write);
    let mut source = std::fs::File::from(read);
    let mut first = [0; 512];
    let n = source.read(&mut first).map_err(failed("read from the image"))?;
    if n > 0 {
        let mut stream = (&first[..n]).chain(source);
        jail::stream_in(Policy::new(Root::Directory(volume.as_fd())), &mut stream, |input, prisoner| {
            let here = sys::fd::open(c"/", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(failed("open the volume's root"))?;
            apply::apply(input, here.as_fd(), None, &Options { devices: false, ..Options::copy("/") }, &mut (), prisoner)?;
            Ok(Vec::new())
        })?;
    }
    reader.finish().map(drop)
}
