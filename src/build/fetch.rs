//! Files from the web: sources of ADD, and remote contexts.

use crate::error::{Error, Result};
use crate::image::digest::{Digest, HashingReader};
use crate::registry::endpoint::Settings;
use crate::registry::transport::{Answer, Exchange, Transport};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of a downloaded source.
const SIZE_MAX: u64 = 16 << 30;

pub fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// Asks for a URL; anything but success is an error.
pub fn get(settings: &Settings, url: &str) -> Result<Answer> {
    let mut transport = Transport::new(settings.clone());
    let answer = transport.run(Exchange::new("GET", url), false)?;
    if answer.status >= 400 {
        let reason = ureq::http::StatusCode::from_u16(answer.status).ok().and_then(|s| s.canonical_reason()).unwrap_or("");
        return Err(Error::invalid(format!("failed to GET {url} with status {} {reason}: ", answer.status)));
    }
    Ok(answer)
}

/// Downloads into a directory; the file's name there, which is the URL's last part.
pub fn to_file(settings: &Settings, url: &str, dir: &Path, dest: &str, checksum: &str) -> Result<String> {
    let answer = get(settings, url)?;
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let rest = path.split_once("://").map_or(path, |(_, rest)| rest);
    let last = rest.split_once('/').and_then(|(_, path)| path.rsplit('/').next()).unwrap_or_default();
    let named = if matches!(last, "" | "." | "..") { None } else { Some(last.to_owned()) };
    if named.is_none() && dest.ends_with('/') {
        return Err(Error::invalid(format!("ADD failed: cannot determine filename for source {url}")));
    }
    let name = named.unwrap_or_else(|| "__unnamed__".into());
    let failed = |e: io::Error| Error::io(format!("download {url}"), &e);
    let target = dir.join(&name);
    let mut file = File::create_new(&target).map_err(failed)?;
    let mut reader = HashingReader::new(answer.body.into_reader().take(SIZE_MAX));
    io::copy(&mut reader, &mut file).map_err(failed)?;
    let (digest, _) = reader.finish().map_err(failed)?;
    if !checksum.is_empty() && checksum.parse::<Digest>()? != digest {
        return Err(Error::invalid(format!("digest mismatch {digest}: {checksum}")));
    }
    std::fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(failed)?;
    Ok(name)
}
