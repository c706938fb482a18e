//! `POST /images/load`: from an archive of images (Docker's, or an OCI layout) to images.
//!
//! First the archive is read, then everything is decided from its documents, then layers and images are told to the daemon.
//! Nothing becomes visible before all layers of the archive are verified.

use super::archive::ingest::Expect;
use super::config::{CONFIG_MAX, Document, Platform};
use super::digest::{Digest, chain_id};
use super::layer::Blob;
use super::outer::{Item, Outer, Watch, open_spooled};
use super::place::Place;
use super::reference::Reference;
use super::work::{self, Staged, Stored, Work};
use crate::error::{Error, Result};
use crate::registry::client::{Fetched, MANIFEST_MAX};
use crate::registry::manifest::{self, Descriptor};
use crate::registry::progress;
use crate::worker::Context;
use crate::worker::message::ImageMessage;
use serde::Deserialize;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};

/// Bytes between two progress lines of one layer.
const PROGRESS_STEP: u64 = 1 << 20;
/// Indexes within indexes.
const INDEX_DEPTH: usize = 2;

/// What is asked for.
pub struct Load {
    pub place: Place,
    /// No progress bars.
    pub quiet: bool,
    /// Only images for this platform.
    pub platform: Option<Platform>,
}

/// One image of the archive, decided.
struct Planned {
    bytes: Vec<u8>,
    id: Digest,
    document: Document,
    /// Keys of the layers' entries, bottom first, with the compressed form they must have.
    layers: Vec<(String, Option<Descriptor>)>,
    names: Vec<Reference>,
    parent: Option<Digest>,
}

/// `manifest.json`'s elements.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestItem {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
    #[serde(default)]
    parent: Option<String>,
}

impl Load {
    /// Does it. Like the reference it answers 200 whatever comes: what goes wrong is the stream's last line.
    pub fn run(self, context: &mut Context) -> Result<()> {
        let outcome = self.load(context);
        if !context.started() {
            context.start(200, "application/json")?;
        }
        for line in outcome? {
            context.line(&json!({"stream": line}))?;
        }
        Ok(())
    }

    fn load(&self, context: &mut Context) -> Result<Vec<String>> {
        let mut work = Work::begin(&self.place, context.number)?;
        let mut outer = {
            let shared = RefCell::new(&mut *context);
            let mut watcher = Watcher { context: &shared, quiet: self.quiet, last: 0 };
            Outer::read(&mut Body(&shared), &mut work, &mut watcher)?
        };
        let images = self.plan(&outer, &work)?;
        let mut documents = Vec::with_capacity(images.len());
        for image in &images {
            documents.push(work.stage_document(&image.bytes)?);
        }
        store_layers(context, &mut work, &mut outer, &images)?;
        let mut said = Vec::new();
        let mut unnamed = Vec::new();
        for (image, document) in images.iter().zip(documents) {
            work::image_ready(context, &work, document, None, false)?;
            for name in &image.names {
                let familiar = name.familiar();
                if let Some(before) = work::tag(context, name, image.id, false)?.filter(|before| *before != image.id) {
                    said.push(format!("The image {familiar} already exists, renaming the old one with ID {before} to empty string\n"));
                }
                said.push(format!("Loaded image: {familiar}\n"));
            }
            if image.names.is_empty() {
                unnamed.push(format!("Loaded image ID: {}\n", image.id));
            }
            work::event(context, "load", image.id)?;
        }
        for image in &images {
            if let Some(parent) = image.parent.filter(|parent| images.iter().any(|other| other.id == *parent && is_parent(other, image))) {
                work::ask(context, ImageMessage::SetParent { id: image.id, parent })?;
            }
        }
        said.extend(unnamed);
        Ok(said)
    }

