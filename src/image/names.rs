//! Which names mean which images: tags and digests, with what `refs.json` keeps of each image beside.

use super::digest::Digest;
use super::reference::Reference;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Version of refs.json.
pub const REFS_VERSION: u32 = 1;

/// What is stored: everything that must change together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stored {
    /// Normalised reference to image id.
    pub references: BTreeMap<String, Digest>,
    /// What is not in the image's own document.
    #[serde(default)]
    pub images: BTreeMap<Digest, Extra>,
    /// Layer numbers up to here were used.
    #[serde(default)]
    pub last_layer: u64,
}

/// What the engine knows of an image beside its document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extra {
    /// The image this one was made from, here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// When it was last tagged, in nanoseconds since 1970; 0 = never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tagged: i64,
    /// Made by commit or build on this host, not loaded or pulled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub built: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// The names in memory.
#[derive(Debug, Default)]
pub struct Names {
    /// Keyed by the normalised form, so that ranges and listings are in the reference's order.
    by_name: BTreeMap<String, (Reference, Digest)>,
    by_image: HashMap<Digest, Vec<String>>,
}

impl Names {
    /// The image of exactly this name. Name and tag with a digest: the digest alone counts.
    pub fn get(&self, reference: &Reference) -> Option<Digest> {
        let key = match reference.digest() {
            Some(digest) => reference.with_digest(digest),
            None => reference.clone().or_latest(),
        };
        self.by_name.get(&key.to_string()).map(|(_, id)| *id)
    }

    /// Gives `reference` to `image`; returns what had it before.
    pub fn set(&mut self, reference: &Reference, image: Digest) -> Option<Digest> {
        let before = self.remove(reference);
        let key = reference.to_string();
        self.by_name.insert(key.clone(), (reference.clone(), image));
        let names = self.by_image.entry(image).or_default();
        let at = names.binary_search(&key).unwrap_or_else(|at| at);
        names.insert(at, key);
        before
    }

    /// Takes a name away; returns the image that had it.
    pub fn remove(&mut self, reference: &Reference) -> Option<Digest> {
        let key = reference.to_string();
        let (_, image) = self.by_name.remove(&key)?;
        if let Some(names) = self.by_image.get_mut(&image) {
            names.retain(|name| *name != key);
            if names.is_empty() {
                self.by_image.remove(&image);
            }
        }
        Some(image)
    }

    /// All names of an image, sorted.
    pub fn of(&self, image: Digest) -> impl Iterator<Item = &Reference> {
        let names = self.by_image.get(&image).map_or(&[][..], Vec::as_slice);
        names.iter().filter_map(|name| self.by_name.get(name)).map(|(reference, _)| reference)
    }

    /// All names of the repository of `name`, sorted.
    pub fn of_repository<'a>(&'a self, name: &'a Reference) -> impl Iterator<Item = (&'a Reference, Digest)> {
        let prefix = name.name();
        let range = self.by_name.range(prefix.clone()..).take_while(move |(key, _)| key.starts_with(&prefix));
        range
            .filter(|(_, (reference, _))| reference.domain() == name.domain() && reference.path() == name.path())
            .map(|(_, (r, id))| (r, *id))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Reference, Digest)> {
        self.by_name.values().map(|(reference, id)| (reference, *id))
    }

    /// For the state file.
    pub fn stored(&self) -> BTreeMap<String, Digest> {
        self.by_name.iter().map(|(name, (_, id))| (name.clone(), *id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Reference {
        Reference::parse(text).unwrap()
    }

    #[test]
    fn names_move_between_images() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut names = Names::default();
        assert_eq!(names.set(&name("x:1"), a), None);
        assert_eq!(names.set(&name("x:2"), a), None);
        assert_eq!(names.set(&name("x:1"), b), Some(a));
        assert_eq!(names.of(a).map(Reference::familiar).collect::<Vec<_>>(), ["x:2"]);
        assert_eq!(names.get(&name("x:1")), Some(b));
        assert_eq!(names.get(&name("x")), None);
        names.set(&name("x:latest"), a);
        assert_eq!(names.get(&name("x")), Some(a));
        assert_eq!(names.remove(&name("x:9")), None);
    }

    #[test]
    fn a_digest_beats_the_tag_beside_it() {
        let a = Digest::of(b"a");
        let mut names = Names::default();
        names.set(&name("x").with_digest(a), a);
        assert_eq!(names.get(&name(&format!("x:nosuch@{a}"))), Some(a));
    }

    #[test]
    fn repositories_do_not_mix_with_longer_names() {
        let a = Digest::of(b"a");
        let mut names = Names::default();
        for text in ["x:1", "x-y:1", "x/y:1", "xx:1", "x:2", "docker.io/library/x:3"] {
            names.set(&name(text), a);
        }
        assert_eq!(names.of_repository(&name("x")).map(|(r, _)| r.familiar()).collect::<Vec<_>>(), ["x:1", "x:2", "x:3"]);
    }
}
