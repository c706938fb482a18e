//! The push job: layers that the registry does not have, the configuration, the manifest, in that order.

use super::auth::Credentials;
use super::client::{Client, Login};
use super::endpoint::{Settings, endpoints};
use super::fault::Fault;
use super::manifest::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor, Document as ManifestDocument, Manifest, is_foreign};
use super::process::{Report, Running};
use super::progress;
use super::pull::say;
use super::send::{self, Outgoing, Sent};
use crate::error::{Error, Result};
use crate::image::config::{CONFIG_MAX, Document};
use crate::image::digest::Digest;
use crate::image::layer::{Blob, LayerMeta, META_FILE, META_VERSION};
use crate::image::place::Place;
use crate::image::reference::Reference;
use crate::image::state_file;
use crate::image::work::{self, open_layer};
use crate::sys;
use crate::worker::message::{Answer, ImageMessage, Message};
use crate::worker::{Context, Job};
use serde::Serialize;
use std::io::Read;
use std::os::fd::AsFd;

/// Bytes of a body with credentials.
const BODY_MAX: u64 = 1 << 20;

/// What is to be pushed.
pub struct Push {
    /// With a tag, or without one for all tags.
    pub reference: Reference,
    /// The repository's local names and their images.
    pub names: Vec<(Reference, Digest)>,
    /// Names by digest, at the same registry, of those images: where their manifests are.
    pub origins: Vec<(Reference, Digest)>,
    pub login: Login,
    pub settings: Settings,
    pub place: Place,
}

/// The last line's `aux`.
#[derive(Serialize)]
struct PushResult {
    #[serde(rename = "Tag")]
    tag: String,
    #[serde(rename = "Digest")]
    digest: Digest,
    #[serde(rename = "Size")]
    size: usize,
}

/// The job behind `POST /images/{name}/push`.
pub fn job(push: Push) -> Job {
    Job::new(format!("push {}", push.reference.familiar()), move |context| run(push, context))
}

fn run(mut push: Push, context: &mut Context) -> Result<()> {
    if push.login.credentials.is_empty() {
        // Old clients put their credentials there; what cannot be read counts as none.
        let mut body = Vec::new();
        let _ = context.body().take(BODY_MAX).read_to_end(&mut body);
        push.login.credentials = serde_json::from_slice::<Credentials>(&body).unwrap_or_default();
    }
    say(context, &progress::status("", format!("The push refers to repository [{}]", push.reference.name())))?;
    let tags: Vec<(Reference, Digest)> = push
        .names
        .iter()
        .filter(|(name, _)| name.tag().is_some() && (push.reference.tag().is_none() || push.reference.tag() == name.tag()))
        .cloned()
        .collect();
    if !push.names.iter().any(|(name, _)| name.tag().is_some()) {
        return Err(Error::not_found(format!("An image does not exist locally with the tag: {}", push.reference.familiar_name())));
    }
    if tags.is_empty() {
        return Err(Error::not_found(format!("tag does not exist: {}", push.reference.familiar())));
    }
    let mut last = Error::system("no endpoints found");
    for endpoint in endpoints(push.reference.domain(), &push.settings, false) {
        match Client::connect(&push.settings, &endpoint, push.reference.path(), "push,pull", &push.login) {
            Ok(mut client) => {
                for (reference, id) in &tags {
                    push_one(&push, reference, *id, &mut client, context)?;
                }
                return Ok(());
            }
            Err(fault) => last = fault.into(),
        }
    }
    Err(last)
}

fn push_one(push: &Push, reference: &Reference, id: Digest, client: &mut Client, context: &mut Context) -> Result<()> {
    let Answer::Image { top, layers: numbers, .. } = work::ask(context, ImageMessage::Resolve { name: id.to_string() })? else {
        return Err(Error::not_found(format!("tag does not exist: {}", reference.familiar())));
    };
    if let Some(top) = top {
        // A claim of a layer that is there holds it while we read.
        work::claim(context, top)?;
    }
    let config = document(&push.place, id)?;
    let mut metas: Vec<(u64, LayerMeta)> = Vec::new();
    for number in numbers {
        let dir = open_layer(&push.place, number)?;
        let name = sys::cstring(META_FILE).map_err(|e| Error::io("name meta.json", &e))?;
        let bytes = state_file::read_regular(dir.as_fd(), &name, 1 << 20).map_err(|e| Error::io(format!("read layer {number}"), &e))?;
        let meta = state_file::decode(META_VERSION, &bytes).map_err(|_| Error::system(format!("layer {number} has a torn description")))?;
        metas.push((number, meta));
    }
    let descriptors = layers(push, client, &metas, context)?;
    client.upload_bytes(&config).map_err(Fault::of_push)?;
    let tag = reference.tag().unwrap_or_default();
    let (media_type, bytes) = match original(push, id, &descriptors, client) {
        Some(original) => original,
        None => {
            let config =
                Descriptor { media_type: DOCKER_CONFIG.into(), size: config.len() as u64, digest: id, urls: Vec::new(), platform: None };
            let layers = descriptors.into_iter().map(|d| Descriptor { media_type: docker_type(&d.media_type), ..d }).collect();
            (DOCKER_MANIFEST.to_owned(), Manifest::new(config, layers).to_bytes())
        }
    };
    let digest = client.put_manifest(tag, &media_type, &bytes).map_err(Fault::of_push)?;
    work::tag(context, &reference.with_digest(digest), id, false)?;
    say(context, &progress::status("", format!("{tag}: digest: {digest} size: {}", bytes.len())))?;
    say(context, &progress::aux(&PushResult { tag: tag.into(), digest, size: bytes.len() }))?;
    let labels = Document::parse(&config).ok().and_then(|d| d.config).and_then(|c| c.labels).unwrap_or_default();
    let mut attributes = labels;
    attributes.insert("name".into(), reference.familiar_name());
    context.tell(&Message::Event { kind: "image".into(), action: "push".into(), id: reference.familiar(), attributes })
}

