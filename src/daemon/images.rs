//! Images in the daemon: what workers report, what becomes durable, what is swept away, which events go out.

use super::Daemon;
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::layer::{Blob, Claim, META_FILE, META_VERSION, Waiter};
use crate::image::names::Extra;
use crate::image::reference::Reference;
use crate::image::remove::User;
use crate::image::{keep_refs, state_file, sweep};
use crate::sys;
use crate::worker::Job;
use crate::worker::message::{Answer, ImageMessage};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

impl Daemon {
    /// After the start, when the containers hold their layers: what nobody needs goes, and what was left in staging.
    pub(super) fn settle_images(&mut self) {
        let pruned = self.images.prune_layers();
        if pruned > 0 {
            log::info!("image store: {pruned} layers belong to no image and are removed");
        }
        self.sweep_images();
    }

    /// Writes refs.json durably, keeping the generation before.
    pub fn save_refs(&mut self, then: impl FnOnce(&mut Daemon, io::Result<()>) + 'static) {
        if let Err(e) = keep_refs(&self.images) {
            log::warn!("image store: the previous refs.json cannot be kept: {e}");
        }
        let bytes = self.images.encoded_refs();
        self.write_state(self.data_root.join("refs.json"), bytes, then);
    }

    /// Names an image; `then` gets the image that had the name before, once that is durable. A name that can't be written
    /// is taken back.
    pub fn tag_image(&mut self, reference: Reference, id: Digest, then: impl FnOnce(&mut Daemon, Result<Option<Digest>>) + 'static) {
        let before = match self.images.tag(&reference, id, sys::time::realtime_ns()) {
            Ok(before) => before,
            Err(e) => return then(self, Err(e)),
        };
        self.save_refs(move |daemon, written| match written {
            Ok(()) => then(daemon, Ok(before)),
            Err(e) => {
                daemon.images.restore_name(&reference, Some(id), before);
                then(daemon, Err(Error::io("write refs.json", &e)));
            }
        });
    }

    /// Publishes an image event: the image's labels, and `name`.
    pub fn image_event(&mut self, action: &str, id: Digest, name: &str) {
        let labels = self.images.get(id).and_then(|image| image.labels.clone()).unwrap_or_default();
        self.image_event_with(action, id, name, labels);
    }

    /// As [`Daemon::image_event`], for an image that is gone already.
    pub fn image_event_with(&mut self, action: &str, id: Digest, name: &str, labels: BTreeMap<String, String>) {
        let mut attributes = labels;
        if !name.is_empty() {
            attributes.insert("name".into(), name.into());
        }
        self.emit("image", action, &id.to_string(), attributes);
    }

    /// The containers as far as images are concerned.
    pub fn image_users(&self) -> Vec<User> {
        let user = |container: &crate::container::record::Container| {
            let record = &container.record;
            let mounts = record.mounts.iter().filter(|mount| mount.kind == "image").filter_map(|mount| mount.source.parse().ok());
            let running = record.state.is_running() || container.starting;
            Some(User { container: record.id.clone(), image: record.image.parse().ok()?, running, mounts: mounts.collect() })
        };
        self.containers.iter().filter_map(user).collect()
    }

