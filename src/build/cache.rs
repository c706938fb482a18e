//! Cache keys: what makes two build steps the same. Only records that the builder itself wrote are ever looked at
//! (an image that was loaded or pulled proves nothing about how it was made), and keys hold contents, not times.

use crate::container::config::Config;
use crate::error::{Error, Result};
use crate::image::digest::{Digest, Sha256};

/// The key of a step: the image before it (`None`: scratch), the configuration after it with the step's command,
/// and what else it depends on (mounted contents, the platform).
pub fn key(parent: Option<Digest>, config: &Config, command: &[String], depends: &[String]) -> Result<Digest> {
    let mut probe = config.clone();
    probe.cmd = Some(command.to_vec());
    // The parent is in the key by its digest already.
    probe.image = String::new();
    let json = serde_json::to_vec(&probe).map_err(|e| Error::system(format!("encode build step: {e}")))?;
    let mut hash = Sha256::new();
    part(&mut hash, b"coracle build step 1");
    part(&mut hash, parent.map(|p| p.to_string()).unwrap_or_default().as_bytes());
    part(&mut hash, &json);
    for depend in depends {
        part(&mut hash, depend.as_bytes());
    }
    Ok(hash.finish())
}

/// Length first, so that no two lists of parts look the same.
fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// The name of copied sources in the step's command: one source's own hash, or the hash of all.
pub fn sources_name(hashes: &[String]) -> String {
    match hashes {
        [one] => one.clone(),
        all => format!("multi:{}", Digest::of(all.join(",").as_bytes()).hex()),
    }
}

/// The hash of a file or directory entry for COPY and ADD: type, mode, owner, link target and contents; never times.
pub fn entry_hash(name: &str, kind: char, mode: u32, owner: (u32, u32), target: &[u8], content: Option<Digest>) -> Digest {
    let mut hash = Sha256::new();
    part(&mut hash, name.as_bytes());
    part(&mut hash, kind.to_string().as_bytes());
    part(&mut hash, format!("{mode:o} {} {}", owner.0, owner.1).as_bytes());
    part(&mut hash, target);
    part(&mut hash, content.map(|c| c.to_string()).unwrap_or_default().as_bytes());
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_change_with_each_part() {
        let config = Config { env: Some(vec!["a=b".into()]), ..Config::default() };
        let command = vec!["sh".to_owned()];
        let base = key(None, &config, &command, &[]).unwrap();
        assert_eq!(base, key(None, &Config { image: "x".into(), cmd: Some(vec!["y".into()]), ..config.clone() }, &command, &[]).unwrap());
        assert_ne!(base, key(Some(Digest::of(b"p")), &config, &command, &[]).unwrap());
        assert_ne!(base, key(None, &Config::default(), &command, &[]).unwrap());
        assert_ne!(base, key(None, &config, &["sh".into(), String::new()], &[]).unwrap());
        assert_ne!(base, key(None, &config, &command, &[String::new()]).unwrap());
    }

    #[test]
    fn several_sources_share_one_name() {
        assert_eq!(sources_name(&["file:ab".into()]), "file:ab");
        assert!(sources_name(&["file:ab".into(), "dir:cd".into()]).starts_with("multi:"));
    }

    #[test]
    fn entries_differ_by_what_matters() {
        let content = Some(Digest::of(b"x"));
        let base = entry_hash("a", 'f', 0o644, (0, 0), b"", content);
        assert_ne!(base, entry_hash("a", 'f', 0o755, (0, 0), b"", content));
        assert_ne!(base, entry_hash("b", 'f', 0o644, (0, 0), b"", content));
        assert_ne!(base, entry_hash("a", 'f', 0o644, (0, 0), b"", None));
    }
}
