//! For tests: a store with images in it, made the way workers make them.

use super::config::{NewImage, Platform};
use super::digest::{Digest, chain_ids};
use super::layer::{Claim, LayerMeta, META_FILE, META_VERSION, Waiter};
use super::names::Extra;
use super::reference::Reference;
use super::scratch::Scratch;
use super::state_file::{self, write_durably};
use super::store::REFS_FILE;
use super::{Store, keep_refs};
use crate::container::config::Config;
use std::fs;

pub const WORKER: u64 = 7;

/// Does what a worker does for a layer.
pub fn add_layer(store: &mut Store, diffs: &[Digest]) -> Digest {
    let chains = chain_ids(diffs);
    let chain = *chains.last().unwrap();
    let waiter = Waiter { worker: WORKER, message: 1 };
    if matches!(store.claim_layer(chain, waiter), Claim::Have(..)) {
        return chain;
    }
    let parent = chains.len().checked_sub(2).map(|i| chains[i]);
    let meta = LayerMeta { chain, diff: *diffs.last().unwrap(), parent, size: 10, tar_size: 1024, known: Vec::new() };
    let dir = store.place().staging(WORKER).join("layer");
    fs::create_dir_all(dir.join("diff")).unwrap();
    fs::write(dir.join(META_FILE), state_file::encode(META_VERSION, &meta)).unwrap();
    store.layer_ready(WORKER, "layer", meta).unwrap();
    chain
}

pub fn add_image(store: &mut Store, name: &str, diffs: &[Digest], extra: Extra) -> Digest {
    for n in 1..=diffs.len() {
        add_layer(store, &diffs[..n]);
    }
    let config = Config { image: name.into(), ..Config::default() };
    let created = "2024-05-01T12:00:00Z".into();
    let image = NewImage {
        platform: Platform::host(),
        config: &config,
        created,
        author: "",
        comment: "",
        diff_ids: diffs.to_vec(),
        history: Vec::new(),
        container: None,
    };
    let bytes = image.to_bytes();
    let dir = store.place().staging(WORKER);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("config"), &bytes).unwrap();
    let id = Digest::of(&bytes);
    assert!(store.image_ready(WORKER, "config", id, extra).unwrap());
    store.worker_gone(WORKER);
    store.tag(&Reference::parse(name).unwrap().or_latest(), id, 5).unwrap();
    save(store);
    id
}

pub fn save(store: &Store) {
    keep_refs(store).unwrap();
    write_durably(store.data_dir(), REFS_FILE, &store.encoded_refs()).unwrap();
}

pub fn open(scratch: &Scratch) -> Store {
    static RUN: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(1);
    Store::open(scratch.path(), RUN.fetch_add(1, std::sync::atomic::Ordering::Relaxed)).unwrap()
}

pub fn diff(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}