fn document(place: &Place, id: Digest) -> Result<Vec<u8>> {
    let dir = work::open_dir(&place.root.join("images"))?;
    let name = sys::cstring(format!("{}.json", id.hex())).map_err(|e| Error::io("name image", &e))?;
    state_file::read_regular(dir.as_fd(), &name, CONFIG_MAX).map_err(|e| Error::io("read image configuration", &e))
}

/// The layer type of a Docker manifest for one that may be OCI's.
fn docker_type(media_type: &str) -> String {
    if media_type.ends_with("gzip") && !is_foreign(media_type) { DOCKER_LAYER.into() } else { media_type.into() }
}

/// The manifest that the registry already has for this image, word for word, so that a pushed-back image keeps its digest.
fn original(push: &Push, id: Digest, layers: &[Descriptor], client: &mut Client) -> Option<(String, Vec<u8>)> {
    for (origin, _) in push.origins.iter().filter(|(_, image)| *image == id).take(4) {
        let Some(digest) = origin.digest() else { continue };
        let Ok(fetched) = client.manifest_of(origin.path(), digest) else { continue };
        let found = match ManifestDocument::parse(&fetched) {
            Ok(ManifestDocument::Manifest(_)) => vec![fetched],
            Ok(ManifestDocument::Index(index)) => {
                let entries = index.manifests.iter().take(16);
                entries.filter_map(|entry| client.manifest_of(origin.path(), entry.digest).ok()).collect()
            }
            Err(_) => continue,
        };
        for fetched in found {
            if let Ok(ManifestDocument::Manifest(manifest)) = ManifestDocument::parse(&fetched)
                && manifest.config.digest == id
                && manifest.layers.iter().map(|l| l.digest).eq(layers.iter().map(|l| l.digest))
            {
                let own = if manifest.media_type.is_empty() { fetched.media_type } else { manifest.media_type };
                return Some((own, fetched.bytes));
            }
        }
    }
    None
}

enum State {
    Queued,
    Running(Running),
    There(Descriptor),
}

/// Sends what is missing, up to `uploads` at once; the descriptors, bottom first.
fn layers(push: &Push, client: &Client, metas: &[(u64, LayerMeta)], context: &mut Context) -> Result<Vec<Descriptor>> {
    let (domain, repository) = (push.reference.domain().to_owned(), push.reference.name());
    let mut steps: Vec<(Outgoing, State)> = Vec::new();
    for (number, meta) in metas.iter().rev() {
        // The same bytes twice in one image are sent once.
        if steps.iter().any(|(other, _)| other.meta.diff == meta.diff) {
            continue;
        }
        say(context, &progress::layer(&meta.diff.short(), "Preparing"))?;
        let outgoing = Outgoing { number: *number, meta: meta.clone(), domain: domain.clone(), repository: repository.clone() };
        steps.push((outgoing, State::Queued));
    }
    let limit = push.settings.uploads.max(1);
    for (layer, _) in steps.iter().skip(limit) {
        say(context, &progress::layer(&layer.meta.diff.short(), "Waiting"))?;
    }
    loop {
        let running = steps.iter().filter(|(_, state)| matches!(state, State::Running(_))).count();
        for (layer, state) in steps.iter_mut().filter(|(_, s)| matches!(s, State::Queued)).take(limit.saturating_sub(running)) {
            *state = State::Running(send::start(client, &push.place, layer)?);
        }
        let mut fds: Vec<libc::pollfd> = steps
            .iter()
            .map(|(_, state)| match state {
                State::Running(process) => process.pollfd(),
                _ => libc::pollfd { fd: -1, events: 0, revents: 0 },
            })
            .collect();
        if fds.iter().all(|fd| fd.fd < 0) {
            break;
        }
        sys::poll::poll(&mut fds, -1).map_err(|e| Error::io("wait for uploads", &e))?;
        for ((layer, state), _) in steps.iter_mut().zip(&fds).filter(|(_, fd)| fd.revents != 0) {
            let State::Running(process) = state else { continue };
            if let Some(sent) = follow(process, layer, context)? {
                say(context, &progress::layer(&layer.meta.diff.short(), &sent.words))?;
                let Descriptor { digest, size, media_type, .. } = sent.descriptor.clone();
                let blob = Blob { digest, size, media_type, repositories: vec![repository.clone()] };
                context.tell(&Message::Image(ImageMessage::LayerKnown { chain: layer.meta.chain, blob }))?;
                *state = State::There(sent.descriptor);
            }
        }
    }
    let find = |diff: Digest| {
        steps.iter().find_map(|(layer, state)| match state {
            State::There(descriptor) if layer.meta.diff == diff => Some(descriptor.clone()),
            _ => None,
        })
    };
    metas.iter().map(|(_, meta)| find(meta.diff).ok_or_else(|| Error::system("a layer was not sent"))).collect()
}

/// Passes on what a sending process says.
fn follow(process: &mut Running, layer: &Outgoing, context: &mut Context) -> Result<Option<Sent>> {
    let short = layer.meta.diff.short();
    for report in process.reports::<Sent>() {
        match report {
            Report::Bytes(bytes) => say(context, &progress::bar(&short, "Pushing", bytes, layer.meta.tar_size))?,
            Report::Retrying(left) => {
                let unit = if left == 1 { "second" } else { "seconds" };
                say(context, &progress::layer(&short, &format!("Retrying in {left} {unit}")))?;
            }
            Report::Failed(message) => return Err(Error::system(message)),
            Report::Done(sent) => return Ok(Some(sent)),
        }
    }
    Ok(None)
}
