//! `GET /images/get` and `/images/{name}/get`: images as one archive, readable as Docker's own and as an OCI layout.
//!
//! What goes in is decided in the daemon ([`Save::plan`]); the worker then writes it front to back, every layer once, each
//! the exact tar that its diff id names. Nothing is written to the disk.

use super::Store;
use super::archive::from_io;
use super::archive::recipe;
use super::config::Platform;
use super::digest::Digest;
use super::place::Place;
use super::reference::{Any, Reference, parse_any};
use super::store::{Image, no_such_image};
use super::work;
use crate::error::{Error, Result};
use crate::registry::manifest::{OCI_INDEX, OCI_MANIFEST};
use crate::sys;
use crate::worker::Context;
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const BLOCK: u64 = 512;

/// Images to write, in order.
pub struct Save {
    place: Place,
    images: Vec<Saved>,
}

struct Saved {
    id: Digest,
    bytes: Vec<u8>,
    platform: Platform,
    /// Seconds since 1970: the files' times.
    created: u64,
    names: Vec<Reference>,
    top: Digest,
    /// Bottom first.
    layers: Vec<SavedLayer>,
    parent: Option<Digest>,
}

#[derive(Clone, Copy)]
struct SavedLayer {
    number: u64,
    diff: Digest,
    tar_size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestItem {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Digest>,
    layer_sources: BTreeMap<Digest, Descriptor>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<&'static str, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
}

impl Save {
    /// Resolves the names: a repository without a tag means all its tags.
    pub fn plan<'a>(store: &Store, names: impl Iterator<Item = &'a str>, platform: Option<&Platform>) -> Result<Save> {
        let mut save = Save { place: store.place().clone(), images: Vec::new() };
        for name in names {
            match parse_any(name)? {
                Any::Id(id) => save.add(store, store.get(id).ok_or_else(|| no_such_image(name))?, None)?,
                Any::Named(reference) if reference.is_name_only() => save.add_repository(store, name, &reference)?,
                Any::Named(reference) => {
                    // `sha256:abc` reads as a name and a tag, but means an id.
                    let found = store.named(&reference).and_then(|id| store.get(id));
                    let by_id = || (reference.familiar_name() == "sha256").then(|| store.search(name)).flatten();
                    let image = found.or_else(by_id).ok_or_else(|| Error::not_found("reference does not exist"))?;
                    save.add(store, image, found.is_some().then_some(&reference))?;
                }
            }
        }
        if save.images.is_empty() {
            return Err(Error::invalid("image name cannot be blank"));
        }
        let other = |image: &&Saved| platform.is_some_and(|platform| !platform.accepts(&image.platform));
        match (save.images.iter().find(other), platform) {
            (Some(other), Some(platform)) => Err(Error::not_found(format!(
                "image with reference {} was found but its platform ({}) does not match the specified platform ({platform})",
                other.names.first().map_or_else(|| other.id.to_string(), Reference::familiar),
                other.platform
            ))),
            _ => Ok(save),
        }
    }

    fn add_repository(&mut self, store: &Store, name: &str, reference: &Reference) -> Result<()> {
        let tags: Vec<(&Reference, Digest)> = store.names().of_repository(reference).collect();
        if tags.is_empty() {
            let image = store.search(name).ok_or_else(|| Error::not_found(format!("No such image: {name}")))?;
            return self.add(store, image, None);
        }
        for (reference, id) in tags {
            self.add(store, store.get(id).ok_or_else(|| no_such_image(name))?, Some(reference))?;
        }
        Ok(())
    }

