//! The shell patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*`, `?` and plain characters; no brackets.

/// Whether a pattern takes as little or as much as it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greed {
    Shortest,
    Longest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Plain(char),
    One,
    Many,
}

#[derive(Debug)]
pub struct Pattern(Vec<Token>);

impl Pattern {
    /// Reads a pattern; a backslash makes `* ? \ } /` plain, before anything else it is an error.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Many,
                '?' => Token::One,
                '\\' => match chars.next() {
                    Some(plain @ ('*' | '?' | '\\' | '}' | '/')) => Token::Plain(plain),
                    Some(other) => return Err(format!("invalid escape '\\{other}'")),
                    None => return Err("invalid escape '\\'".into()),
                },
                plain => Token::Plain(plain),
            });
        }
        tokens.dedup_by(|a, b| *a == Token::Many && *b == Token::Many);
        Ok(Pattern(tokens))
    }

    pub fn trim_start(&self, value: &str, greed: Greed) -> String {
        let chars: Vec<char> = value.chars().collect();
        let end = pick(&ends(&self.0, &chars), greed);
        chars.iter().skip(end.unwrap_or(0)).collect()
    }

    pub fn trim_end(&self, value: &str, greed: Greed) -> String {
        let reversed: Vec<char> = value.chars().rev().collect();
        let tokens: Vec<Token> = self.0.iter().rev().copied().collect();
        let length = pick(&ends(&tokens, &reversed), greed).unwrap_or(0);
        value.chars().take(reversed.len() - length).collect()
    }

    /// Replaces the first match from the left, or all; a match is as long as possible.
    pub fn replace(&self, value: &str, replacement: &str, all: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        let mut out = String::new();
        let mut at = 0;
        while at < chars.len() {
            let rest = chars.get(at..).unwrap_or_default();
            match pick(&ends(&self.0, rest), Greed::Longest) {
                Some(length) if length > 0 => {
                    out.push_str(replacement);
                    at += length;
                    if !all {
                        break;
                    }
                }
                _ => {
                    out.extend(rest.first());
                    at += 1;
                }
            }
        }
        out.extend(chars.get(at..).unwrap_or_default());
        out
    }
}

fn pick(ends: &[bool], greed: Greed) -> Option<usize> {
    match greed {
        Greed::Shortest => ends.iter().position(|e| *e),
        Greed::Longest => ends.iter().rposition(|e| *e),
    }
}

/// Where a match that starts at 0 may end: one pass per token over all positions, so no pattern backtracks.
fn ends(tokens: &[Token], chars: &[char]) -> Vec<bool> {
    let mut reach = vec![false; chars.len() + 1];
    reach[0] = true;
    for token in tokens {
        let mut next = vec![false; chars.len() + 1];
        let mut many = false;
        for at in 0..=chars.len() {
            match token {
                Token::Many => {
                    many |= reach[at];
                    next[at] = many;
                }
                Token::One => next[at] = at > 0 && reach[at - 1],
                Token::Plain(c) => next[at] = at > 0 && reach[at - 1] && chars[at - 1] == *c,
            }
        }
        reach = next;
    }
    reach
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims_and_replaces() {
        let p = |text| Pattern::parse(text).unwrap();
        assert_eq!(p("*/").trim_start("a/b/c", Greed::Shortest), "b/c");
        assert_eq!(p("*/").trim_start("a/b/c", Greed::Longest), "c");
        assert_eq!(p("/*").trim_end("a/b/c", Greed::Shortest), "a/b");
        assert_eq!(p("/*").trim_end("a/b/c", Greed::Longest), "a");
        assert_eq!(p("?").replace("ab", "x", true), "xx");
        assert_eq!(p("*").replace("ab", "x", true), "x");
        assert_eq!(p("").replace("ab", "x", true), "ab");
        assert_eq!(Pattern::parse("\\a").unwrap_err(), "invalid escape '\\a'");
    }

    #[test]
    fn many_stars_stay_cheap() {
        let pattern = Pattern::parse(&"*a".repeat(50)).unwrap();
        assert_eq!(pattern.trim_start(&"b".repeat(2000), Greed::Longest).len(), 2000);
    }
}
