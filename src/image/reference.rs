//! Image names: Docker's reference grammar, its normalisation, and the short form that people see.
//!
//! The grammar is the one of the distribution project's `reference` package: `[domain/]path[:tag][@digest]`.
//! Matching is by hand, front to back, without backtracking; every refusal has the reference's words.

use super::digest::Digest;
use crate::error::{Error, Result};
use std::fmt;

/// The registry that names without one belong to.
pub const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Longest repository path in bytes, without tag and digest.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A normalised name: domain and path are always there, tag and digest as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// What a client may call an image by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Any {
    /// A full image id: `sha256:` and 64 digits, or the 64 digits alone.
    Id(Digest),
    /// A name; it may still turn out to be a short id.
    Named(Reference),
}

/// Parses what may be a full id or a name (`ParseAnyReference` of the reference).
pub fn parse_any(text: &str) -> Result<Any> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    match Digest::from_hex(digits) {
        Some(id) => Ok(Any::Id(id)),
        None => Reference::parse(text).map(Any::Named),
    }
}

impl Reference {
    /// Parses a familiar name such as `ubuntu`, `me/app:1`, `host:5000/x@sha256:…` (`ParseNormalizedNamed`).
    pub fn parse(text: &str) -> Result<Reference> {
        if Digest::from_hex(text).is_some() {
            return Err(Error::invalid(format!("invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")));
        }
        let (domain, rest) = split_domain(text);
        let path = rest.split_once(':').map_or(&*rest, |(path, _)| path);
        if path.chars().any(char::is_uppercase) {
            return Err(Error::invalid(format!("invalid reference format: repository name ({path}) must be lowercase")));
        }
        let name_ends = rest.find([':', '@']).unwrap_or(rest.len());
        let (path, suffix) = rest.split_at(name_ends);
        let bad = || Error::invalid("invalid reference format");
        if !is_domain(domain) || !path.split('/').all(is_component) {
            return Err(bad());
        }
        if path.len() > NAME_MAX {
            return Err(Error::invalid(format!("repository name must not be more than {NAME_MAX} characters")));
        }
        let (tag, digest) = match suffix.split_once('@') {
            Some((tag, digest)) => (tag, Some(digest)),
            None => (suffix, None),
        };
        let tag = match tag.strip_prefix(':') {
            Some(tag) if is_tag(tag) => Some(tag.to_owned()),
            None if tag.is_empty() => None,
            _ => return Err(bad()),
        };
        let digest = match digest {
            Some(digest) if is_digest_shaped(digest) => Some(digest.parse()?),
            None => None,
            Some(_) => return Err(bad()),
        };
        Ok(Reference { domain: domain.to_owned(), path: path.to_owned(), tag, digest })
    }

    /// `repo` and `tag` query parameters of tag, commit and import; `None` when no repository is given.
    pub fn from_repo_and_tag(repo: &str, tag: &str) -> Result<Option<Reference>> {
        if repo.is_empty() {
            return Ok(None);
        }
        let reference = Reference::parse(repo)?;
        if reference.digest.is_some() {
            return Err(Error::invalid("cannot import digest reference"));
        }
        if tag.is_empty() { Ok(Some(reference.or_latest())) } else { reference.with_tag(tag).map(Some) }
    }

