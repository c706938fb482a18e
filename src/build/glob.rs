//! File name patterns: Go's `filepath.Match` (`* ? [a-z] \c`), and with `**` those of `.dockerignore`.
//!
//! Matching walks all positions at once, so that no pattern can make it backtrack.

/// The pattern cannot be read; Go's `filepath.ErrBadPattern`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPattern;

impl std::fmt::Display for BadPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("syntax error in pattern")
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Plain(char),
    /// `?`: one character but a slash.
    One,
    /// `*`: any number of characters but slashes.
    Many,
    /// `**/` inside a pattern: nothing, or anything up to a slash.
    Deep,
    /// `**` at the end: anything.
    All,
    /// `[a-z]`, `[^a-z]`.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

#[derive(Debug)]
pub struct Glob(Vec<Token>);

impl Glob {
    /// A `filepath.Match` pattern.
    pub fn file(text: &str) -> Result<Glob, BadPattern> {
        parse(text, false)
    }

    /// As [`Glob::file`], with `**` crossing directories.
    pub fn deep(text: &str) -> Result<Glob, BadPattern> {
        parse(text, true)
    }

    /// Whether the whole of `path` matches.
    pub fn matches(&self, path: &str) -> bool {
        let chars: Vec<char> = path.chars().collect();
        let mut reach = vec![false; chars.len() + 1];
        reach[0] = true;
        for token in &self.0 {
            let mut next = vec![false; chars.len() + 1];
            let mut running = false;
            for at in 0..=chars.len() {
                let before = at.checked_sub(1).and_then(|i| Some((*reach.get(i)?, *chars.get(i)?)));
                next[at] = match token {
                    Token::Plain(c) => before.is_some_and(|(ok, b)| ok && b == *c),
                    Token::One => before.is_some_and(|(ok, b)| ok && b != '/'),
                    Token::Class { negated, ranges } => {
                        before.is_some_and(|(ok, b)| ok && ranges.iter().any(|(low, high)| (*low..=*high).contains(&b)) != *negated)
                    }
                    Token::Many => {
                        running = reach[at] || running && before.is_some_and(|(_, b)| b != '/');
                        running
                    }
                    Token::Deep => {
                        let ended_in_slash = running && before.is_some_and(|(_, b)| b == '/');
                        running |= reach[at];
                        reach[at] || ended_in_slash
                    }
                    Token::All => {
                        running |= reach[at];
                        running
                    }
                };
            }
            reach = next;
        }
        reach.last() == Some(&true)
    }
}

fn parse(text: &str, deep: bool) -> Result<Glob, BadPattern> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' if deep && chars.peek() == Some(&'*') => {
                chars.next();
                if chars.peek() == Some(&'/') {
                    chars.next();
                }
                if chars.peek().is_none() { Token::All } else { Token::Deep }
            }
            '*' => Token::Many,
            '?' => Token::One,
            '\\' => Token::Plain(chars.next().ok_or(BadPattern)?),
            '[' => class(&mut chars)?,
            plain => Token::Plain(plain),
        });
    }
    Ok(Glob(tokens))
}

/// The rest of `[…]`; a `]` or `-` that is meant needs a backslash.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, BadPattern> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Ok(Token::Class { negated, ranges });
        }
        let low = member(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { member(chars)? } else { low };
        ranges.push((low, high));
    }
}

fn member(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, BadPattern> {
    match chars.next() {
        Some('\\') => chars.next().ok_or(BadPattern),
        None | Some('-' | ']') => Err(BadPattern),
        Some(plain) => Ok(plain),
    }
}

/// Whether a COPY source holds a wildcard (an escaped one does not count).
pub fn has_wildcards(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_patterns() {
        for (pattern, path, expected) in [
            ("*.go", "a.go", true),
            ("*.go", "d/a.go", false),
            ("d/*", "d/a", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a*b*c", "aXbYc", true),
            ("a**c", "a/c", false),
            ("", "", true),
        ] {
            assert_eq!(Glob::file(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
        for bad in ["[", "[a", "[]", "[-a]", "a\\", "[a-]"] {
            assert_eq!(Glob::file(bad).unwrap_err(), BadPattern, "{bad}");
        }
    }

    #[test]
    fn deep_patterns() {
        for (pattern, path, expected) in [
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/xb", false),
            ("a/**", "a/x/y", true),
            ("**/*.go", "x/y.go", true),
            ("**/*.go", "y.go", true),
            ("**", "anything/at/all", true),
        ] {
            assert_eq!(Glob::deep(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn escaped_wildcards_are_none() {
        assert!(has_wildcards("a*"));
        assert!(!has_wildcards("a\\*\\["));
    }
}
