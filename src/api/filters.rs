//! Docker's `filters` parameter: `{"name":["a","b"]}`, or the older `{"name":{"a":true}}`.

use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

const MAX_BYTES: usize = 64 * 1024;

/// Parsed filters: each name with its values.
#[derive(Clone, Debug, Default)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    pub fn parse(text: &str) -> Result<Filters> {
        if text.is_empty() {
            return Ok(Filters::default());
        }
        let invalid = || Error::invalid("invalid filter");
        if text.len() > MAX_BYTES {
            return Err(Error::invalid("filters are too large"));
        }
        let value: Value = serde_json::from_str(text).map_err(|_| invalid())?;
        let Value::Object(map) = value else { return Err(invalid()) };
        let mut filters = BTreeMap::new();
        for (name, values) in map {
            let values = match values {
                Value::Array(list) => {
                    list.into_iter().map(|v| v.as_str().map(str::to_string).ok_or_else(invalid)).collect::<Result<Vec<_>>>()?
                }
                Value::Object(set) => {
                    if !set.values().all(Value::is_boolean) {
                        return Err(invalid());
                    }
                    set.into_iter().filter(|(_, on)| on.as_bool() == Some(true)).map(|(v, _)| v).collect()
                }
                Value::Null => Vec::new(),
                _ => return Err(invalid()),
            };
            filters.insert(name, values);
        }
        Ok(Filters(filters))
    }

    /// Refuses names outside `accepted`, in the reference's words.
    pub fn validate(&self, accepted: &[&str]) -> Result<()> {
        match self.0.keys().find(|name| !accepted.contains(&name.as_str())) {
            Some(name) => Err(Error::invalid(format!("invalid filter '{name}'"))),
            None => Ok(()),
        }
    }

    /// One more value, from a parameter that is older than filters.
    pub fn add(&mut self, name: &str, value: &str) {
        self.0.entry(name.to_owned()).or_default().push(value.to_owned());
    }

    pub fn get(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// No filter of this name, or one of its values is exactly `value`.
    pub fn exact(&self, name: &str, value: &str) -> bool {
        let values = self.get(name);
        values.is_empty() || values.iter().any(|v| v == value)
    }

    /// No filter of this name, or `matches` one of its values.
    pub fn any(&self, name: &str, matches: impl FnMut(&String) -> bool) -> bool {
        let values = self.get(name);
        values.is_empty() || values.iter().any(matches)
    }

    /// `label` filters: every `key` or `key=value` must be there.
    pub fn labels(&self, name: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.get(name).iter().all(|want| match (want.split_once('='), labels) {
            (Some((key, value)), Some(labels)) => labels.get(key).is_some_and(|v| v == value),
            (None, Some(labels)) => labels.contains_key(want),
            (_, None) => false,
        })
    }

    /// A single boolean ("true", "1", "false", "0"); `None` when absent.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>> {
        let values = self.get(name);
        let truth = |v: &String| match v.as_str() {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
            _ => None,
        };
        match values {
            [] => Ok(None),
            [one] => truth(one).map(Some).ok_or_else(|| Error::invalid(format!("invalid filter '{name}=[{one}]'"))),
            more => Err(Error::invalid(format!("invalid filter '{name}={more:?}'"))),
        }
    }
}

/// The reference matches names and ids as regular expressions, anywhere in `text`. Of those `^ . * $` and `\\` are understood here,
/// which is what clients send; anything else stands for itself.
pub fn resembles(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    match pattern.split_first() {
        Some(('^', rest)) => matches_here(rest, &text),
        _ => (0..=text.len()).any(|at| matches_here(&pattern, &text[at..])),
    }
}

/// Kernighan's matcher. A pattern is a filter's value (at most 64 KiB) and a text a name: the backtracking stays small.
fn matches_here(pattern: &[char], text: &[char]) -> bool {
    let (literal, one, rest) = match pattern {
        [] => return true,
        ['$'] => return text.is_empty(),
        ['\\', c, rest @ ..] => (true, *c, rest),
        [c, rest @ ..] => (false, *c, rest),
    };
    let fits = |c: &char| *c == one || (one == '.' && !literal);
    if let ['*', rest @ ..] = rest {
        let run = text.iter().take_while(|c| fits(c)).count();
        return (0..=run).rev().any(|n| matches_here(rest, &text[n..]));
    }
    text.first().is_some_and(fits) && matches_here(rest, &text[1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_mean_the_same() {
        let new = Filters::parse(r#"{"label":["a=b"]}"#).unwrap();
        let old = Filters::parse(r#"{"label":{"a=b":true,"c":false}}"#).unwrap();
        assert_eq!(new.get("label"), old.get("label"));
        assert!(Filters::parse("[1]").is_err() && Filters::parse(r#"{"a":1}"#).is_err());
        assert_eq!(Filters::parse(r#"{"x":["1"]}"#).unwrap().validate(&["y"]).unwrap_err().message, "invalid filter 'x'");
    }

    #[test]
    fn names_are_matched_as_patterns() {
        for (pattern, text, wanted) in [
            ("net", "mynet1", true),
            ("^net", "mynet", false),
            ("^mynet$", "mynet", true),
            ("^my.*1$", "mynet1", true),
            ("my\\.net", "my.net", true),
            ("my\\.net", "mynnet", false),
            ("a*b", "b", true),
            ("", "x", true),
        ] {
            assert_eq!(resembles(pattern, text), wanted, "{pattern} {text}");
        }
    }
}
