//! Variable expansion and word splitting as the Dockerfile language has them: quotes, the escape character,
//! `$x`, `${x}` and the modifiers `:- - :+ + :? ? # ## % %% / //`. Knows no instruction.

use super::golang::quote;
use super::pattern::{Greed, Pattern};

/// How deep `${a:-${b:-…}}` may nest; a Dockerfile is outside input and this is recursion.
const DEPTH: usize = 64;

/// An expansion: where the values come from, and what is kept as written.
pub struct Expander<'a> {
    pub escape: char,
    /// Quotes stay in the result.
    pub raw_quotes: bool,
    /// Escape characters stay in the result.
    pub raw_escapes: bool,
    /// An unset variable stays as it is written.
    pub keep_unset: bool,
    pub lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Expander<'a> {
    pub fn new(escape: char, lookup: &'a dyn Fn(&str) -> Option<String>) -> Expander<'a> {
        Expander { escape, raw_quotes: false, raw_escapes: false, keep_unset: false, lookup }
    }

    /// Expands one word; blanks stay.
    pub fn word(&self, text: &str) -> Result<String, String> {
        Ok(self.run(text)?.result)
    }

    /// Expands, then splits at unquoted blanks.
    pub fn words(&self, text: &str) -> Result<Vec<String>, String> {
        let mut out = self.run(text)?;
        out.end_word();
        Ok(out.words)
    }

    fn run(&self, text: &str) -> Result<Output, String> {
        let mut scan = Scan { chars: text.chars().collect(), at: 0, by: self, raw_escapes: self.raw_escapes, depth: 0 };
        scan.until(None).map_err(|e| format!("failed to process {}: {e}", quote(text)))
    }
}

/// The result as one string, and as words.
#[derive(Default)]
struct Output {
    result: String,
    words: Vec<String>,
    word: String,
}

impl Output {
    /// A character that may end a word.
    fn plain(&mut self, c: char) {
        self.result.push(c);
        if c.is_whitespace() { self.end_word() } else { self.word.push(c) }
    }

    /// A quoted or escaped text: part of the word whatever it holds.
    fn quoted(&mut self, text: &str) {
        self.result.push_str(text);
        self.word.push_str(text);
    }

    fn end_word(&mut self) {
        if !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
        }
    }
}

