//! Removing names and images: what goes, what stands in the way, and in which words. The reference's `ImageDelete`.
//!
//! A hard conflict (child images, a running container) can't be forced; a soft one (more names, a stopped container) can.

use super::Store;
use super::digest::Digest;
use super::reference::Reference;
use crate::error::{Error, Result};
use serde::Serialize;

/// A container that was made from an image, or mounts one.
#[derive(Clone, Debug)]
pub struct User {
    pub container: String,
    pub image: Digest,
    pub running: bool,
    /// Images that it mounts (`type=image`).
    pub mounts: Vec<Digest>,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Record {
    Untagged(String),
    Deleted(String),
}

/// What was done, also where an error came after it.
#[derive(Debug, Default)]
pub struct Removal {
    pub records: Vec<Record>,
    /// Image events in order: action and image, labels still to be added by whoever publishes.
    pub events: Vec<(&'static str, Digest)>,
    /// Bytes of the layers that are gone.
    pub reclaimed: u64,
    /// Names that were taken away, with the images that had them.
    pub untagged: Vec<(Reference, Digest)>,
    /// Labels of removed images, for the events that come after them.
    pub labels: Vec<(Digest, crate::container::config::Labels)>,
}

impl Removal {
    /// Whether anything was done, so that refs.json must be written.
    pub fn changed(&self) -> bool {
        !self.records.is_empty()
    }

    /// Takes up what another removal did.
    pub fn add(&mut self, other: Removal) {
        self.records.extend(other.records);
        self.events.extend(other.events);
        self.untagged.extend(other.untagged);
        self.labels.extend(other.labels);
        self.reclaimed += other.reclaimed;
    }

    /// Whether an image is gone: that stands even when the index can't be written.
    pub fn deleted(&self) -> bool {
        self.records.iter().any(|record| matches!(record, Record::Deleted(_)))
    }
}

/// Removes a name or an image. `prune`: parents without names that nobody uses go too.
pub fn remove(store: &mut Store, name: &str, force: bool, prune: bool, users: &[User]) -> Result<Removal> {
    if name.trim().is_empty() {
        return Err(Error::invalid("image name cannot be blank"));
    }
    let id = store.resolve(name)?.id;
    let mut removing = Removing { store, users, done: Removal::default() };
    removing.by_name_or_id(id, name, force, prune)?;
    Ok(removing.done)
}

struct Removing<'a> {
    store: &'a mut Store,
    users: &'a [User],
    done: Removal,
}

/// Which conflicts are looked for.
#[derive(Clone, Copy)]
struct Look {
    names: bool,
    stopped: bool,
}

struct Conflict {
    error: Error,
    /// A container is the cause.
    used: bool,
}

impl Removing<'_> {
    fn by_name_or_id(&mut self, id: Digest, name: &str, force: bool, prune: bool) -> Result<()> {
        let names: Vec<Reference> = self.store.names_of(id).cloned().collect();
        if is_id_prefix(id, name) {
            if is_single(&names) {
                self.check(id, Look { names: false, stopped: !force })?;
                self.untag_all(id);
            }
            return self.image(id, force, prune, false);
        }
        if !force
            && is_single(&names)
            && let Some(user) = self.users.iter().find(|user| user.image == id || user.mounts.contains(&id))
        {
            // Without the name the image would dangle below a container: that must be asked for.
            return Err(Error::conflict(format!(
                "conflict: unable to remove repository reference {name:?} (must force) - container {} is using its referenced image {}",
                short(&user.container),
                id.short()
            )));
        }
        let reference = Reference::parse(name)?.or_latest();
        self.untag(&reference, id);
        self.done.events.push(("untag", id));
        if reference.digest().is_none() {
            self.drop_lone_digests(&reference, id);
        }
        if self.store.names_of(id).next().is_some() {
            return Ok(());
        }
        self.image(id, force, prune, true)
    }

    fn untag(&mut self, reference: &Reference, id: Digest) {
        let key = match reference.digest() {
            Some(digest) => reference.with_digest(digest),
            None => reference.clone(),
        };
        if self.store.named(&key) == Some(id) {
            self.store.untag(&key);
            self.done.untagged.push((key, id));
        }
        self.done.records.push(Record::Untagged(reference.familiar()));
    }