    fn plan(&self, outer: &Outer, work: &Work) -> Result<Vec<Planned>> {
        let planned = if outer.has("manifest.json") {
            plan_docker(outer, work)?
        } else if outer.has("index.json") {
            self.plan_oci(outer, work)?
        } else {
            return Err(Error::invalid("open manifest.json: no such file or directory: the archive holds no images"));
        };
        let wanted = |image: &Planned| self.platform.as_ref().is_none_or(|platform| platform.accepts(&image.document.platform()));
        let found = planned.len();
        let planned: Vec<Planned> = planned.into_iter().filter(wanted).collect();
        match (&self.platform, planned.is_empty() && found > 0) {
            (Some(platform), true) => Err(Error::not_found(format!("no image in the archive is for the platform {platform}"))),
            _ => Ok(planned),
        }
    }

    fn plan_oci(&self, outer: &Outer, work: &Work) -> Result<Vec<Planned>> {
        let bytes = outer.document(work, "index.json", MANIFEST_MAX)?;
        let names = index_names(&bytes);
        let top = Fetched { digest: Digest::of(&bytes), bytes, media_type: manifest::OCI_INDEX.into() };
        let manifest::Document::Index(index) = manifest::Document::parse(&top).map_err(refused)? else {
            return Err(Error::invalid("index.json is not an index"));
        };
        let mut planned: Vec<Planned> = Vec::new();
        for entry in &index.manifests {
            let Some(mut image) = self.plan_descriptor(outer, work, entry, INDEX_DEPTH)? else { continue };
            image.names = names.get(&entry.digest).cloned().unwrap_or_default();
            match planned.iter_mut().find(|known| known.id == image.id) {
                Some(known) => known.names.extend(image.names.into_iter().filter(|n| !known.names.contains(n)).collect::<Vec<_>>()),
                None => planned.push(image),
            }
        }
        Ok(planned)
    }

    /// The image that a descriptor leads to; `None` where nothing in it is for us.
    fn plan_descriptor(&self, outer: &Outer, work: &Work, entry: &Descriptor, depth: usize) -> Result<Option<Planned>> {
        if entry.platform.as_ref().is_some_and(|platform| platform.os == "unknown") {
            return Ok(None); // an attestation
        }
        let bytes = blob(outer, work, entry, MANIFEST_MAX)?;
        let fetched = Fetched { digest: entry.digest, bytes, media_type: entry.media_type.clone() };
        match manifest::Document::parse(&fetched).map_err(refused)? {
            manifest::Document::Manifest(manifest) => {
                let bytes = blob(outer, work, &manifest.config, CONFIG_MAX)?;
                let layers = manifest.layers.into_iter().map(|layer| (blob_name(layer.digest), Some(layer))).collect();
                planned(bytes, layers, Vec::new(), None).map(Some)
            }
            manifest::Document::Index(_) if depth == 0 => Err(Error::invalid("indexes are nested too deeply")),
            manifest::Document::Index(index) => {
                let host = Platform::host();
                let here = index.manifests.iter().filter(|entry| outer.has(&blob_name(entry.digest)));
                let present = manifest::Index { manifests: here.cloned().collect() };
                let chosen = present.choose(self.platform.as_ref().unwrap_or(&host)).or_else(|| match &*present.manifests {
                    // An index of one image is that image, whatever it runs on.
                    [one] if self.platform.is_none() => Some(one),
                    _ => None,
                });
                chosen.map_or(Ok(None), |chosen| self.plan_descriptor(outer, work, chosen, depth - 1))
            }
        }
    }
}

