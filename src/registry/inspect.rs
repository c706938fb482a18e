//! `GET /distribution/{name}/json`: what a registry has under a name, without pulling it.

use super::client::{CONFIG_MAX, Client, Login};
use super::endpoint::{Settings, endpoints};
use super::manifest::{Descriptor, Document};
use crate::error::{Error, Result};
use crate::image::config::{self, Platform};
use crate::image::reference::Reference;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Inspected {
    #[serde(rename = "Descriptor")]
    pub descriptor: Descriptor,
    #[serde(rename = "Platforms")]
    pub platforms: Vec<Platform>,
}

/// Asks the registry; mirrors are not asked.
pub fn inspect(settings: &Settings, reference: &Reference, login: &Login) -> Result<Inspected> {
    let mut last = Error::system("no endpoints found");
    for endpoint in endpoints(reference.domain(), settings, false) {
        match Client::connect(settings, &endpoint, reference.path(), "pull", login) {
            Ok(mut client) => return look(&mut client, reference),
            Err(fault) => last = fault.into(),
        }
    }
    Err(last)
}

fn look(client: &mut Client, reference: &Reference) -> Result<Inspected> {
    let by = reference.digest().map_or_else(|| reference.tag().unwrap_or_default().to_owned(), |d| d.to_string());
    let fetched = client.manifest(&by).map_err(|fault| match fault.code.as_str() {
        "MANIFEST_UNKNOWN" | "NAME_UNKNOWN" => Error::not_found(fault.message),
        _ => fault.into(),
    })?;
    let document = Document::parse(&fetched)?;
    let platforms = match &document {
        Document::Index(index) => index.platforms(),
        Document::Manifest(manifest) => {
            let bytes = client.blob_bytes(manifest.config.digest, manifest.config.size, CONFIG_MAX)?;
            let document = config::Document::parse(&bytes).ok();
            document.map(|d| d.platform()).into_iter().filter(|p| !p.architecture.is_empty()).collect()
        }
    };
    let own_type = match &document {
        Document::Manifest(manifest) => manifest.media_type.clone(),
        Document::Index(_) => String::new(),
    };
    let media_type = if own_type.is_empty() { fetched.media_type.clone() } else { own_type };
    let size = fetched.bytes.len() as u64;
    Ok(Inspected { descriptor: Descriptor { media_type, size, digest: fetched.digest, urls: Vec::new(), platform: None }, platforms })
}
