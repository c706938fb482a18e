//! The layers on disk and in memory: numbered directories, what they are known as, and who needs them.
//!
//! `layers/<n>/` holds `diff/`, `recipe` and `meta.json`. A layer is needed by each image it is the top of, by each layer on
//! top of it, and by each hold; when nobody needs it any more it is taken out, and so on downwards.

use super::digest::{Digest, chain_id};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};

/// Version of meta.json.
pub const META_VERSION: u32 = 1;
/// The file's name within a layer's directory.
pub const META_FILE: &str = "meta.json";

/// `meta.json`: written by the worker that made the layer, before the layer is shown to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMeta {
    pub chain: Digest,
    pub diff: Digest,
    /// Chain id of the layer below.
    pub parent: Option<Digest>,
    /// Bytes of regular files, which the reference calls the layer's size.
    pub size: u64,
    /// Bytes of the uncompressed tar.
    pub tar_size: u64,
    /// The compressed forms this layer was seen in, newest last.
    #[serde(default)]
    pub known: Vec<Blob>,
}

/// A compressed form of a layer in registries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    pub media_type: String,
    /// Domain and path of repositories that have it.
    #[serde(default)]
    pub repositories: Vec<String>,
}

/// More forms than this are forgotten, oldest first: registries may name the same layer without end.
const KNOWN_MAX: usize = 16;
const REPOSITORIES_MAX: usize = 32;

impl LayerMeta {
    /// Whether chain, diff and parent fit together.
    pub fn is_consistent(&self) -> bool {
        self.chain == chain_id(self.parent, self.diff)
    }

    /// Remembers a compressed form; false when it was known already.
    pub fn learn(&mut self, blob: Blob) -> bool {
        let Some(known) = self.known.iter_mut().find(|known| known.digest == blob.digest) else {
            if self.known.len() == KNOWN_MAX {
                self.known.remove(0);
            }
            self.known.push(blob);
            return true;
        };
        let new: Vec<String> = blob.repositories.into_iter().filter(|name| !known.repositories.contains(name)).collect();
        let learned = !new.is_empty();
        known.repositories.extend(new);
        let surplus = known.repositories.len().saturating_sub(REPOSITORIES_MAX);
        known.repositories.drain(..surplus);
        learned
    }
}

/// A layer in memory.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Directory name under `layers/`; small, never reused.
    pub number: u64,
    pub meta: LayerMeta,
    /// Bytes of this layer and all below it.
    pub total_size: u64,
    needed_by: u32,
}

/// Who keeps a layer besides images and other layers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// A worker by its number, for as long as it lives.
    Worker(u64),
    /// A container by its id: its file system stands on the layer.
    Container(String),
}

/// A worker's question that waits for its answer: worker number and message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub worker: u64,
    pub message: u64,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The layer is here, and held for the asking worker: directory number, chain id, diff id.
    Have(u64, Digest, Digest),
    /// Nobody has it: the asking worker is to make it.
    Yours,
    /// Another worker is making it: the answer comes later.
    Wait,
}

#[derive(Debug, Default)]
struct Claimed {
    by: u64,
    waiting: VecDeque<Waiter>,
}

/// All layers.
#[derive(Debug, Default)]
pub struct Layers {
    by_chain: HashMap<Digest, Layer>,
    claims: HashMap<Digest, Claimed>,
    holds: HashMap<Holder, Vec<Digest>>,
    next: u64,
}

impl Layers {
    /// The number of the next layer's directory.
    pub fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// No number up to `used` is given out again.
    pub fn reserve_numbers(&mut self, used: u64) {
        self.next = self.next.max(used);
    }

    pub fn last_number(&self) -> u64 {
        self.next
    }

    pub fn get(&self, chain: Digest) -> Option<&Layer> {
        self.by_chain.get(&chain)
    }

