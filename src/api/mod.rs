//! The Engine API: requests and answers, versions, kinds of errors to status codes. One file per resource.

pub mod archive;
pub mod build;
pub mod containers;
pub mod disk;
pub mod exec;
pub mod filters;
pub mod image_views;
pub mod images;
pub mod info;
pub mod networks;
pub mod registry;
pub mod routes;
pub mod streams;
pub mod swarm;
pub mod system;
pub mod volumes;

use crate::daemon::ConnId;
use crate::error::{Error, Kind, Result};
use crate::http::{Head, Method, Query, Response};
use serde::de::DeserializeOwned;
use serde_json::json;

/// The version that is spoken when a path names none, and the newest there is: 1.`MAX_MINOR`.
pub const MAX_MINOR: u16 = 51;
/// The oldest version that gets an answer.
pub const MIN_MINOR: u16 = 12;

/// A request as handlers see it.
pub struct Request {
    pub head: Head,
    /// The API version 1.`minor` of the path, [`MAX_MINOR`] without one.
    pub minor: u16,
    /// The decoded `{…}` segments of the route, in order.
    pub params: Vec<String>,
    pub query: Query,
    /// Empty for worker routes: the worker reads it.
    pub body: Vec<u8>,
    pub conn: ConnId,
}

impl Request {
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// The n-th path parameter; "" when the route has none.
    pub fn param(&self, n: usize) -> &str {
        self.params.get(n).map_or("", String::as_str)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The body as JSON of the wanted shape. Wants `Content-Type: application/json`, which stops browsers' form posts.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        self.check_json()?;
        crate::json::from_body(&self.body)
    }

    /// As [`Request::json`], where the body may be left out.
    pub fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T> {
        if self.body.is_empty() { Ok(T::default()) } else { self.json() }
    }

    fn check_json(&self) -> Result<()> {
        let kind = self.header("content-type").unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence == "application/json" || (kind.is_empty() && self.body.is_empty()) {
            return Ok(());
        }
        Err(Error::invalid(if kind.is_empty() {
            "malformed Content-Type header (): mime: no media type".to_string()
        } else {
            format!("unsupported Content-Type header ({kind}): must be 'application/json'")
        }))
    }

    /// Docker's `filters` parameter.
    pub fn filters(&self) -> Result<filters::Filters> {
        filters::Filters::parse(self.query.get("filters"))
    }
}

/// What a handler of the loop gives back.
pub enum Reply {
    Now(Response),
    /// The handler has kept the connection's id, and answers through the daemon later.
    Parked,
}

impl From<Response> for Reply {
    fn from(response: Response) -> Reply {
        Reply::Now(response)
    }
}

/// The status code of each kind: the only place that knows.
fn status(kind: Kind) -> u16 {
    match kind {
        Kind::InvalidParameter => 400,
        Kind::Unauthorized => 401,
        Kind::Forbidden => 403,
        Kind::NotFound => 404,
        Kind::Conflict => 409,
        Kind::NotModified => 304,
        Kind::NotImplemented => 501,
        Kind::Unavailable => 503,
        Kind::System => 500,
    }
}

/// An error as its client expects it: JSON since 1.24, plain text before.
pub fn error_response(error: &Error, minor: u16) -> Response {
    let status = status(error.kind);
    if status == 304 {
        return Response::empty(304);
    }
    if minor < 24 {
        return Response::text(status, &format!("{}\n", error.message));
    }
    Response::json(status, &json!({ "message": error.message }))
}

/// The version of a path, for errors that are made where the request itself is not at hand.
pub fn version_of_path(path: &str) -> u16 {
    split_version(path).ok().map_or(MAX_MINOR, |(minor, _)| minor)
}

/// Splits `/v1.44/rest` into the minor version and the rest.
pub fn split_version(path: &str) -> Result<(u16, &str)> {
    let Some(rest) = path.strip_prefix("/v") else { return Ok((MAX_MINOR, path)) };
    let (version, rest) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    if version.is_empty() || !version.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Ok((MAX_MINOR, path));
    }
    let parts: Vec<&str> = version.split('.').collect();
    let number = |i: usize| parts.get(i).map_or(Some(0), |text| text.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (number(0), number(1)) else {
        return Err(Error::invalid(format!("client version {version} is invalid")));
    };
    if major > 1 || (major == 1 && minor > u32::from(MAX_MINOR)) {
        return Err(Error::invalid(format!("client version {version} is too new. Maximum supported API version is 1.{MAX_MINOR}")));
    }
    match u16::try_from(minor) {
        Ok(minor) if major == 1 && minor >= MIN_MINOR => Ok((minor, rest)),
        _ => Err(Error::invalid(format!(
            "client version {version} is too old. Minimum supported API version is 1.{MIN_MINOR}, please upgrade your client to a newer version"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_split_off() {
        assert_eq!(split_version("/v1.44/info").unwrap(), (44, "/info"));
        assert_eq!(split_version("/info").unwrap(), (51, "/info"));
        assert_eq!(split_version("/volumes").unwrap(), (51, "/volumes"));
        assert!(split_version("/v1.99/info").unwrap_err().message.contains("too new"));
        assert!(split_version("/v1.5/info").unwrap_err().message.contains("too old"));
    }
}