    fn add(&mut self, store: &Store, image: &Image, name: Option<&Reference>) -> Result<()> {
        if !self.images.iter().any(|known| known.id == image.id) {
            let top = image.top.ok_or_else(|| Error::not_implemented("empty export - not implemented"))?;
            let mut layers: Vec<SavedLayer> = store
                .layers
                .stack(Some(top))
                .map(|layer| SavedLayer { number: layer.number, diff: layer.meta.diff, tar_size: layer.meta.tar_size })
                .collect();
            layers.reverse();
            self.images.push(Saved {
                id: image.id,
                bytes: store.document_bytes(image.id)?.into_owned(),
                platform: image.platform.clone(),
                created: image.created_seconds().and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0),
                names: Vec::new(),
                top,
                layers,
                parent: image.extra.parent,
            });
        }
        let Some(name) = name.filter(|name| name.tag().is_some() && name.digest().is_none()) else { return Ok(()) };
        if let Some(saved) = self.images.iter_mut().find(|saved| saved.id == image.id)
            && !saved.names.contains(name)
        {
            saved.names.push(name.clone());
        }
        Ok(())
    }

    /// Writes the archive to the client. Once it has begun, an error breaks the stream off: a file that looks whole must be.
    pub fn run(self, context: &mut Context) -> Result<()> {
        for image in &self.images {
            // Held until this worker ends, whatever is removed meanwhile.
            work::claim(context, image.top)?.ok_or_else(|| no_such_image(&image.id.to_string()))?;
        }
        context.start(200, "application/x-tar")?;
        if let Err(e) = self.write(context.writer()) {
            log::error!("save: {e}");
            sys::process::exit(1);
        }
        for image in &self.images {
            work::event(context, "save", image.id)?;
        }
        Ok(())
    }

    fn write(&self, out: &mut dyn Write) -> Result<()> {
        let mut tar = Tar { out: BufWriter::with_capacity(64 << 10, out), written: BTreeSet::new() };
        tar.directory("blobs/")?;
        tar.directory("blobs/sha256/")?;
        let mut manifest = Vec::with_capacity(self.images.len());
        let mut index = Vec::new();
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for image in &self.images {
            let mut descriptors = Vec::with_capacity(image.layers.len());
            for layer in &image.layers {
                tar.layer(&self.place, layer, image.created)?;
                descriptors.push(Descriptor::new(OCI_LAYER, layer.diff, layer.tar_size));
            }
            tar.blob(image.id, &image.bytes, image.created)?;
            let platform = Some(image.platform.clone());
            let config = Descriptor { platform: platform.clone(), ..Descriptor::new(OCI_CONFIG, image.id, image.bytes.len() as u64) };
            let bytes = to_json(&json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": descriptors}))?;
            let digest = Digest::of(&bytes);
            tar.blob(digest, &bytes, 0)?;
            let entry = Descriptor { platform, ..Descriptor::new(OCI_MANIFEST, digest, bytes.len() as u64) };
            for name in &image.names {
                let tag = name.tag().unwrap_or_default().to_owned();
                let annotations =
                    BTreeMap::from([("io.containerd.image.name", name.to_string()), ("org.opencontainers.image.ref.name", tag.clone())]);
                index.push(Descriptor { annotations: Some(annotations), ..entry.clone() });
                let last = image.layers.last().map(|layer| layer.diff.hex()).unwrap_or_default();
                repositories.entry(name.familiar_name()).or_default().insert(tag, last);
            }
            if image.names.is_empty() {
                index.push(entry);
            }
            manifest.push(ManifestItem {
                config: blob_path(image.id),
                repo_tags: (!image.names.is_empty()).then(|| image.names.iter().map(Reference::familiar).collect()),
                layers: image.layers.iter().map(|layer| blob_path(layer.diff)).collect(),
                parent: image.parent.filter(|parent| self.images.iter().any(|other| other.id == *parent)),
                layer_sources: image.layers.iter().map(|layer| layer.diff).zip(descriptors).collect(),
            });
        }
        let mut lines = |name: &str, value: &dyn Fn() -> Result<Vec<u8>>| tar.file(name, &value()?, 0);
        lines("index.json", &|| to_json(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index})))?;
        lines("manifest.json", &|| to_json(&manifest))?;
        lines("oci-layout", &|| Ok(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()))?;
        if !repositories.is_empty() {
            lines("repositories", &|| to_json(&repositories))?;
        }
        tar.finish()
    }
}