    pub fn get_mut(&mut self, chain: Digest) -> Option<&mut Layer> {
        self.by_chain.get_mut(&chain)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Layer> {
        self.by_chain.values()
    }

    /// Adds a layer whose parent is there. The caller has checked both, and that it is new.
    pub fn insert(&mut self, number: u64, meta: LayerMeta) {
        let below = match meta.parent.and_then(|parent| self.by_chain.get_mut(&parent)) {
            Some(parent) => {
                parent.needed_by += 1;
                parent.total_size
            }
            None => 0,
        };
        let total_size = below.saturating_add(meta.size);
        self.by_chain.insert(meta.chain, Layer { number, meta, total_size, needed_by: 0 });
    }

    /// The layers from `top` down to the bottom.
    pub fn stack(&self, top: Option<Digest>) -> impl Iterator<Item = &Layer> {
        let mut next = top;
        std::iter::from_fn(move || {
            let layer = self.by_chain.get(&next?)?;
            next = layer.meta.parent;
            Some(layer)
        })
    }

    /// One more image has this layer as its top.
    pub fn need(&mut self, chain: Digest) {
        if let Some(layer) = self.by_chain.get_mut(&chain) {
            layer.needed_by += 1;
        }
    }

    /// One fewer; gives the layers that nobody needs now, top first. They are out of the index.
    pub fn unneed(&mut self, chain: Digest) -> Vec<Layer> {
        if let Some(layer) = self.by_chain.get_mut(&chain) {
            layer.needed_by = layer.needed_by.saturating_sub(1);
        }
        self.take_unneeded(chain)
    }

    fn take_unneeded(&mut self, chain: Digest) -> Vec<Layer> {
        let mut gone = Vec::new();
        let mut next = Some(chain);
        while let Some(chain) = next {
            match self.by_chain.get(&chain) {
                Some(layer) if layer.needed_by == 0 => {}
                _ => break,
            }
            let Some(layer) = self.by_chain.remove(&chain) else { break };
            next = layer.meta.parent;
            if let Some(parent) = next.and_then(|parent| self.by_chain.get_mut(&parent)) {
                parent.needed_by = parent.needed_by.saturating_sub(1);
            }
            gone.push(layer);
        }
        gone
    }

    /// Takes out every layer that nobody needs; for the start, when images and containers are known.
    pub fn take_all_unneeded(&mut self) -> Vec<Layer> {
        let idle: Vec<Digest> = self.by_chain.values().filter(|layer| layer.needed_by == 0).map(|layer| layer.meta.chain).collect();
        idle.into_iter().flat_map(|chain| self.take_unneeded(chain)).collect()
    }

    /// Keeps a layer for `holder` until [`Layers::release`]; false when there is no such layer.
    pub fn hold(&mut self, holder: Holder, chain: Digest) -> bool {
        let Some(layer) = self.by_chain.get_mut(&chain) else { return false };
        layer.needed_by += 1;
        self.holds.entry(holder).or_default().push(chain);
        true
    }

    /// Ends all of a holder's holds; gives the layers that nobody needs now.
    pub fn release(&mut self, holder: &Holder) -> Vec<Layer> {
        let held = self.holds.remove(holder).unwrap_or_default();
        held.into_iter().flat_map(|chain| self.unneed(chain)).collect()
    }

    /// Asks for a layer: it is here, or it is this worker's to make, or another worker is at it.
    pub fn claim(&mut self, chain: Digest, waiter: Waiter) -> Claim {
        if self.hold(Holder::Worker(waiter.worker), chain)
            && let Some(layer) = self.by_chain.get(&chain)
        {
            return Claim::Have(layer.number, chain, layer.meta.diff);
        }
        match self.claims.get_mut(&chain) {
            Some(claimed) if claimed.by != waiter.worker => {
                claimed.waiting.push_back(waiter);
                Claim::Wait
            }
            Some(_) => Claim::Yours,
            None => {
                self.claims.insert(chain, Claimed { by: waiter.worker, waiting: VecDeque::new() });
                Claim::Yours
            }
        }
    }

    /// A layer with these bytes, compressed or not, whatever stands below it, held for the worker: number, chain id, diff id.
    pub fn hold_any(&mut self, worker: u64, digest: Digest) -> Option<(u64, Digest, Digest)> {
        let known = |layer: &&Layer| layer.meta.diff == digest || layer.meta.known.iter().any(|blob| blob.digest == digest);
        let (number, chain, diff) = self.by_chain.values().find(known).map(|layer| (layer.number, layer.meta.chain, layer.meta.diff))?;
        self.hold(Holder::Worker(worker), chain);
        Some((number, chain, diff))
    }

    /// Whether `worker` may make this layer.
    pub fn is_claimed_by(&self, chain: Digest, worker: u64) -> bool {
        self.claims.get(&chain).is_some_and(|claimed| claimed.by == worker)
    }

    /// After a layer was inserted: those who waited have it now.
    pub fn claim_fulfilled(&mut self, chain: Digest) -> Vec<(Waiter, Claim)> {
        let waiting = self.claims.remove(&chain).unwrap_or_default().waiting;
        waiting.into_iter().map(|waiter| (waiter, self.claim(chain, waiter))).collect()
    }

    /// A worker is gone: its claims go to the next who waits, and its own questions are forgotten.
    pub fn drop_claims(&mut self, worker: u64) -> Vec<(Waiter, Claim)> {
        for claimed in self.claims.values_mut() {
            claimed.waiting.retain(|waiter| waiter.worker != worker);
        }
        let mine: Vec<Digest> = self.claims.iter().filter(|(_, claimed)| claimed.by == worker).map(|(chain, _)| *chain).collect();
        let mut answers = Vec::new();
        for chain in mine {
            let Some(mut claimed) = self.claims.remove(&chain) else { continue };
            if let Some(next) = claimed.waiting.pop_front() {
                self.claims.insert(chain, Claimed { by: next.worker, waiting: claimed.waiting });
                answers.push((next, Claim::Yours));
            }
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(name: &str, parent: Option<Digest>, size: u64) -> LayerMeta {
        let diff = Digest::of(name.as_bytes());
        LayerMeta { chain: chain_id(parent, diff), diff, parent, size, tar_size: size, known: Vec::new() }
    }

    fn three() -> (Layers, [Digest; 3]) {
        let mut layers = Layers::default();
        let a = meta("a", None, 1);
        let b = meta("b", Some(a.chain), 2);
        let c = meta("c", Some(a.chain), 4);
        let chains = [a.chain, b.chain, c.chain];
        for meta in [a, b, c] {
            let number = layers.take_number();
            layers.insert(number, meta);
        }
        (layers, chains)
    }

    #[test]
    fn a_shared_layer_goes_with_its_last_user() {
        let (mut layers, [a, b, c]) = three();
        layers.need(b);
        layers.need(c);
        assert_eq!(layers.get(c).unwrap().total_size, 5);
        assert_eq!(layers.unneed(b).iter().map(|l| l.meta.chain).collect::<Vec<_>>(), [b]);
        assert!(layers.hold(Holder::Container("x".into()), c));
        assert!(layers.unneed(c).is_empty());
        assert_eq!(layers.release(&Holder::Container("x".into())).iter().map(|l| l.meta.chain).collect::<Vec<_>>(), [c, a]);
        assert_eq!(layers.iter().count(), 0);
        assert_eq!(layers.take_number(), 4);
    }

    #[test]
    fn the_start_prunes_what_nobody_needs() {
        let (mut layers, [_, b, _]) = three();
        layers.need(b);
        assert_eq!(layers.take_all_unneeded().len(), 1);
        assert_eq!(layers.stack(Some(b)).map(|l| l.number).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn one_makes_a_layer_and_the_others_wait() {
        let mut layers = Layers::default();
        let new = meta("new", None, 1);
        let ask = |worker| Waiter { worker, message: worker * 10 };
        assert_eq!(layers.claim(new.chain, ask(1)), Claim::Yours);
        assert_eq!(layers.claim(new.chain, ask(1)), Claim::Yours);
        assert_eq!(layers.claim(new.chain, ask(2)), Claim::Wait);
        assert_eq!(layers.claim(new.chain, ask(3)), Claim::Wait);
        assert_eq!(layers.drop_claims(1), [(ask(2), Claim::Yours)]);
        assert!(layers.is_claimed_by(new.chain, 2));
        let chain = new.chain;
        layers.insert(1, new);
        assert_eq!(layers.claim_fulfilled(chain), [(ask(3), Claim::Have(1, chain, chain))]);
        assert_eq!(layers.release(&Holder::Worker(3)).len(), 1);
    }

    #[test]
    fn remembered_blobs_are_bounded() {
        let mut layer = meta("a", None, 1);
        let blob = |n: usize, repository: String| Blob {
            digest: Digest::of(&[u8::try_from(n).unwrap()]),
            size: 1,
            media_type: String::new(),
            repositories: vec![repository],
        };
        for n in 0..100 {
            assert!(layer.learn(blob(n, "r".into())));
        }
        assert_eq!(layer.known.len(), KNOWN_MAX);
        assert!(!layer.learn(blob(99, "r".into())));
        for n in 0..100 {
            layer.learn(blob(99, format!("r{n}")));
        }
        assert_eq!(layer.known.last().unwrap().repositories.len(), REPOSITORIES_MAX);
    }
}
