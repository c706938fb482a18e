//! `.dockerignore`: Docker's pattern rules, with `**` across directories and `!` to take a match back.

use super::glob::Glob;
use crate::error::{Error, Result};

/// An ordered list of patterns; the last one that speaks about a path decides.
#[derive(Debug, Default)]
pub struct Ignore(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    keep: bool,
    how: How,
}

#[derive(Debug)]
enum How {
    Exact(String),
    /// `dir/**`
    Prefix(String),
    /// `**/name`, `**.ext`
    Suffix(String),
    Glob(Glob),
}

impl Ignore {
    /// Reads the file's text: one pattern a line, `#` begins a comment line.
    pub fn read(text: &str) -> Result<Ignore> {
        Ignore::new(text.strip_prefix('\u{feff}').unwrap_or(text).lines().filter_map(line).collect::<Vec<_>>().iter().map(String::as_str))
    }

    /// Takes patterns as they are (`COPY --exclude`).
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Ignore> {
        let mut rules = Vec::new();
        for pattern in patterns {
            let pattern = clean(pattern.trim());
            if pattern.is_empty() {
                continue;
            }
            let (keep, pattern) = match pattern.strip_prefix('!') {
                Some("") => return Err(Error::invalid("illegal exclusion pattern: \"!\"")),
                Some(rest) => (true, rest.to_owned()),
                None => (false, pattern),
            };
            rules.push(Rule { keep, how: how(&pattern)? });
        }
        Ok(Ignore(rules))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a slash-separated relative path, or a directory above it, is ignored.
    pub fn matches(&self, path: &str) -> bool {
        let mut ignored = false;
        for rule in &self.0 {
            // A rule that could only repeat what holds already need not be asked.
            if rule.keep == ignored && (rule.matches(path) || parents(path).any(|parent| rule.matches(parent))) {
                ignored = !rule.keep;
            }
        }
        ignored
    }
}

impl Rule {
    fn matches(&self, path: &str) -> bool {
        match &self.how {
            How::Exact(whole) => path == whole,
            How::Prefix(prefix) => path.starts_with(prefix.as_str()),
            How::Suffix(suffix) => path.ends_with(suffix.as_str()) || suffix.strip_prefix('/').is_some_and(|name| path == name),
            How::Glob(glob) => glob.matches(path),
        }
    }
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| path.get(..at).unwrap_or_default())
}

/// One line as a pattern relative to the context's root.
fn line(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let line = line.trim();
    let (sign, pattern) = match line.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", line),
    };
    if line.is_empty() {
        return None;
    }
    let pattern = if pattern.is_empty() { String::new() } else { clean(pattern) };
    let pattern = match pattern.strip_prefix('/') {
        Some(rest) if !rest.is_empty() => rest,
        _ => &pattern,
    };
    Some(format!("{sign}{pattern}"))
}

fn how(pattern: &str) -> Result<How> {
    let glob = Glob::deep(pattern).map_err(|e| Error::invalid(e.to_string()))?;
    let special = |text: &str| text.contains(['*', '?', '[', ']', '\\']);
    if !special(pattern) {
        return Ok(How::Exact(pattern.into()));
    }
    if let Some(suffix) = pattern.strip_prefix("**").filter(|rest| !special(rest)) {
        return Ok(How::Suffix(suffix.into()));
    }
    if let Some(prefix) = pattern.strip_suffix("**").filter(|rest| !special(rest)) {
        return Ok(How::Prefix(prefix.into()));
    }
    Ok(How::Glob(glob))
}

/// Go's `filepath.Clean`: no `.`, no double slash, `..` taken out; empty stays empty here.
pub fn clean(path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".into(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_decide_in_order() {
        for (text, path, ignored) in [
            ("*.md", "a.md", true),
            ("*.md", "d/a.md", false),
            ("**/*.md", "d/e/a.md", true),
            ("**/*.md", "a.md", true),
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("!README.md\n*.md", "README.md", true),
            ("node_modules", "node_modules/x/y", true),
            ("node_modules", "a/node_modules/x", false),
            ("**/node_modules", "a/node_modules/x", true),
            ("**/node_modules", "node_modules", true),
            ("dir/**", "dir/a/b", true),
            ("dir/**", "dir", false),
            ("a/**/b", "a/x/b/c", true),
            ("/foo", "foo", true),
            ("./foo/", "foo", true),
            ("foo/../bar", "bar", true),
            ("# comment\n\n  spaced  ", "spaced", true),
            (" # no comment", "# no comment", true),
            ("*", "any", true),
            ("*\n!src\n!src/**", "src/a", false),
            ("*/temp*", "some/temporary.txt", true),
            ("temp?", "tempa", true),
            ("[a-c].txt", "b.txt", true),
            ("\\!real", "!real", true),
            ("**", "deep/down", true),
            ("\u{feff}bom", "bom", true),
        ] {
            assert_eq!(Ignore::read(text).unwrap().matches(path), ignored, "{text:?} {path}");
        }
    }

    #[test]
    fn bad_patterns_are_errors() {
        assert_eq!(Ignore::read("!").unwrap_err().message, "illegal exclusion pattern: \"!\"");
        assert_eq!(Ignore::read("[").unwrap_err().message, "syntax error in pattern");
    }

    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (path, cleaned) in
            [("", ""), (".", "."), ("a//b/./c", "a/b/c"), ("a/../..", ".."), ("/../a", "/a"), ("/", "/"), ("a/b/", "a/b"), ("../a", "../a")]
        {
            assert_eq!(clean(path), cleaned);
        }
    }
}
