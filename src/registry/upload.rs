//! Sending blobs and manifests: existence checks, mounts from other repositories, uploads in one stream.

use super::client::Client;
use super::fault::{Fault, Result};
use super::manifest::Descriptor;
use super::transport::{Answer, Exchange, Payload, join};
use crate::image::digest::{Digest, Sha256};
use std::io::{self, Read};

/// How a blob got to the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// It was there.
    Existed,
    /// The registry took it from this repository of its own.
    Mounted(String),
    Uploaded,
}

/// An upload that the registry has opened.
pub struct Upload {
    location: String,
}

impl Client {
    /// Asks for an upload; with `from`, offers the registry to take the blob from that repository instead.
    pub fn begin_upload(&mut self, mount: Option<(Digest, &str)>) -> Result<std::result::Result<Upload, Arrived>> {
        let query =
            mount.map(|(digest, from)| format!("?mount={}&from={}", super::auth::encode(&digest.to_string()), super::auth::encode(from)));
        let url = self.url(&format!("blobs/uploads/{}", query.unwrap_or_default()));
        let answer = self.send(Exchange::new("POST", &url))?;
        match (answer.status, mount) {
            (201, Some((_, from))) => Ok(Err(Arrived::Mounted(from.into()))),
            (202, _) => Ok(Ok(Upload { location: location(&answer)? })),
            (status, _) => Err(Fault::permanent(format!("received unexpected HTTP status: {status}"))),
        }
    }

    /// Streams a blob of unknown length and closes the upload with the digest found on the way.
    pub fn upload(&mut self, upload: Upload, content: &mut dyn Read) -> Result<(Digest, u64)> {
        let mut hashing = Hashing { inner: content, hash: Sha256::new(), count: 0, failure: None };
        let mut exchange = Exchange::new("PATCH", &upload.location).header("Content-Type", "application/octet-stream");
        exchange.body = Payload::Stream(&mut hashing, None);
        let answer = self.send(exchange);
        if let Some(failure) = hashing.failure {
            return Err(Fault::permanent(failure));
        }
        let (digest, count) = (hashing.hash.finish(), hashing.count);
        let at = location(&answer?)?;
        self.close_upload(&at, digest, Payload::None)?;
        Ok((digest, count))
    }

    /// Sends a small blob whole.
    pub fn upload_bytes(&mut self, bytes: &[u8]) -> Result<Arrived> {
        let digest = Digest::of(bytes);
        if self.has_blob(digest)?.is_some() {
            return Ok(Arrived::Existed);
        }
        match self.begin_upload(None)? {
            Err(arrived) => Ok(arrived),
            Ok(upload) => {
                self.close_upload(&upload.location, digest, Payload::Bytes(bytes))?;
                Ok(Arrived::Uploaded)
            }
        }
    }

    fn close_upload(&mut self, at: &str, digest: Digest, body: Payload) -> Result<()> {
        let separator = if at.contains('?') { '&' } else { '?' };
        let url = format!("{at}{separator}digest={}", super::auth::encode(&digest.to_string()));
        let mut exchange = Exchange::new("PUT", url).header("Content-Type", "application/octet-stream");
        exchange.body = body;
        let answer = self.send(exchange)?;
        match answer.status {
            201 | 204 => Ok(()),
            status => Err(Fault::permanent(format!("received unexpected HTTP status: {status}"))),
        }
    }

    /// Stores a manifest under a tag or its digest.
    pub fn put_manifest(&mut self, by: &str, media_type: &str, bytes: &[u8]) -> Result<Digest> {
        let url = self.url(&format!("manifests/{by}"));
        let mut exchange = Exchange::new("PUT", url).header("Content-Type", media_type);
        exchange.body = Payload::Bytes(bytes);
        self.send(exchange)?;
        Ok(Digest::of(bytes))
    }

    /// A descriptor of a blob that the repository has.
    pub fn describe(&mut self, digest: Digest, media_type: &str) -> Result<Option<Descriptor>> {
        let size = self.has_blob(digest)?;
        Ok(size.map(|size| Descriptor { media_type: media_type.into(), size, digest, urls: Vec::new(), platform: None }))
    }
}

fn location(answer: &Answer) -> Result<String> {
    let location = answer.header("location").ok_or_else(|| Fault::permanent("missing Location header in upload response"))?;
    join(&answer.url, location)
}

/// Hashes and counts what the connection takes; keeps a failure of the content itself apart from the network's.
struct Hashing<'a> {
    inner: &'a mut dyn Read,
    hash: Sha256,
    count: u64,
    failure: Option<String>,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buf) {
            Ok(length) => {
                self.hash.update(buf.get(..length).unwrap_or_default());
                self.count += length as u64;
                Ok(length)
            }
            Err(e) => {
                self.failure = Some(e.to_string());
                Err(e)
            }
        }
    }
}