impl Descriptor {
    fn new(media_type: &'static str, digest: Digest, size: u64) -> Descriptor {
        Descriptor { media_type, digest, size, annotations: None, platform: None }
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::system(format!("write JSON: {e}")))
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The archive being written.
struct Tar<W: Write> {
    out: W,
    /// Blobs that are in it.
    written: BTreeSet<Digest>,
}

impl<W: Write> Tar<W> {
    fn header(&mut self, name: &str, kind: tar::EntryType, mode: u32, size: u64, seconds: u64) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).map_err(|e| from_io("name archive entry", e))?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header.set_mtime(seconds);
        header.set_cksum();
        self.put(header.as_bytes())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(client_gone)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let padding = usize::try_from(size.wrapping_neg() % BLOCK).unwrap_or(0);
        self.put(&[0; 512][..padding])
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        self.header(name, tar::EntryType::Directory, 0o755, 0, 0)
    }

    fn file(&mut self, name: &str, bytes: &[u8], seconds: u64) -> Result<()> {
        self.header(name, tar::EntryType::Regular, 0o644, bytes.len() as u64, seconds)?;
        self.put(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn blob(&mut self, digest: Digest, bytes: &[u8], seconds: u64) -> Result<()> {
        if self.written.insert(digest) { self.file(&blob_path(digest), bytes, seconds) } else { Ok(()) }
    }

    fn layer(&mut self, place: &Place, layer: &SavedLayer, seconds: u64) -> Result<()> {
        if !self.written.insert(layer.diff) {
            return Ok(());
        }
        self.header(&blob_path(layer.diff), tar::EntryType::Regular, 0o644, layer.tar_size, seconds)?;
        let dir = work::open_layer(place, layer.number)?;
        let made = recipe::reproduce(dir.as_fd(), &mut self.out)?;
        if made.diff_id != layer.diff || made.size != layer.tar_size {
            return Err(Error::system(format!("layer {} has changed on the disk: its digest is {} now", layer.diff, made.diff_id)));
        }
        self.pad(layer.tar_size)
    }

    fn finish(mut self) -> Result<()> {
        self.put(&[0; 1024])?;
        self.out.flush().map_err(client_gone)
    }
}

fn client_gone(e: io::Error) -> Error {
    from_io("write to the client", e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::names::Extra;
    use crate::image::scratch::Scratch;
    use crate::image::support::{add_image, diff, open};

    fn planned(store: &Store, names: &[&str]) -> Result<Vec<(Digest, Vec<String>)>> {
        let save = Save::plan(store, names.iter().copied(), None)?;
        Ok(save.images.iter().map(|image| (image.id, image.names.iter().map(Reference::familiar).collect())).collect())
    }

    #[test]
    fn names_become_images_as_the_reference_has_it() {
        let scratch = Scratch::new("save-plan");
        let mut store = open(&scratch);
        let a = add_image(&mut store, "x:1", &[diff("a")], Extra::default());
        let b = add_image(&mut store, "x:2", &[diff("b")], Extra::default());
        assert_eq!(planned(&store, &["x"]).unwrap(), [(a, vec!["x:1".into()]), (b, vec!["x:2".into()])]);
        assert_eq!(planned(&store, &["x:2", &a.short()]).unwrap(), [(b, vec!["x:2".into()]), (a, vec![])]);
        assert_eq!(planned(&store, &[&a.to_string(), "x:1"]).unwrap(), [(a, vec!["x:1".into()])]);
        assert_eq!(planned(&store, &[&a.to_string()[..15]]).unwrap(), [(a, vec![])]);
        assert_eq!(planned(&store, &["x:3"]).unwrap_err().message, "reference does not exist");
        assert_eq!(planned(&store, &["nosuch"]).unwrap_err().message, "No such image: nosuch");
        assert!(planned(&store, &[]).is_err());
    }
}
