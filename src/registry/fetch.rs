//! A layer on its way in: downloaded, inflated, hashed and unpacked in one pass by a process of its own.

use super::client::Client;
use super::manifest::Descriptor;
use super::process::{Report, Running, Ticker, send};
use crate::error::{Error, Result};
use crate::image::archive::ingest::{Expect, ingest_layer};
use crate::image::digest::Digest;
use crate::image::layer::{Blob, LayerMeta};
use crate::image::work::{Staged, Work};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

/// A layer to fetch.
pub struct Wanted {
    pub descriptor: Descriptor,
    pub diff: Digest,
    pub parent: Option<Digest>,
    /// Domain and path of the repository, remembered for pushes.
    pub repository: String,
}

/// A running fetch.
pub struct Fetch {
    /// The layer's directory in the worker's place.
    pub name: String,
    pub process: Running,
}

impl Fetch {
    /// Starts a process for one layer; its last report is the layer, whole in staging, verified and synced.
    pub fn start(client: &Client, work: &mut Work, wanted: &Wanted) -> Result<Fetch> {
        let (name, dir) = work.directory()?;
        let process = Running::start(|report| fetch(&mut client.sibling(), work, &name, wanted, dir.as_fd(), report))?;
        Ok(Fetch { name, process })
    }
}

fn fetch(client: &mut Client, work: &Work, name: &str, wanted: &Wanted, dir: BorrowedFd, report: BorrowedFd) -> Result<LayerMeta> {
    let Descriptor { digest, size, urls, media_type, .. } = &wanted.descriptor;
    let expect = Expect { compressed_digest: Some(*digest), compressed_size: Some(*size), diff_id: Some(wanted.diff), ..Expect::default() };
    let retrying = |left| send(report, &Report::<()>::Retrying(left));
    let mut blob = client.blob(*digest, *size).without_digest().with_urls(urls).on_retry(retrying);
    let mut ticker = Ticker::new(report, *size);
    let layer = ingest_layer(&mut blob, &expect, dir, &mut |bytes| ticker.tell(bytes))?;
    // Reads on to the end that the registry meant: one byte more is a lie about the size.
    if blob.read(&mut [0]).map_err(|e| Error::system(super::transport::words(&e)))? > 0 {
        return Err(Error::invalid("layer is larger than its descriptor says"));
    }
    let known = Blob { digest: *digest, size: *size, media_type: media_type.clone(), repositories: vec![wanted.repository.clone()] };
    let meta = work.describe(&Staged { name: name.into(), layer }, wanted.parent, Some(known))?;
    work.sync()?;
    Ok(meta)
}
