//! The pull job: from a name to an image in the store, with Docker's progress on the way.

use super::client::{CONFIG_MAX, Client, Fetched, Login};
use super::endpoint::{Settings, endpoints};
use super::fault::Fault;
use super::fetch::{Fetch, Wanted};
use super::manifest::{Document as ManifestDocument, Manifest};
use super::process::Report;
use super::progress::{self, Line};
use crate::error::{Error, Kind, Result};
use crate::image::config::{Document, Platform};
use crate::image::digest::{Digest, chain_id};
use crate::image::layer::{Blob, LayerMeta};
use crate::image::place::Place;
use crate::image::reference::Reference;
use crate::image::work::{self, Work};
use crate::sys;
use crate::worker::message::{Answer, ImageMessage, Message};
use crate::worker::{Context, Job};
use std::collections::BTreeMap;

/// Indexes within indexes that are followed.
const INDEX_DEPTH_MAX: usize = 2;

/// What is to be pulled.
#[derive(Clone)]
pub struct Pull {
    /// With tag or digest; with neither, all tags are pulled.
    pub reference: Reference,
    pub platform: Option<Platform>,
    pub login: Login,
    pub settings: Settings,
    pub place: Place,
}

/// An image that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub id: Digest,
    /// The name meant another image, or none, before.
    pub new: bool,
}

/// The job behind `POST /images/create?fromImage=…`.
pub fn job(pull: Pull) -> Job {
    Job::new(format!("pull {}", pull.reference.familiar()), move |context| {
        let mut place = None;
        let all = pull.reference.is_name_only();
        let pulled = run(&pull, context, &mut place)?;
        let shown = if all { pull.reference.familiar_name() } else { pull.reference.familiar() };
        let status = if pulled.iter().any(|p| p.new) { "Downloaded newer image for" } else { "Image is up to date for" };
        say(context, &progress::status("", format!("Status: {status} {shown}")))
    })
}

