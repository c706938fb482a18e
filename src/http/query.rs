//! Query strings, decoded as Go's net/url decodes them.

use super::Refusal;

/// A decoded query; the first of several equal names counts, as with Go's FormValue.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses what follows `?`. A broken percent escape or a semicolon is refused, as Go's ParseForm refuses them.
    pub fn parse(text: &str) -> Result<Query, Refusal> {
        let mut pairs = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            if part.contains(';') {
                return Err(Refusal::bad("invalid semicolon separator in query"));
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            pairs.push((decode(name, true)?, decode(value, true)?));
        }
        Ok(Query(pairs))
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// As [`Query::text`], with "" for absent.
    pub fn get(&self, name: &str) -> &str {
        self.text(name).unwrap_or_default()
    }

    /// Every value of a repeated name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Docker's boolean: "", "0", "no", "false" and "none" are false, everything else is true.
    pub fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    /// As [`Query::flag`], with a default for an absent name (an empty value is false).
    pub fn flag_or(&self, name: &str, default: bool) -> bool {
        match self.text(name) {
            None => default,
            Some(text) => !matches!(text.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none"),
        }
    }

    /// An integer; `None` when absent or empty.
    pub fn int(&self, name: &str) -> crate::error::Result<Option<i64>> {
        match self.text(name) {
            None | Some("") => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| crate::error::Error::invalid(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        }
    }
}

/// Percent-decodes; in queries `+` is a space. The result must be UTF-8.
pub fn decode(text: &str, plus_is_space: bool) -> Result<String, Refusal> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'%' => {
                let hex = bytes.get(i + 1..i + 3).filter(|h| h.iter().all(u8::is_ascii_hexdigit)).and_then(|h| str::from_utf8(h).ok());
                let byte = hex.and_then(|h| u8::from_str_radix(h, 16).ok());
                out.push(byte.ok_or_else(|| Refusal::bad(format!("invalid URL escape {:?}", text.get(i..i + 3).unwrap_or("%"))))?);
                i += 3;
            }
            b'+' if plus_is_space => {
                out.push(b' ');
                i += 1;
            }
            byte => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8(out).map_err(|_| Refusal::bad("request target is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_names_and_values() {
        let query = Query::parse("a=1&b=x%20y+z&c&a=2").unwrap();
        assert_eq!((query.get("a"), query.get("b"), query.text("c"), query.text("d")), ("1", "x y z", Some(""), None));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert!(query.flag("a") && !query.flag("c") && !query.flag("d"));
        for bad in ["a=%", "a=%4", "a=%zz", "a=%ff", "a;b=1"] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
    }
}
