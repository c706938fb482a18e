//! JSON from outside: bounded, strict, and read the way the reference's decoder reads it.

use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Parses one JSON document; bytes after it, and nesting beyond serde_json's 128, are refused.
pub fn parse(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::invalid(format!("invalid JSON: {e}")))
}

/// Drops the null members of every object, recursively: null means "absent" to Go's decoder.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()),
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        plain => plain,
    }
}

/// Parses a request body into a typed value.
pub fn from_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    from_value(parse(bytes)?)
}

/// As [`from_body`], for a document that is parsed already.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(without_nulls(value)).map_err(|e| Error::invalid(format!("invalid JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_bytes_after_the_document() {
        assert!(parse(b"{} {}").is_err());
        assert!(parse(b"{}\n").is_ok());
    }
}