    /// With the last tag of a repository its digests go, too.
    fn drop_lone_digests(&mut self, removed: &Reference, id: Digest) {
        let same = |name: &&Reference| name.domain() == removed.domain() && name.path() == removed.path();
        let left: Vec<Reference> = self.store.names_of(id).filter(same).cloned().collect();
        if left.iter().all(|name| name.digest().is_some()) {
            for name in left {
                self.untag(&name, id);
            }
        }
    }

    fn untag_all(&mut self, id: Digest) {
        let names: Vec<Reference> = self.store.names_of(id).cloned().collect();
        for name in names {
            self.untag(&name, id);
            self.done.events.push(("untag", id));
        }
    }

    /// Deletes the image unless something is in the way; then its parents. `quiet`: a conflict just ends it.
    fn image(&mut self, mut id: Digest, mut force: bool, prune: bool, mut quiet: bool) -> Result<()> {
        loop {
            if let Err(conflict) = self.conflict(id, Look { names: !force, stopped: !force }) {
                let dangling = self.store.names_of(id).next().is_none() && self.store.get(id).is_some_and(|image| !image.has_children());
                return if quiet && (!dangling || conflict.used) { Ok(()) } else { Err(conflict.error) };
            }
            let Some(image) = self.store.get(id) else { return Ok(()) };
            let parent = image.extra.parent;
            self.done.labels.push((id, image.labels.clone().unwrap_or_default()));
            self.untag_all(id);
            let sizes: Vec<(Digest, u64)> =
                self.store.layers.stack(image_top(self.store, id)).map(|l| (l.meta.chain, l.meta.size)).collect();
            let gone = self.store.remove_image(id);
            self.done.events.push(("delete", id));
            self.done.records.push(Record::Deleted(id.to_string()));
            for chain in gone {
                self.done.reclaimed += sizes.iter().find(|(known, _)| *known == chain).map_or(0, |(_, size)| *size);
                self.done.records.push(Record::Deleted(chain.to_string()));
            }
            match parent.filter(|_| prune) {
                Some(parent) => (id, force, quiet) = (parent, false, true),
                None => return Ok(()),
            }
        }
    }

    fn check(&self, id: Digest, look: Look) -> Result<()> {
        self.conflict(id, look).map_err(|conflict| conflict.error)
    }

    fn conflict(&self, id: Digest, look: Look) -> std::result::Result<(), Conflict> {
        let refuse = |how: &str, why: String, used: bool| {
            Err(Conflict { error: Error::conflict(format!("conflict: unable to delete {} ({how}) - {why}", id.short())), used })
        };
        if self.store.get(id).is_some_and(super::store::Image::has_children) {
            return refuse("cannot be forced", "image has dependent child images".into(), false);
        }
        let user = |running: bool| self.users.iter().find(|user| user.image == id && user.running == running);
        if let Some(user) = user(true) {
            return refuse("cannot be forced", format!("image is being used by running container {}", short(&user.container)), true);
        }
        if look.names && self.store.names_of(id).next().is_some() {
            return refuse("must be forced", "image is referenced in multiple repositories".into(), false);
        }
        if look.stopped
            && let Some(user) = user(false)
        {
            return refuse("must be forced", format!("image is being used by stopped container {}", short(&user.container)), true);
        }
        Ok(())
    }
}