    /// Starts a worker that deletes what was renamed into staging, unless one is at it.
    pub fn sweep_images(&mut self) {
        if self.sweeping || !self.images.has_trash() {
            return;
        }
        let trash = self.images.take_trash();
        let staging = self.data_root.join("staging");
        let job = Job::new("delete", move |_| {
            let failed = |e: io::Error| Error::io("delete in staging", &e);
            let path = sys::cstring(staging.as_os_str().as_bytes()).map_err(failed)?;
            let dir = sys::fd::open(&path, libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(failed)?;
            for name in trash {
                // One that can't be deleted must not keep the others; the next start tries again.
                if let Err(e) = sweep::remove_tree(dir.as_fd(), &name) {
                    log::warn!("delete {}: {e}", name.to_string_lossy());
                }
            }
            Ok(())
        });
        let started = self.start_worker(job, |daemon, _| {
            daemon.sweeping = false;
            daemon.sweep_images();
        });
        match started {
            Ok(_) => self.sweeping = true,
            Err(e) => log::error!("image store: no worker to delete with: {e}; the next start takes care of it"),
        }
    }

    /// A worker has ended: others may make what it was making.
    pub(super) fn image_worker_gone(&mut self, number: u64) {
        self.end_commit(number);
        let answers = self.images.worker_gone(number);
        self.answer_claims(answers);
        self.sweep_images();
    }

    fn answer_claims(&mut self, answers: Vec<(Waiter, Claim)>) {
        for (waiter, claim) in answers {
            self.answer_worker(waiter.worker, waiter.message, Ok(self.claim_answer(claim)));
        }
    }

    fn claim_answer(&self, claim: Claim) -> Answer {
        match claim {
            Claim::Have(number, chain, diff) => Answer::Layer { number, chain, diff },
            Claim::Yours | Claim::Wait => Answer::Make,
        }
    }

    pub(super) fn on_image_message(&mut self, worker: u64, message: u64, body: ImageMessage) {
        let waiter = Waiter { worker, message };
        let answer = match body {
            ImageMessage::ClaimLayer { chain } => match self.images.claim_layer(chain, waiter) {
                Claim::Wait => return,
                claim => Ok(self.claim_answer(claim)),
            },
            ImageMessage::FindLayer { digest } => Ok(match self.images.layers.hold_any(worker, digest) {
                Some((number, chain, diff)) => Answer::Layer { number, chain, diff },
                None => Answer::None,
            }),
            ImageMessage::LayerReady { name, meta } => {
                let (chain, diff) = (meta.chain, meta.diff);
                self.images.layer_ready(worker, &name, meta).and_then(|waiting| {
                    self.answer_claims(waiting);
                    let layer = self.images.layers.get(chain).ok_or_else(|| Error::system(format!("layer {chain} is not here")))?;
                    Ok(Answer::Layer { number: layer.number, chain, diff })
                })
            }
            ImageMessage::LayerKnown { chain, blob } => {
                self.learn_blob(chain, blob);
                Ok(Answer::Done)
            }
            ImageMessage::ImageReady { name, id, parent, built } => {
                let extra = Extra { parent, built, tagged: 0 };
                let described = extra != Extra::default();
                match self.images.image_ready(worker, &name, id, extra) {
                    Ok(_) if described => return self.save_refs_for(worker, message),
                    outcome => outcome.map(|_| Answer::Done),
                }
            }
            ImageMessage::SetParent { id, parent } => match self.images.set_parent(id, parent) {
                Ok(()) => return self.save_refs_for(worker, message),
                Err(e) => Err(e),
            },
            ImageMessage::Tag { reference, id, event } => match Reference::parse(&reference) {
                Ok(reference) => {
                    let familiar = reference.familiar();
                    self.tag_image(reference, id, move |daemon, tagged| {
                        if event && tagged.is_ok() {
                            daemon.image_event("tag", id, &familiar);
                        }
                        daemon.answer_worker(worker, message, tagged.map(|before| Answer::Tagged { before }));
                    });
                    return;
                }
                Err(e) => Err(e),
            },
            ImageMessage::Event { action, id, name } => {
                self.image_event(&action, id, &name);
                Ok(Answer::Done)
            }
            ImageMessage::BeginCommit { container, pause } => self.begin_commit(worker, &container, pause).map(|()| Answer::Done),
            ImageMessage::EndCommit { container } => {
                self.end_commit(worker);
                self.containers.find(&container).map(|_| Answer::Done)
            }
            ImageMessage::Committed { container, id, reference, comment } => {
                let attributes = [("comment", comment), ("imageID", id.to_string()), ("imageRef", reference)];
                self.emit_container(&container, "commit", &attributes);
                Ok(Answer::Done)
            }
            ImageMessage::Resolve { name } => self.images.resolve(&name).map(|image| {
                let mut layers = self.images.lower_numbers(image.top);
                layers.reverse();
                Answer::Image { id: image.id, top: image.top, layers }
            }),
        };
        self.answer_worker(worker, message, answer);
    }

    fn begin_commit(&mut self, worker: u64, container: &str, pause: bool) -> Result<()> {
        let id = self.containers.find(container)?.id();
        // One that does not run, or is paused already, is as still as it can be.
        if pause && self.pause_container(&id).is_ok() {
            self.paused_by.insert(worker, id);
        }
        Ok(())
    }

    /// Lets a container run on that a commit has paused.
    fn end_commit(&mut self, worker: u64) {
        let Some(id) = self.paused_by.remove(&worker) else { return };
        if let Err(e) = self.unpause_container(&id) {
            log::warn!("container {id} was paused for a commit, and does not run on: {e}");
        }
    }

    /// Answers a worker once the index is durable.
    fn save_refs_for(&mut self, worker: u64, message: u64) {
        self.save_refs(move |daemon, written| {
            let answer = written.map(|()| Answer::Done).map_err(|e| Error::io("write refs.json", &e));
            daemon.answer_worker(worker, message, answer);
        });
    }

    /// Remembers a compressed form of a layer in its meta.json; worth keeping, not worth waiting for.
    pub fn learn_blob(&mut self, chain: Digest, blob: Blob) {
        let Some(layer) = self.images.layers.get_mut(chain) else { return };
        if !layer.meta.learn(blob) {
            return;
        }
        let (number, bytes) = (layer.number, state_file::encode(META_VERSION, &layer.meta));
        let path = self.images.place().layer(number).join(META_FILE);
        self.write_state(path, bytes, |_, written| {
            if let Err(e) = written {
                log::warn!("image store: a layer's registry digests cannot be remembered: {e}");
            }
        });
    }
}
