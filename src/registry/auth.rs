//! Credentials as clients send them, challenges as registries send them, and the tokens in between.

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose};
use serde::{Deserialize, Serialize};

/// What X-Registry-Auth carries. Never printed: there is no `Debug`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    #[serde(rename = "serveraddress")]
    pub server: String,
    /// A refresh token from an earlier login.
    #[serde(rename = "identitytoken")]
    pub identity_token: String,
    /// A bearer token that is used as it is.
    #[serde(rename = "registrytoken")]
    pub registry_token: String,
}

/// A header larger than this is not credentials.
const HEADER_MAX: usize = 64 * 1024;

impl Credentials {
    /// From X-Registry-Auth: base64url JSON. What cannot be read counts as none.
    pub fn from_header(header: Option<&str>) -> Credentials {
        header.and_then(decode).and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        *self == Credentials::default()
    }

    /// The value of a basic Authorization header, when there is a user.
    pub fn basic(&self) -> Option<String> {
        (!self.username.is_empty())
            .then(|| format!("Basic {}", general_purpose::STANDARD.encode(format!("{}:{}", self.username, self.password))))
    }
}

/// base64url, with or without padding; the standard alphabet is taken too.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    if text.len() > HEADER_MAX {
        return None;
    }
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text = text.trim().replace('+', "-").replace('/', "_");
    GeneralPurpose::new(&base64::alphabet::URL_SAFE, config).decode(text).ok()
}

/// One challenge of WWW-Authenticate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// Lower case: "bearer", "basic".
    pub scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// Reads one header: a scheme and its comma-separated `name="value"` parameters (RFC 7235).
    pub fn parse(header: &str) -> Option<Challenge> {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return None;
        }
        let mut parameters = Vec::new();
        while let Some((name, after)) = rest.split_once('=') {
            let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
            let (value, next) = match after.strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => {
                    let end = after.find(',').unwrap_or(after.len());
                    (after.get(..end)?.trim().to_owned(), after.get(end..)?)
                }
            };
            parameters.push((name, value));
            rest = next;
        }
        Some(Challenge { scheme: scheme.to_ascii_lowercase(), parameters })
    }
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            plain => value.push(plain),
        }
    }
    None
}

/// A token server's answer.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct TokenAnswer {
    pub token: String,
    pub access_token: String,
    pub refresh_token: String,
    /// Seconds; 0 = the default of 60.
    pub expires_in: i64,
}

impl TokenAnswer {
    pub fn bearer(&self) -> Option<&str> {
        [&self.token, &self.access_token].into_iter().map(String::as_str).find(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic()))
    }
}

/// `POST /auth`'s answer.
#[derive(Debug, Serialize)]
pub struct LoginAnswer {
    #[serde(rename = "IdentityToken")]
    pub identity_token: String,
    #[serde(rename = "Status")]
    pub status: String,
}

/// The query that asks a token server for `scopes`.
pub fn token_query(challenge: &Challenge, scopes: &[String], user: &str, offline: bool) -> String {
    let mut pairs = Vec::new();
    if !user.is_empty() {
        pairs.push(("account", user.to_owned()));
    }
    if offline {
        pairs.push(("client_id", "docker".into()));
        pairs.push(("offline_token", "true".into()));
    }
    pairs.extend(scopes.iter().map(|scope| ("scope", scope.clone())));
    let service = challenge.parameter("service");
    if !service.is_empty() {
        pairs.push(("service", service.into()));
    }
    form(&pairs)
}

/// `application/x-www-form-urlencoded`.
pub fn form(pairs: &[(&str, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect::<Vec<_>>().join("&")
}

/// Everything but RFC 3986's unreserved characters as `%XX`.
pub fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_every_padding_are_read() {
        let json = r#"{"username":"u??>","password":"p","identitytoken":"","x":1}"#;
        for text in
            [general_purpose::URL_SAFE.encode(json), general_purpose::URL_SAFE_NO_PAD.encode(json), general_purpose::STANDARD.encode(json)]
        {
            let credentials = Credentials::from_header(Some(&text));
            assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("u??>", "p"));
        }
        for bad in [None, Some(""), Some("%%%"), Some("e30"), Some("bm90IGpzb24")] {
            assert!(Credentials::from_header(bad).is_empty());
        }
    }

    #[test]
    fn challenges_are_parsed() {
        let bearer =
            Challenge::parse(r#"Bearer realm="https://auth/token",service="reg\"x",scope="repository:a/b:pull,push", error=invalid_token"#)
                .unwrap();
        assert_eq!(bearer.scheme, "bearer");
        assert_eq!(bearer.parameter("realm"), "https://auth/token");
        assert_eq!(bearer.parameter("service"), "reg\"x");
        assert_eq!(bearer.parameter("scope"), "repository:a/b:pull,push");
        assert_eq!(bearer.parameter("error"), "invalid_token");
        assert_eq!(Challenge::parse("Basic realm=\"x\"").unwrap().scheme, "basic");
        assert_eq!(Challenge::parse("Basic").unwrap().parameter("realm"), "");
        assert!(Challenge::parse("Bearer realm=\"open").is_none());
        assert!(Challenge::parse("").is_none());
    }

    #[test]
    fn tokens_are_asked_for_by_scope() {
        let challenge = Challenge::parse("Bearer realm=\"r\",service=\"s t\"").unwrap();
        let query = token_query(&challenge, &["repository:a:pull".into()], "u", true);
        assert_eq!(query, "account=u&client_id=docker&offline_token=true&scope=repository%3Aa%3Apull&service=s%20t");
        let answer: TokenAnswer = serde_json::from_str(r#"{"access_token":"abc","expires_in":300}"#).unwrap();
        assert_eq!(answer.bearer(), Some("abc"));
        let answer: TokenAnswer = serde_json::from_str("{\"token\":\"a\\nb\"}").unwrap();
        assert_eq!(answer.bearer(), None);
    }
}