fn refused(fault: crate::registry::fault::Fault) -> Error {
    Error::invalid(fault.message)
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A document of an OCI layout, checked against its descriptor.
fn blob(outer: &Outer, work: &Work, entry: &Descriptor, max: u64) -> Result<Vec<u8>> {
    let bytes = outer.document(work, &blob_name(entry.digest), max)?;
    if bytes.len() as u64 != entry.size || Digest::of(&bytes) != entry.digest {
        return Err(Error::invalid(format!("blob {} does not match its descriptor", entry.digest)));
    }
    Ok(bytes)
}

/// The names that an index gives to its entries: containerd's annotation, or OCI's when it is more than a tag.
fn index_names(bytes: &[u8]) -> HashMap<Digest, Vec<Reference>> {
    let mut names: HashMap<Digest, Vec<Reference>> = HashMap::new();
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    for entry in value["manifests"].as_array().into_iter().flatten() {
        let annotation = |key: &str| entry["annotations"][key].as_str();
        let short = annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
        let name = annotation("io.containerd.image.name").or(short).and_then(|name| Reference::parse(name).ok());
        let digest = entry["digest"].as_str().and_then(|digest| digest.parse().ok());
        if let (Some(digest), Some(name)) = (digest, name.filter(|name| name.digest().is_none())) {
            names.entry(digest).or_default().push(name.or_latest());
        }
    }
    names
}

fn plan_docker(outer: &Outer, work: &Work) -> Result<Vec<Planned>> {
    let bytes = outer.document(work, "manifest.json", CONFIG_MAX)?;
    let items: Option<Vec<ManifestItem>> =
        serde_json::from_slice(&bytes).map_err(|e| Error::invalid(format!("invalid manifest.json: {e}")))?;
    let items = items.ok_or_else(|| Error::invalid("invalid manifest, manifest cannot be null (but can be [])"))?;
    let mut images = Vec::with_capacity(items.len());
    for item in items {
        let bytes = outer.document(work, &item.config, CONFIG_MAX)?;
        let mut names = Vec::new();
        for name in item.repo_tags.unwrap_or_default() {
            let reference = Reference::parse(&name)?;
            if reference.tag().is_none() || reference.digest().is_some() {
                return Err(Error::invalid(format!("invalid tag {name:?}")));
            }
            names.push(reference);
        }
        let parent = item.parent.as_deref().and_then(|parent| parent.parse().ok());
        images.push(planned(bytes, item.layers.into_iter().map(|layer| (layer, None)).collect(), names, parent)?);
    }
    Ok(images)
}

fn planned(bytes: Vec<u8>, layers: Vec<(String, Option<Descriptor>)>, names: Vec<Reference>, parent: Option<Digest>) -> Result<Planned> {
    let document = work::read_document(&bytes)?;
    let (expected, actual) = (layers.len(), document.diff_ids().len());
    if expected != actual {
        return Err(Error::invalid(format!("invalid manifest, layers length mismatch: expected {expected}, got {actual}")));
    }
    Ok(Planned { id: Digest::of(&bytes), bytes, document, layers, names, parent })
}

/// Whether `parent` can be what `image` was made from: all its steps and one more.
fn is_parent(parent: &Planned, image: &Planned) -> bool {
    let (before, after) = (&parent.document.history, &image.document.history);
    parent.id != image.id && ((before.is_empty() && after.is_empty()) || (after.len() == before.len() + 1 && after.starts_with(before)))
}

/// A layer that some image of the archive needs.
struct Wanted<'a> {
    chain: Digest,
    parent: Option<Digest>,
    diff: Digest,
    key: String,
    descriptor: Option<&'a Descriptor>,
}

/// Brings all layers of all images into the store.
fn store_layers(context: &mut Context, work: &mut Work, outer: &mut Outer, images: &[Planned]) -> Result<()> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for image in images {
        let mut parent = None;
        for (diff, (name, descriptor)) in image.document.diff_ids().iter().zip(&image.layers) {
            let chain = chain_id(parent, *diff);
            if !wanted.iter().any(|known| known.chain == chain) {
                let key = outer.find(name)?.0.to_owned();
                wanted.push(Wanted { chain, parent, diff: *diff, key, descriptor: descriptor.as_ref() });
            }
            parent = Some(chain);
        }
    }
    // What is unpacked already gets its place in a stack, and one sync serves all of it.
    let mut ready: HashMap<Digest, (Staged, super::layer::LayerMeta)> = HashMap::new();
    for (index, want) in wanted.iter().enumerate() {
        check(outer, want, index)?;
        if matches!(outer.find(&want.key), Ok((_, Item::Layer(_))))
            && let Some(Item::Layer(staged)) = outer.take(&want.key)
        {
            let meta = work.describe(&staged, want.parent, known(&staged))?;
            ready.insert(want.chain, (staged, meta));
        }
    }
    work.sync()?;
    let mut here: BTreeMap<Digest, Stored> = BTreeMap::new();
    for (index, want) in wanted.iter().enumerate() {
        let stored = match work::claim(context, want.chain)? {
            Some(stored) => stored,
            None => {
                let (staged, meta) = match ready.remove(&want.chain) {
                    Some(ready) => ready,
                    None => late(context, work, outer, want, &here, index)?,
                };
                work::layer_ready(context, &staged, meta)?
            }
        };
        here.insert(want.diff, stored);
    }
    Ok(())
}

