//! A layer on its way out: found at the registry, mounted from another of its repositories, or compressed and sent.

use super::client::Client;
use super::fault::Fault;
use super::manifest::{DOCKER_LAYER, Descriptor, is_foreign};
use super::process::{Produced, Report, Running, Ticker, send};
use super::upload::Arrived;
use crate::error::{Error, Result};
use crate::image::archive::compress::Gzip;
use crate::image::archive::recipe;
use crate::image::layer::{Blob, LayerMeta};
use crate::image::place::Place;
use crate::image::work::open_layer;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Existence checks for one layer, and offers to mount it.
const CHECKS_MAX: usize = 4;
const MOUNTS_MAX: usize = 4;
/// Times that an upload is tried.
const ATTEMPTS: u64 = 5;

/// A layer to send.
#[derive(Clone)]
pub struct Outgoing {
    /// Its directory in the store.
    pub number: u64,
    pub meta: LayerMeta,
    /// Domain of the registry, and domain and path of the target.
    pub domain: String,
    pub repository: String,
}

/// How it arrived.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sent {
    pub descriptor: Descriptor,
    /// "Pushed", "Layer already exists", "Mounted from …".
    pub words: String,
}

/// Starts a process for one layer.
pub fn start(client: &Client, place: &Place, layer: &Outgoing) -> Result<Running> {
    Running::start(|report| deliver(&mut client.sibling(), place, layer, report))
}

fn deliver(client: &mut Client, place: &Place, layer: &Outgoing, report: BorrowedFd) -> Result<Sent> {
    let mut known: Vec<&Blob> = layer.meta.known.iter().rev().filter(|blob| !is_foreign(&blob.media_type)).collect();
    // What this repository is known to have comes first, then what its registry has.
    let of_registry = |blob: &Blob| blob.repositories.iter().any(|name| name.starts_with(&format!("{}/", layer.domain)));
    known.sort_by_key(|blob| (!blob.repositories.contains(&layer.repository), !of_registry(blob)));
    for blob in known.iter().take(CHECKS_MAX) {
        if client.has_blob(blob.digest).map_err(Fault::of_push)?.is_some() {
            return Ok(Sent { descriptor: descriptor(blob), words: "Layer already exists".into() });
        }
    }
    for attempt in 1.. {
        match upload(client, place, layer, &known, report) {
            Ok(sent) => return Ok(sent),
            Err(fault) if fault.transient && attempt < ATTEMPTS => {
                for left in (1..=attempt * 5).rev() {
                    send(report, &Report::<()>::Retrying(left));
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
            Err(fault) => return Err(fault.of_push()),
        }
    }
    Err(Error::system("upload failed"))
}

fn upload(client: &mut Client, place: &Place, layer: &Outgoing, known: &[&Blob], report: BorrowedFd) -> std::result::Result<Sent, Fault> {
    let prefix = format!("{}/", layer.domain);
    let mut opened = None;
    let places = known.iter().flat_map(|blob| blob.repositories.iter().rev().map(move |name| (*blob, name)));
    for (blob, name) in places.filter(|(_, name)| **name != layer.repository && name.starts_with(&prefix)).take(MOUNTS_MAX) {
        let from = name.strip_prefix(&prefix).unwrap_or(name);
        client.also_pull_from(vec![from.to_owned()]);
        match client.begin_upload(Some((blob.digest, from))) {
            Ok(Err(Arrived::Mounted(from))) => return Ok(Sent { descriptor: descriptor(blob), words: format!("Mounted from {from}") }),
            Ok(Ok(upload)) => {
                opened = Some(upload);
                break;
            }
            // Not allowed to read there: the layer is sent instead.
            Ok(Err(_)) | Err(Fault { status: 401 | 403 | 404, .. }) => client.also_pull_from(Vec::new()),
            Err(fault) => return Err(fault),
        }
    }
    let opened = match opened {
        Some(upload) => upload,
        None => match client.begin_upload(None)? {
            Ok(upload) => upload,
            Err(_) => return Err(Fault::permanent("the registry mounted a blob that it was not offered")),
        },
    };
    let permanent = |e: Error| Fault::permanent(e.message);
    let dir = open_layer(place, layer.number).map_err(permanent)?;
    let mut stream = Produced::start(|output| {
        let mut ticker = Ticker::new(report, layer.meta.tar_size);
        let mut out = Counting { inner: Gzip::new(File::from(output)), count: 0, told: &mut |bytes| ticker.tell(bytes) };
        let made = recipe::reproduce(dir.as_fd(), &mut out)?;
        if made.diff_id != layer.meta.diff {
            return Err(Error::system(format!("layer {} has changed on the disk", layer.number)));
        }
        out.inner.finish().map(drop).map_err(|e| Error::io("compress layer", &e))
    })
    .map_err(permanent)?;
    let (digest, size) = client.upload(opened, &mut stream)?;
    let descriptor = Descriptor { media_type: DOCKER_LAYER.into(), size, digest, urls: Vec::new(), platform: None };
    Ok(Sent { descriptor, words: "Pushed".into() })
}

fn descriptor(blob: &Blob) -> Descriptor {
    Descriptor { media_type: blob.media_type.clone(), size: blob.size, digest: blob.digest, urls: Vec::new(), platform: None }
}

/// Counts what is written through it.
struct Counting<'a, W: Write> {
    inner: W,
    count: u64,
    told: &'a mut dyn FnMut(u64),
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buf)?;
        self.count += count as u64;
        (self.told)(self.count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
