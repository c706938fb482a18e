//! All containers: by id, by name, by unique prefix.

use super::record::{Container, Id};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// The table. Ids are ordered, so that a prefix is found by range.
#[derive(Default)]
pub struct Containers {
    by_id: BTreeMap<Id, Container>,
    names: HashMap<String, Id>,
}

impl Containers {
    /// Docker's order: full id, exact name, unique prefix of an id.
    pub fn resolve(&self, reference: &str) -> Result<Id> {
        if reference.is_empty() {
            return Err(Error::invalid("Container name or ID cannot be empty"));
        }
        if let Some((id, _)) = self.by_id.get_key_value(reference) {
            return Ok(id.clone());
        }
        let name = reference.strip_prefix('/').unwrap_or(reference);
        if let Some(id) = self.names.get(name) {
            return Ok(id.clone());
        }
        if crate::hex::is_id_prefix(reference) {
            let start: Rc<str> = Rc::from(reference);
            let mut found = self.by_id.range(start..).take_while(|(id, _)| id.starts_with(reference));
            if let Some((id, _)) = found.next() {
                if found.next().is_some() {
                    return Err(Error::invalid(format!("Multiple IDs found with provided prefix: {reference}")));
                }
                return Ok(id.clone());
            }
        }
        Err(Error::not_found(format!("No such container: {reference}")))
    }

    pub fn get(&self, id: &str) -> Option<&Container> {
        self.by_id.get(id)
    }

    pub fn get_mut(&mut self, id: &str) -> Option<&mut Container> {
        self.by_id.get_mut(id)
    }

    /// The container, or "No such container".
    pub fn find(&self, id: &str) -> Result<&Container> {
        self.get(id).ok_or_else(|| Error::not_found(format!("No such container: {id}")))
    }

    /// As [`Containers::find`], to change it.
    pub fn find_mut(&mut self, id: &str) -> Result<&mut Container> {
        self.by_id.get_mut(id).ok_or_else(|| Error::not_found(format!("No such container: {id}")))
    }

    /// Who has a name; without the slash.
    pub fn holder(&self, name: &str) -> Option<&Id> {
        self.names.get(name)
    }

    /// Keeps a name for a container that is being made, or fails with the holder's id.
    pub fn reserve(&mut self, name: &str, id: &Id) -> Result<()> {
        match self.names.get(name) {
            Some(holder) if holder != id => Err(Error::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". \
                 You have to remove (or rename) that container to be able to reuse that name."
            ))),
            _ => {
                self.names.insert(name.to_string(), id.clone());
                Ok(())
            }
        }
    }

    /// Gives a name back.
    pub fn release(&mut self, name: &str, id: &str) {
        if self.names.get(name).is_some_and(|holder| **holder == *id) {
            self.names.remove(name);
        }
    }

    pub fn insert(&mut self, container: Container) {
        let id = container.id();
        self.names.insert(container.record.name.clone(), id.clone());
        self.by_id.insert(id, container);
    }

    pub fn remove(&mut self, id: &str) -> Option<Container> {
        let container = self.by_id.remove(id)?;
        self.release(&container.record.name, id);
        Some(container)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Container> {
        self.by_id.values()
    }

    pub fn ids(&self) -> Vec<Id> {
        self.by_id.keys().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}