fn image_top(store: &Store, id: Digest) -> Option<Digest> {
    store.get(id).and_then(|image| image.top)
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Whether the client meant the id and not a name.
fn is_id_prefix(id: Digest, name: &str) -> bool {
    let full = id.to_string();
    full.starts_with(name) || full["sha256:".len()..].starts_with(name)
}

/// All names are of one repository, with at most one tag among them. None at all is not single.
fn is_single(names: &[Reference]) -> bool {
    let tags = names.iter().filter(|name| name.digest().is_none()).count();
    match names {
        [] => false,
        [_] => true,
        [first, rest @ ..] => tags <= 1 && rest.iter().all(|name| name.domain() == first.domain() && name.path() == first.path()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::names::Extra;
    use crate::image::scratch::Scratch;
    use crate::image::support::{add_image, diff, open};

    fn user(image: Digest, running: bool) -> User {
        User { container: "0123456789abcdef".into(), image, running, mounts: Vec::new() }
    }

    fn tag(store: &mut Store, name: &str, id: Digest) {
        store.tag(&Reference::parse(name).unwrap().or_latest(), id, 1).unwrap();
    }

    fn records(removal: &Removal) -> Vec<String> {
        removal
            .records
            .iter()
            .map(|record| match record {
                Record::Untagged(name) => format!("-{name}"),
                Record::Deleted(id) => id.clone(),
            })
            .collect()
    }

    #[test]
    fn the_last_name_takes_the_image_along() {
        let scratch = Scratch::new("remove-last");
        let mut store = open(&scratch);
        let id = add_image(&mut store, "a:1", &[diff("a"), diff("b")], Extra::default());
        tag(&mut store, "b", id);
        assert_eq!(records(&remove(&mut store, "b", false, true, &[]).unwrap()), ["-b:latest"]);
        let removal = remove(&mut store, "a:1", false, true, &[]).unwrap();
        let chains = crate::image::digest::chain_ids(&[diff("a"), diff("b")]);
        assert_eq!(records(&removal), ["-a:1".into(), id.to_string(), chains[1].to_string(), chains[0].to_string()]);
        assert_eq!(removal.events, [("untag", id), ("delete", id)]);
        assert_eq!(removal.reclaimed, 20);
        assert_eq!(remove(&mut store, "a:1", false, true, &[]).unwrap_err().message, "No such image: a:1");
    }

    #[test]
    fn conflicts_have_the_references_words() {
        let scratch = Scratch::new("remove-conflicts");
        let mut store = open(&scratch);
        let id = add_image(&mut store, "a", &[diff("a")], Extra::default());
        let short = id.short();
        let words = |result: Result<Removal>| result.unwrap_err().message;
        let stopped = [user(id, false)];
        assert_eq!(
            words(remove(&mut store, "a", false, true, &stopped)),
            format!(
                "conflict: unable to remove repository reference \"a\" (must force) - container 0123456789ab is using its referenced image {short}"
            )
        );
        assert_eq!(
            words(remove(&mut store, &short, false, true, &stopped)),
            format!("conflict: unable to delete {short} (must be forced) - image is being used by stopped container 0123456789ab")
        );
        assert_eq!(
            words(remove(&mut store, &short, true, true, &[user(id, true)])),
            format!("conflict: unable to delete {short} (cannot be forced) - image is being used by running container 0123456789ab")
        );
        tag(&mut store, "b", id);
        assert_eq!(
            words(remove(&mut store, &short, false, true, &[])),
            format!("conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories")
        );
        // A running container's image loses its name by force, and stays.
        assert_eq!(records(&remove(&mut store, "b", false, true, &[user(id, true)]).unwrap()), ["-b:latest"]);
        assert_eq!(records(&remove(&mut store, "a", true, true, &[user(id, true)]).unwrap()), ["-a:latest"]);
        assert!(store.get(id).is_some());
    }

    #[test]
    fn parents_go_quietly_unless_they_are_named_or_used() {
        let scratch = Scratch::new("remove-parents");
        let mut store = open(&scratch);
        let base = add_image(&mut store, "base", &[diff("a")], Extra::default());
        let middle = add_image(&mut store, "middle", &[diff("a"), diff("b")], Extra { parent: Some(base), ..Extra::default() });
        let top = add_image(&mut store, "top", &[diff("a"), diff("b"), diff("c")], Extra { parent: Some(middle), ..Extra::default() });
        store.untag(&Reference::parse("middle:latest").unwrap());
        assert_eq!(
            remove(&mut store, &middle.short(), true, true, &[]).unwrap_err().message,
            format!("conflict: unable to delete {} (cannot be forced) - image has dependent child images", middle.short())
        );
        remove(&mut store, "top", false, true, &[]).unwrap();
        assert!(store.get(top).is_none() && store.get(middle).is_none() && store.get(base).is_some());
    }

    #[test]
    fn a_repositorys_digests_go_with_its_last_tag() {
        let scratch = Scratch::new("remove-digests");
        let mut store = open(&scratch);
        let id = add_image(&mut store, "a", &[diff("a")], Extra::default());
        let by_digest = Reference::parse("a").unwrap().with_digest(diff("manifest"));
        store.tag(&by_digest, id, 1).unwrap();
        let removal = remove(&mut store, "a", false, true, &[]).unwrap();
        assert_eq!(records(&removal)[..2], ["-a:latest".to_string(), format!("-a@{}", diff("manifest"))]);
        assert!(store.get(id).is_none());
    }
}