    /// The same repository with another tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Reference> {
        if !is_tag(tag) {
            return Err(Error::invalid("invalid tag format"));
        }
        Ok(Reference { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository by digest, without a tag.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// With the tag `latest` when neither tag nor digest is given (`TagNameOnly`).
    pub fn or_latest(mut self) -> Reference {
        if self.is_name_only() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// Host, and port if there is one, of the registry.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/ubuntu`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Neither tag nor digest.
    pub fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// Domain and path: `docker.io/library/ubuntu`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The name as people write it: `ubuntu`, `me/app`, `quay.io/me/app`.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The familiar name with tag and digest.
    pub fn familiar(&self) -> String {
        self.finished(self.familiar_name())
    }

    /// Whether the shell pattern matches the familiar form or the familiar name (`FamiliarMatch`, Go's `path.Match`).
    pub fn familiar_matches(&self, pattern: &str) -> Result<bool> {
        Ok(glob(pattern, &self.familiar())? || glob(pattern, &self.familiar_name())?)
    }

    fn finished(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

/// The normalised form with everything spelled out.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.finished(self.name()))
    }
}

/// What stands before the first slash is a domain only if it looks like one; else the name is Docker Hub's.
fn split_domain(text: &str) -> (&str, std::borrow::Cow<'_, str>) {
    let Some((first, rest)) = text.split_once('/') else {
        return (DEFAULT_DOMAIN, format!("{OFFICIAL}{text}").into());
    };
    let domain = match first {
        LEGACY_DOMAIN => DEFAULT_DOMAIN,
        host if host == "localhost" || host.contains(['.', ':']) || host.chars().any(char::is_uppercase) => host,
        _ => return (DEFAULT_DOMAIN, text.into()),
    };
    if domain == DEFAULT_DOMAIN && !rest.contains('/') {
        return (domain, format!("{OFFICIAL}{rest}").into());
    }
    (domain, rest.into())
}

/// `host[.host…][:port]` or `[ipv6][:port]`.
fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return false;
            }
            match (port.strip_prefix(':'), port.is_empty()) {
                (_, true) => return true,
                (Some(port), _) => (None, Some(port)),
                _ => return false,
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case letters and digits, with single `.` or `_`, `__`, or any run of `-` between them.
fn is_component(component: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_well = bytes.first().is_some_and(alnum) && bytes.last().is_some_and(alnum);
    ends_well && bytes.split(alnum).all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_MAX && tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// The shape that the grammar calls a digest, before the algorithm is looked at.
fn is_digest_shaped(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, digits)| {
        let part = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric());
        algorithm.split(['-', '_', '+', '.']).all(part) && digits.len() >= 32 && digits.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// Go's `path.Match`: `*` and `?` stop at slashes, `[a-z]` and `[^a-z]`, backslash escapes. A malformed pattern is an error.
///
/// Only the last star is ever resumed, so the time is bounded by the product of both lengths.
pub fn glob(pattern: &str, text: &str) -> Result<bool> {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    check_pattern(&pattern)?;
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p + 1, t));
            p += 1;
            continue;
        }
        if p == pattern.len() && t == text.len() {
            return Ok(true);
        }
        let step = if t < text.len() { one(&pattern[p..], text[t]) } else { None };
        if let Some(used) = step {
            (p, t) = (p + used, t + 1);
            continue;
        }
        match star {
            Some((after, at)) if at < text.len() && text[at] != '/' => {
                star = Some((after, at + 1));
                (p, t) = (after, at + 1);
            }
            _ => return Ok(false),
        }
    }
}

/// Whether the pattern's first element matches `c`, and how many pattern characters it takes.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match *pattern.first()? {
        '?' => (c != '/').then_some(1),
        '\\' => (*pattern.get(1)? == c).then_some(2),
        '[' => {
            let (inside, used) = class(pattern, c)?;
            (inside && c != '/').then_some(used)
        }
        plain => (plain == c).then_some(1),
    }
}

/// A bracket expression at the pattern's start: whether `c` is in it, and its length. `None` when it is malformed.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&'^');
    at += usize::from(negated);
    let mut found = false;
    let mut members = 0;
    loop {
        if pattern.get(at) == Some(&']') && members > 0 {
            return Some((found != negated, at + 1));
        }
        let low = class_char(pattern, &mut at)?;
        let mut high = low;
        if pattern.get(at) == Some(&'-') {
            at += 1;
            high = class_char(pattern, &mut at)?;
        }
        found |= (low..=high).contains(&c);
        members += 1;
    }
}

fn class_char(pattern: &[char], at: &mut usize) -> Option<char> {
    if matches!(pattern.get(*at)?, '-' | ']') {
        return None;
    }
    if pattern[*at] == '\\' {
        *at += 1;
    }
    let c = *pattern.get(*at)?;
    *at += 1;
    Some(c)
}