/// An unpacked or stored layer must be the one that the image's document names.
fn check(outer: &Outer, want: &Wanted, index: usize) -> Result<()> {
    let (diff, digest, size) = match outer.find(&want.key) {
        Ok((_, Item::Layer(staged))) => (staged.layer.diff_id, staged.layer.compressed_digest, Some(staged.layer.compressed_size)),
        Ok((_, Item::Stored { layer, digest })) => (layer.diff, *digest, None),
        // Taken by an equal layer elsewhere in a stack, or not unpacked yet: verified when it is.
        _ => return Ok(()),
    };
    if diff != want.diff {
        return Err(Error::invalid(format!(
            "invalid diffID for layer {index}: expected {:?}, got {:?}",
            want.diff.to_string(),
            diff.to_string()
        )));
    }
    match want.descriptor {
        Some(descriptor) if descriptor.digest != digest || size.is_some_and(|size| size != descriptor.size) => {
            Err(Error::invalid(format!("layer {} does not match its descriptor", descriptor.digest)))
        }
        _ => Ok(()),
    }
}

/// The compressed form that a layer came in, worth remembering for push.
fn known(staged: &Staged) -> Option<Blob> {
    let layer = &staged.layer;
    (layer.compressed_digest != layer.diff_id).then(|| Blob {
        digest: layer.compressed_digest,
        size: layer.compressed_size,
        media_type: match layer.compression {
            super::archive::decompress::Compression::Gzip => manifest::DOCKER_LAYER.into(),
            super::archive::decompress::Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd".into(),
            _ => String::new(),
        },
        repositories: Vec::new(),
    })
}

/// The rare ways: a file not recognised as a layer before, or one whose bytes are in the store in another stack only.
fn late(
    context: &mut Context,
    work: &mut Work,
    outer: &Outer,
    want: &Wanted,
    here: &BTreeMap<Digest, Stored>,
    index: usize,
) -> Result<(Staged, super::layer::LayerMeta)> {
    let expect = Expect { diff_id: Some(want.diff), ..Expect::default() };
    let elsewhere = match here.get(&want.diff) {
        Some(stored) => Some(*stored),
        None => work::find(context, want.diff)?,
    };
    let staged = match (elsewhere, outer.find(&want.key)) {
        (Some(stored), _) => work.ingest_copy(stored.number, &expect)?,
        (None, Ok((_, Item::File(file)))) => {
            let mut source = open_spooled(work, file)?;
            work.ingest(&mut source, &expect, &mut |_| {})?
        }
        _ => return Err(Error::invalid(format!("layer {index} ({}) is not in the archive", want.key))),
    };
    let meta = work.describe(&staged, want.parent, known(&staged))?;
    work.sync()?;
    Ok((staged, meta))
}

/// The request's body, where the context is needed by others in between.
struct Body<'a, 'b>(&'a RefCell<&'b mut Context>);

impl Read for Body<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().body().read(buffer)
    }
}

struct Watcher<'a, 'b> {
    context: &'a RefCell<&'b mut Context>,
    quiet: bool,
    last: u64,
}

impl Watch for Watcher<'_, '_> {
    fn find(&mut self, digest: Digest) -> Result<Option<Stored>> {
        work::find(&mut self.context.borrow_mut(), digest)
    }

    fn progress(&mut self, id: &str, current: u64, total: u64) -> Result<()> {
        let due = match current < total {
            true => current.abs_diff(self.last) >= PROGRESS_STEP,
            false => current != self.last,
        };
        if self.quiet || !due {
            return Ok(());
        }
        self.last = current;
        let mut context = self.context.borrow_mut();
        if !context.started() {
            context.start(200, "application/json")?;
        }
        context.line(&progress::bar(id, "Loading layer", current, total))
    }
}
