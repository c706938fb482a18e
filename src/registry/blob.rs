//! A blob as a stream: it resumes where a connection broke, and ends well only when size and digest are what the manifest says.

use super::client::Client;
use super::fault::{Fault, Result};
use super::transport::{Exchange, words};
use crate::image::digest::{Digest, Sha256};
use std::io::{self, Read};
use std::time::Duration;

/// A blob on its way. Reading gives the bytes; the end comes only after size and digest were found right.
pub struct Blob<'a> {
    client: &'a mut Client,
    digest: Digest,
    size: u64,
    at: u64,
    hash: Option<Sha256>,
    body: Option<Box<dyn Read>>,
    failures: u32,
    attempts: u32,
    on_retry: Option<RetryHook<'a>>,
    urls: Vec<String>,
}

/// Called for each second that a retry waits, with the seconds left.
pub type RetryHook<'a> = Box<dyn FnMut(u64) + 'a>;

impl<'a> Blob<'a> {
    pub(super) fn new(client: &'a mut Client, digest: Digest, size: u64) -> Blob<'a> {
        let attempts = client.transport.settings().attempts.max(1);
        let hash = Some(Sha256::new());
        Blob { client, digest, size, at: 0, hash, body: None, failures: 0, attempts, on_retry: None, urls: Vec::new() }
    }

    /// Leaves the digest to the caller, who hashes the bytes anyway.
    pub fn without_digest(mut self) -> Blob<'a> {
        self.hash = None;
        self
    }

    /// Lets the caller tell of waits before a retry.
    pub fn on_retry(mut self, hook: impl FnMut(u64) + 'a) -> Blob<'a> {
        self.on_retry = Some(Box::new(hook));
        self
    }

    /// A foreign layer's own places, tried without credentials before the registry.
    pub fn with_urls(mut self, urls: &[String]) -> Blob<'a> {
        self.urls = urls.iter().filter(|url| url.starts_with("http://") || url.starts_with("https://")).cloned().collect();
        self
    }

    fn open(&mut self) -> Result<Box<dyn Read>> {
        let mut last = None;
        for url in self.urls.clone() {
            match self.request(url, true) {
                Ok(body) => return Ok(body),
                Err(fault) => last = Some(fault),
            }
        }
        let url = self.client.url(&format!("blobs/{}", self.digest));
        self.request(url, false).map_err(|fault| last.unwrap_or(fault))
    }

    fn request(&mut self, url: String, foreign: bool) -> Result<Box<dyn Read>> {
        let mut exchange = Exchange::new("GET", url);
        if self.at > 0 {
            exchange = exchange.header("Range", format!("bytes={}-", self.at));
        }
        let answer = if foreign { self.client.transport.run(exchange, false)? } else { self.client.send(exchange)? };
        if answer.status >= 400 {
            return Err(answer.into_fault());
        }
        let starts = match (answer.status, answer.header("content-range")) {
            (206, Some(range)) => range.trim_start_matches("bytes").trim().split('-').next().and_then(|n| n.trim().parse::<u64>().ok()),
            (206, None) => None,
            _ => Some(0),
        };
        let length = answer.header("content-length").and_then(|l| l.parse::<u64>().ok());
        let Some(starts) = starts.filter(|s| *s == 0 || *s == self.at) else {
            return Err(Fault::permanent(format!("blob {}: unexpected Content-Range", self.digest)));
        };
        if length.is_some_and(|length| length != self.size.saturating_sub(starts)) {
            return Err(Fault::permanent(format!("blob {}: the registry sends another size than the manifest says", self.digest)));
        }
        let mut body = answer.body.into_reader();
        if starts < self.at {
            // No ranges here: what is there already is read past.
            let skipped = io::copy(&mut (&mut body).take(self.at), &mut io::sink()).map_err(|e| Fault::transient(words(&e)))?;
            if skipped != self.at {
                return Err(Fault::transient("unexpected EOF"));
            }
        }
        Ok(Box::new(body))
    }

    /// Counts a failure and waits, or gives up.
    fn failed(&mut self, fault: Fault) -> io::Result<()> {
        self.body = None;
        self.failures += 1;
        if !fault.transient || self.failures >= self.attempts {
            return Err(fault.into_io());
        }
        for left in (1..=u64::from(self.failures) * 5).rev() {
            if let Some(hook) = &mut self.on_retry {
                hook(left);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }

    /// The checks at the end.
    fn verify(&mut self) -> io::Result<()> {
        if let Some(body) = &mut self.body {
            let mut one = [0];
            if body.read(&mut one).unwrap_or(0) > 0 {
                let message = format!("blob {} is longer than the manifest's {} bytes", self.digest, self.size);
                return Err(Fault::permanent(message).into_io());
            }
        }
        let Some(hash) = self.hash.take() else { return Ok(()) };
        if hash.finish() != self.digest {
            return Err(Fault::permanent(format!("filesystem layer verification failed for digest {}", self.digest)).into_io());
        }
        Ok(())
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if self.at == self.size {
                self.verify()?;
                return Ok(0);
            }
            if self.body.is_none() {
                match self.open() {
                    Ok(body) => self.body = Some(body),
                    Err(fault) => {
                        self.failed(fault)?;
                        continue;
                    }
                }
            }
            let want = usize::try_from(self.size - self.at).unwrap_or(usize::MAX).min(buf.len());
            let part = buf.get_mut(..want).unwrap_or_default();
            match self.body.as_mut().map_or(Ok(0), |body| body.read(part)) {
                Ok(0) => self.failed(Fault::transient("unexpected EOF"))?,
                Err(e) => self.failed(Fault::transient(words(&e)))?,
                Ok(length) => {
                    if let (Some(hash), Some(bytes)) = (&mut self.hash, part.get(..length)) {
                        hash.update(bytes);
                    }
                    self.at += length as u64;
                    // Progress pays for earlier failures.
                    self.failures = 0;
                    return Ok(length);
                }
            }
        }
    }
}