/// Pulls from the first endpoint that has it, saying how it goes on the context's stream.
pub fn run(pull: &Pull, context: &mut Context, work: &mut Option<Work>) -> Result<Vec<Pulled>> {
    if pull.reference.familiar_name() == "scratch" {
        return Err(Error::invalid("'scratch' is a reserved name"));
    }
    let mut last = Error::system("no endpoints found");
    for endpoint in endpoints(pull.reference.domain(), &pull.settings, true) {
        let mut client = match Client::connect(&pull.settings, &endpoint, pull.reference.path(), "pull", &pull.login) {
            Ok(client) => client,
            Err(fault) => {
                last = fault.of_pull(&pull.reference);
                continue;
            }
        };
        match pull_from(pull, &mut client, context, work) {
            Ok(pulled) => return Ok(pulled),
            // A mirror's failure is not the registry's; but a stream that has begun tells what happened in it.
            Err(e) if endpoint.mirror && !context.started() => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

fn pull_from(pull: &Pull, client: &mut Client, context: &mut Context, work: &mut Option<Work>) -> Result<Vec<Pulled>> {
    if !pull.reference.is_name_only() {
        return Ok(vec![pull_one(pull, &pull.reference, client, context, work)?]);
    }
    let mut pulled = Vec::new();
    for tag in client.tags().map_err(|f| f.of_pull(&pull.reference))? {
        let reference = pull.reference.with_tag(&tag)?;
        pulled.push(pull_one(pull, &reference, client, context, work)?);
    }
    Ok(pulled)
}

fn pull_one(pull: &Pull, reference: &Reference, client: &mut Client, context: &mut Context, work: &mut Option<Work>) -> Result<Pulled> {
    let fault = |f: Fault| f.of_pull(reference);
    let asked = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => Some(digest),
        (None, Some(tag)) => client.resolve(tag).map_err(fault)?,
        (None, None) => None,
    };
    let shown = reference.digest().map_or_else(|| reference.tag().unwrap_or_default().to_owned(), |d| d.to_string());
    if let Some(digest) = asked
        && let Some(id) = already_here(pull, reference, digest, context)?
    {
        say(context, &progress::status(&shown, format!("Pulling from {}", reference.path())))?;
        return finish(reference, digest, id, None, context);
    }
    let by = asked.map_or_else(|| reference.tag().unwrap_or_default().to_owned(), |digest| digest.to_string());
    let fetched = client.manifest(&by).map_err(fault)?;
    say(context, &progress::status(&shown, format!("Pulling from {}", reference.path())))?;
    let digest = fetched.digest;
    let manifest = choose(pull, client, fetched).map_err(fault)?;
    let config = client.blob_bytes(manifest.config.digest, manifest.config.size, CONFIG_MAX).map_err(fault)?;
    let document = Document::parse(&config)?;
    check(&document, &manifest)?;
    let work = match work {
        Some(work) => work,
        None => work.insert(Work::begin(&pull.place, context.number)?),
    };
    layers(pull, reference, client, &manifest, &document, work, context)?;
    let staged = work.stage_document(&config)?;
    work.sync()?;
    let id = work::image_ready(context, work, staged, None, false)?;
    if let Some(wanted) = pull.platform.as_ref().filter(|wanted| !wanted.accepts(&document.platform())) {
        let (name, is) = (reference.familiar(), document.platform());
        let text = format!(
            "WARNING: image with reference {name} was found but its platform ({is}) does not match the specified platform ({wanted})"
        );
        say(context, &progress::status("", text))?;
    }
    finish(reference, digest, id, Some(&document), context)
}

/// The image that this digest meant here before, if it is the one that is wanted now.
fn already_here(pull: &Pull, reference: &Reference, digest: Digest, context: &mut Context) -> Result<Option<Digest>> {
    let name = reference.with_digest(digest).to_string();
    let id = match context.ask(&Message::Image(ImageMessage::Resolve { name })) {
        Ok(Answer::Image { id, .. }) => id,
        Ok(_) => return Ok(None),
        Err(e) if e.kind == Kind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    // The same index may have been pulled for another platform.
    let path = pull.place.root.join("images").join(format!("{}.json", id.hex()));
    let document = std::fs::read(path).ok().and_then(|bytes| Document::parse(&bytes).ok());
    let wanted = pull.platform.clone().unwrap_or_else(Platform::host);
    Ok(document.filter(|d| wanted.accepts(&d.platform())).map(|_| id))
}

/// The manifest for the platform, through indexes where there are some.
fn choose(pull: &Pull, client: &mut Client, mut fetched: Fetched) -> std::result::Result<Manifest, Fault> {
    let wanted = pull.platform.clone().unwrap_or_else(Platform::host);
    for _ in 0..=INDEX_DEPTH_MAX {
        let index = match ManifestDocument::parse(&fetched)? {
            ManifestDocument::Manifest(manifest) => return Ok(*manifest),
            ManifestDocument::Index(index) => index,
        };
        let none = || Fault {
            code: "NO_MATCH".into(),
            ..Fault::permanent(format!("no matching manifest for {wanted} in the manifest list entries"))
        };
        let entry = index.choose(&wanted).ok_or_else(none)?.clone();
        fetched = client.manifest(&entry.digest.to_string())?;
        if fetched.bytes.len() as u64 != entry.size {
            return Err(Fault::permanent(format!("manifest {} has another size than its index says", entry.digest)));
        }
    }
    Err(Fault::permanent("indexes are nested too deeply"))
}

fn check(document: &Document, manifest: &Manifest) -> Result<()> {
    if document.operating_system() != "linux" {
        let os = document.operating_system();
        return Err(Error::invalid(format!(
            "image operating system {os:?} cannot be used on this platform: operating system is not supported"
        )));
    }
    if document.diff_ids().len() != manifest.layers.len() {
        return Err(Error::invalid("layers from manifest don't match image configuration"));
    }
    Ok(())
}

/// One layer of the image, from the bottom.
struct Step {
    short: String,
    chain: Digest,
    wanted: Wanted,
    state: Progress,
}

enum Progress {
    Here,
    Queued,
    Running(Fetch),
    /// Made, and waiting for the ones below it.
    Made(String, LayerMeta),
}

/// Brings all layers into the store, up to `downloads` at once.
fn layers(
    pull: &Pull,
    reference: &Reference,
    client: &Client,
    manifest: &Manifest,
    document: &Document,
    work: &mut Work,
    context: &mut Context,
) -> Result<()> {
    let mut steps: Vec<Step> = Vec::new();
    let mut below = None;
    for (descriptor, diff) in manifest.layers.iter().zip(document.diff_ids()) {
        let chain = chain_id(below, *diff);
        let wanted = Wanted { descriptor: descriptor.clone(), diff: *diff, parent: below, repository: reference.name() };
        let short = descriptor.digest.short();
        let here = work::claim(context, chain)?.is_some();
        say(context, &progress::layer(&short, if here { "Already exists" } else { "Pulling fs layer" }))?;
        if here {
            let Wanted { descriptor, repository, .. } = &wanted;
            let (digest, size, media_type) = (descriptor.digest, descriptor.size, descriptor.media_type.clone());
            let blob = Blob { digest, size, media_type, repositories: vec![repository.clone()] };
            context.tell(&Message::Image(ImageMessage::LayerKnown { chain, blob }))?;
        }
        steps.push(Step { short, chain, wanted, state: if here { Progress::Here } else { Progress::Queued } });
        below = Some(chain);
    }
    let limit = pull.settings.downloads.max(1);
    for step in steps.iter().filter(|s| matches!(s.state, Progress::Queued)).skip(limit) {
        say(context, &progress::layer(&step.short, "Waiting"))?;
    }
    let mut next = 0; // the lowest layer that is not in the store yet
    loop {
        let running = steps.iter().filter(|s| matches!(s.state, Progress::Running(_))).count();
        for step in steps.iter_mut().filter(|s| matches!(s.state, Progress::Queued)).take(limit.saturating_sub(running)) {
            step.state = Progress::Running(Fetch::start(client, work, &step.wanted)?);
        }
        while let Some(step) = steps.get_mut(next) {
            match &step.state {
                Progress::Here => {}
                Progress::Made(name, meta) => {
                    work::ask(context, ImageMessage::LayerReady { name: name.clone(), meta: meta.clone() })?;
                    say(context, &progress::layer(&step.short, "Pull complete"))?;
                    step.state = Progress::Here;
                }
                _ => break,
            }
            next += 1;
        }
        if next == steps.len() {
            return Ok(());
        }
        wait(&mut steps, context)?;
    }
}

/// Waits for reports and passes them on.
fn wait(steps: &mut [Step], context: &mut Context) -> Result<()> {
    let fds = steps.iter().map(|step| match &step.state {
        Progress::Running(fetch) => fetch.process.pollfd(),
        _ => libc::pollfd { fd: -1, events: 0, revents: 0 },
    });
    let mut fds: Vec<libc::pollfd> = fds.collect();
    sys::poll::poll(&mut fds, -1).map_err(|e| Error::io("wait for downloads", &e))?;
    for (step, _) in steps.iter_mut().zip(&fds).filter(|(_, fd)| fd.revents != 0) {
        let Progress::Running(fetch) = &mut step.state else { continue };
        let size = step.wanted.descriptor.size;
        for report in fetch.process.reports::<LayerMeta>() {
            match report {
                Report::Bytes(bytes) => say(context, &progress::bar(&step.short, "Downloading", bytes, size))?,
                Report::Retrying(left) => {
                    let unit = if left == 1 { "second" } else { "seconds" };
                    say(context, &progress::layer(&step.short, &format!("Retrying in {left} {unit}")))?;
                }
                Report::Failed(message) => return Err(Error::system(message)),
                Report::Done(meta) => {
                    if meta.chain != step.chain {
                        return Err(Error::system("a download made another layer"));
                    }
                    say(context, &progress::layer(&step.short, "Verifying Checksum"))?;
                    say(context, &progress::layer(&step.short, "Download complete"))?;
                    // Unpacked while it came: what is left is the rename.
                    say(context, &progress::bar(&step.short, "Extracting", size, size))?;
                    step.state = Progress::Made(fetch.name.clone(), meta);
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Names the image by tag and digest, and publishes the event.
fn finish(reference: &Reference, digest: Digest, id: Digest, document: Option<&Document>, context: &mut Context) -> Result<Pulled> {
    let by_digest = work::tag(context, &reference.with_digest(digest), id, false)?;
    let before = match (reference.digest(), reference.tag()) {
        (None, Some(_)) => work::tag(context, reference, id, false)?,
        _ => by_digest,
    };
    say(context, &progress::status("", format!("Digest: {digest}")))?;
    let labels = document.and_then(|d| d.config.as_ref()).and_then(|c| c.labels.clone()).unwrap_or_default();
    let mut attributes: BTreeMap<String, String> = labels;
    attributes.insert("name".into(), reference.familiar_name());
    context.tell(&Message::Event { kind: "image".into(), action: "pull".into(), id: reference.familiar(), attributes })?;
    Ok(Pulled { id, new: before != Some(id) })
}

/// One line of the stream; the first one sends the head.
pub(super) fn say(context: &mut Context, line: &Line) -> Result<()> {
    if !context.started() {
        context.start(200, "application/json")?;
    }
    context.line(line)
}