fn check_pattern(pattern: &[char]) -> Result<()> {
    let bad = || Error::invalid("syntax error in pattern");
    let mut at = 0;
    while let Some(c) = pattern.get(at) {
        at += match c {
            '\\' if at + 1 == pattern.len() => return Err(bad()),
            '\\' => 2,
            '[' => class(&pattern[at..], '\0').ok_or_else(bad)?.1,
            _ => 1,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn normalises_and_shortens() {
        let by_digest = format!("docker.io/library/ubuntu@{D}");
        let table = [
            ("ubuntu", "docker.io/library/ubuntu", "ubuntu"),
            ("ubuntu:22.04", "docker.io/library/ubuntu:22.04", "ubuntu:22.04"),
            ("me/app", "docker.io/me/app", "me/app"),
            ("library/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
            ("docker.io/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
            ("index.docker.io/me/app:1", "docker.io/me/app:1", "me/app:1"),
            ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("localhost/x", "localhost/x", "localhost/x"),
            ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
            ("HOST/x", "HOST/x", "HOST/x"),
            ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
            ("[fd00::1]/x", "[fd00::1]/x", "[fd00::1]/x"),
            ("a.b/c__d/e--f.g_h:T.-_0", "a.b/c__d/e--f.g_h:T.-_0", "a.b/c__d/e--f.g_h:T.-_0"),
            (&format!("ubuntu@{D}"), &by_digest, &format!("ubuntu@{D}")),
            (&format!("ubuntu:1@{D}"), &format!("docker.io/library/ubuntu:1@{D}"), &format!("ubuntu:1@{D}")),
        ];
        for (written, full, familiar) in table {
            let reference = Reference::parse(written).unwrap_or_else(|e| panic!("{written}: {e}"));
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(Reference::parse(full).unwrap(), reference);
        }
    }

    #[test]
    fn refuses_with_the_references_words() {
        let long = "a".repeat(256);
        let format = "invalid reference format";
        let table = [
            ("", format),
            (":tag", format),
            ("a:", format),
            ("a@", format),
            ("a:t:u", format),
            ("-a", format),
            ("a-", format),
            ("a..b", format),
            ("a___b", format),
            ("a._b", format),
            ("a//b", format),
            ("/a", format),
            ("a/", format),
            ("a b", format),
            ("a\n", format),
            ("../etc/passwd", format),
            ("a@sha256:abcd", format),
            ("ho_st.x/a", format),
            ("host:/a", format),
            ("host:5a/a", format),
            ("[::1/a", format),
            ("Ubuntu", "invalid reference format: repository name (library/Ubuntu) must be lowercase"),
            ("a/B:c", "invalid reference format: repository name (a/B) must be lowercase"),
            (&long, "repository name must not be more than 255 characters"),
            (&D[7..], &format!("invalid repository name ({}), cannot specify 64-byte hexadecimal strings", &D[7..])),
            ("a@md5:d41d8cd98f00b204e9800998ecf8427e", "unsupported digest algorithm"),
        ];
        for (written, words) in table {
            assert_eq!(Reference::parse(written).unwrap_err().message, words, "{written}");
        }
        assert!(Reference::parse(&format!("a:{}", "t".repeat(128))).is_ok());
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
    }

    #[test]
    fn full_ids_are_not_names() {
        let id = D.parse().unwrap();
        assert_eq!(parse_any(D).unwrap(), Any::Id(id));
        assert_eq!(parse_any(&D[7..]).unwrap(), Any::Id(id));
        assert!(matches!(parse_any("e3b0c44298fc").unwrap(), Any::Named(_)));
        assert!(matches!(parse_any("sha256:e3b0").unwrap(), Any::Named(_)));
    }

    #[test]
    fn repo_and_tag_parameters() {
        assert_eq!(Reference::from_repo_and_tag("", "x").unwrap(), None);
        assert_eq!(Reference::from_repo_and_tag("a", "").unwrap().unwrap().familiar(), "a:latest");
        assert_eq!(Reference::from_repo_and_tag("a:1", "").unwrap().unwrap().familiar(), "a:1");
        assert_eq!(Reference::from_repo_and_tag("a:1", "2").unwrap().unwrap().familiar(), "a:2");
        assert_eq!(Reference::from_repo_and_tag("a", "-x").unwrap_err().message, "invalid tag format");
        assert_eq!(Reference::from_repo_and_tag(&format!("a@{D}"), "").unwrap_err().message, "cannot import digest reference");
    }

    #[test]
    fn patterns_match_as_gos_path_match() {
        let table = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[b-d]", "abc", true),
            ("ab[^e-g]", "abc", true),
            ("ab[^b-d]", "abc", false),
            ("a\\*b", "a*b", true),
            ("a?b", "a/b", false),
            ("a[^a]b", "a/b", false),
            ("*x", "xxx", true),
            ("", "", true),
            ("", "a", false),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(glob(pattern, text).unwrap(), expected, "{pattern} {text}");
        }
        for pattern in ["[]a]", "[-]", "[x-]", "[a-b-c]", "[", "[^", "[^bc", "a[", "\\"] {
            assert!(glob(pattern, "a").is_err(), "{pattern}");
        }
        let busybox = Reference::parse("busybox:1.36").unwrap();
        assert!(busybox.familiar_matches("busy*").unwrap());
        assert!(busybox.familiar_matches("busybox").unwrap());
        assert!(busybox.familiar_matches("*:1.*").unwrap());
        assert!(!busybox.familiar_matches("alpine").unwrap());
    }
}