struct Scan<'a> {
    chars: Vec<char>,
    at: usize,
    by: &'a Expander<'a>,
    raw_escapes: bool,
    depth: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    /// Up to the unquoted `stop` (consumed), or to the end.
    fn until(&mut self, stop: Option<char>) -> Result<Output, String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err("substitutions are nested too deeply".into());
        }
        let mut out = Output::default();
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.at += 1;
                self.depth -= 1;
                return Ok(out);
            }
            match c {
                '\'' => out.quoted(&self.single_quoted()?),
                '"' => out.quoted(&self.double_quoted()?),
                '$' => self.dollar()?.chars().for_each(|c| out.plain(c)),
                _ if c == self.by.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        out.quoted(&c.to_string());
                    }
                    if let Some(escaped) = self.next() {
                        out.quoted(&escaped.to_string());
                    }
                }
                _ => {
                    self.at += 1;
                    out.plain(c);
                }
            }
        }
        self.depth -= 1;
        match stop {
            Some(stop) => Err(format!("unexpected end of statement while looking for matching {stop}")),
            None => Ok(out),
        }
    }

    /// Everything up to the next single quote, as it is.
    fn single_quoted(&mut self) -> Result<String, String> {
        self.at += 1;
        let rest = self.chars.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|c| *c == '\'');
        let Some(end) = end else {
            self.at = self.chars.len();
            return Err("unexpected end of statement while looking for matching single-quote".into());
        };
        let text: String = rest.iter().take(end).collect();
        self.at += end + 1;
        Ok(if self.by.raw_quotes { format!("'{text}'") } else { text })
    }

    /// Up to the next double quote; `$` expands, and the escape character works on `" $` and itself only.
    fn double_quoted(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut text = String::new();
        if self.by.raw_quotes {
            text.push('"');
        }
        loop {
            match self.peek() {
                None => return Err("unexpected end of statement while looking for matching double-quote".into()),
                Some('"') => {
                    self.at += 1;
                    if self.by.raw_quotes {
                        text.push('"');
                    }
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.dollar()?),
                Some(c) => {
                    self.at += 1;
                    if c != self.by.escape {
                        text.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        text.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(special) if special == '"' || special == '$' || special == self.by.escape => {
                            self.at += 1;
                            text.push(special);
                        }
                        Some(_) => text.push(c),
                    }
                }
            }
        }
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".into());
            }
            return Ok(match (self.by.lookup)(&name) {
                Some(value) => value,
                None if self.by.keep_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err("syntax error: missing '}'".into()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".into()),
            Some(_) => {}
        }
        let name = self.name();
        let value = (self.by.lookup)(&name);
        match self.next() {
            Some('}') => Ok(match value {
                Some(value) => value,
                None if self.by.keep_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            Some(':') => {
                let modifier = self.next();
                self.modified(&name, value, modifier, true)
            }
            Some(modifier @ ('+' | '-' | '?' | '#' | '%')) => self.modified(&name, value, Some(modifier), false),
            Some('/') => self.replaced(&name, value),
            Some(other) => Err(format!("unsupported modifier ({other}) in substitution")),
            None => Err("syntax error: missing '}'".into()),
        }
    }

    /// `${name<modifier>word}`; with a colon an empty value counts as unset.
    fn modified(&mut self, name: &str, value: Option<String>, modifier: Option<char>, colon: bool) -> Result<String, String> {
        let spelled = format!("{}{}", if colon { ":" } else { "" }, modifier.map(String::from).unwrap_or_default());
        let word = self.part('}', matches!(modifier, Some('#' | '%')), "syntax error: missing '}'")?;
        if value.is_none() && self.by.keep_unset {
            return Ok(format!("${{{name}{spelled}{word}}}"));
        }
        let present = value.clone().filter(|v| !(colon && v.is_empty()));
        match modifier {
            Some('-') => Ok(present.unwrap_or(word)),
            Some('+') => Ok(if present.is_some() { word } else { String::new() }),
            Some('?') => present.ok_or_else(|| {
                let state = if value.is_none() { "is not allowed to be unset" } else { "is not allowed to be empty" };
                format!("{name}: {}", if word.is_empty() { state } else { &word })
            }),
            Some(side @ ('#' | '%')) => {
                let value = value.unwrap_or_default();
                let (greed, text) = match word.strip_prefix(side) {
                    Some(rest) => (Greed::Longest, rest),
                    None => (Greed::Shortest, word.as_str()),
                };
                let pattern = Pattern::parse(text).map_err(|e| format!("invalid pattern ({text}) in substitution: {e}"))?;
                Ok(if side == '#' { pattern.trim_start(&value, greed) } else { pattern.trim_end(&value, greed) })
            }
            _ => Err(format!("unsupported modifier ({spelled}) in substitution")),
        }
    }

    /// `${name/pattern/replacement}`, or `//` for every match.
    fn replaced(&mut self, name: &str, value: Option<String>) -> Result<String, String> {
        let all = self.peek() == Some('/');
        self.at += usize::from(all);
        let text = self.part('/', true, "syntax error: missing '/' in ${}")?;
        let replacement = self.part('}', true, "syntax error: missing '}'")?;
        if value.is_none() && self.by.keep_unset {
            return Ok(format!("${{{name}/{text}/{replacement}}}"));
        }
        let pattern = Pattern::parse(&text).map_err(|e| format!("invalid pattern ({text}) in substitution: {e}"))?;
        Ok(pattern.replace(&value.unwrap_or_default(), &replacement, all))
    }

    /// A part of a substitution; `missing` is the error when its end never comes.
    fn part(&mut self, stop: char, raw_escapes: bool, missing: &str) -> Result<String, String> {
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes || self.by.raw_escapes);
        let out = self.until(Some(stop));
        self.raw_escapes = outer;
        match out {
            Ok(out) => Ok(out.result),
            Err(_) if self.peek().is_none() => Err(missing.into()),
            Err(e) => Err(e),
        }
    }

    /// A variable's name: letters, digits, `_`; or digits only; or one special character.
    fn name(&mut self) -> String {
        let Some(first) = self.peek() else { return String::new() };
        if "@*#?-$!".contains(first) {
            self.at += 1;
            return first.into();
        }
        let digits_only = first.is_numeric();
        let mut name = String::new();
        while let Some(c) = self.peek() {
            let part = if digits_only { c.is_numeric() } else { c.is_alphanumeric() || c == '_' };
            if !part {
                break;
            }
            name.push(c);
            self.at += 1;
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        let value = match name {
            "x" => "hello",
            "empty" => "",
            "file" => "archive.tar.gz",
            "path" => "/usr/local/bin",
            "list" => "a b  c",
            "star" => "a*b",
            _ => return None,
        };
        Some(value.into())
    }

    fn word(text: &str) -> Result<String, String> {
        Expander::new('\\', &env).word(text)
    }

    #[test]
    fn every_form_expands() {
        for (text, expected) in [
            ("$x", "hello"),
            ("${x}", "hello"),
            ("$x.y", "hello.y"),
            ("$xy", ""),
            ("\\$x", "$x"),
            ("'$x'", "$x"),
            ("\"$x\"", "hello"),
            ("\"\\$x\"", "$x"),
            ("\"a\\b\"", "a\\b"),
            ("a\\ b", "a b"),
            ("$", "$"),
            ("a$ b", "a$ b"),
            ("${none:-dflt}", "dflt"),
            ("${none-dflt}", "dflt"),
            ("${empty:-dflt}", "dflt"),
            ("${empty-dflt}", ""),
            ("${x:+alt}", "alt"),
            ("${empty:+alt}", ""),
            ("${empty+alt}", "alt"),
            ("${none+alt}", ""),
            ("${none:-${x}}", "hello"),
            ("${none:-a}b}", "ab}"),
            ("${x:?}", "hello"),
            ("${file#*.}", "tar.gz"),
            ("${file##*.}", "gz"),
            ("${file%.*}", "archive.tar"),
            ("${file%%.*}", "archive"),
            ("${file#none}", "archive.tar.gz"),
            ("${file#arch?ve}", ".tar.gz"),
            ("${path/local\\/bin/x}", "/usr/x"),
            ("${path//\\//:}", ":usr:local:bin"),
            ("${x/l/L}", "heLlo"),
            ("${x//l/L}", "heLLo"),
            ("${star/\\*/-}", "a-b"),
            ("${none#a}", ""),
            ("$1a", "a"),
            ("tail\\", "tail"),
        ] {
            assert_eq!(word(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn errors_name_the_text() {
        for (text, message) in [
            ("'abc", "failed to process \"'abc\": unexpected end of statement while looking for matching single-quote"),
            ("\"abc", "failed to process \"\\\"abc\": unexpected end of statement while looking for matching double-quote"),
            ("${x", "failed to process \"${x\": syntax error: missing '}'"),
            ("${}", "failed to process \"${}\": syntax error: bad substitution"),
            ("${x:-a", "failed to process \"${x:-a\": syntax error: missing '}'"),
            ("${x:=a}", "failed to process \"${x:=a}\": unsupported modifier (:=) in substitution"),
            ("${x^}", "failed to process \"${x^}\": unsupported modifier (^) in substitution"),
            ("${none:?}", "failed to process \"${none:?}\": none: is not allowed to be unset"),
            ("${empty:?}", "failed to process \"${empty:?}\": empty: is not allowed to be empty"),
            ("${none?set it}", "failed to process \"${none?set it}\": none: set it"),
            ("${x/a}", "failed to process \"${x/a}\": syntax error: missing '/' in ${}"),
        ] {
            assert_eq!(word(text).unwrap_err(), message);
        }
        assert!(word(&"${a:-".repeat(5000)).is_err());
    }

    #[test]
    fn words_split_after_expansion_but_not_in_quotes() {
        let words = |text| Expander::new('\\', &env).words(text).unwrap();
        assert_eq!(words("$list d"), ["a", "b", "c", "d"]);
        assert_eq!(words("\"$list\" d"), ["a b  c", "d"]);
        assert_eq!(words("a\\ b"), ["a b"]);
        assert!(words("$none ").is_empty());
    }

    #[test]
    fn the_escape_character_can_be_another() {
        assert_eq!(Expander::new('`', &env).word("`$x \\a").unwrap(), "$x \\a");
    }

    #[test]
    fn unset_variables_can_stay() {
        let keep = Expander { keep_unset: true, raw_quotes: true, raw_escapes: true, ..Expander::new('\\', &env) };
        assert_eq!(keep.word("$none ${none} ${none:-a} \"$x\" \\a").unwrap(), "$none ${none} ${none:-a} \"hello\" \\a");
    }
}
