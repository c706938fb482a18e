//! `docker search`: the index's old catalogue API, with limit and filters.

use super::auth::encode;
use super::client::Login;
use super::endpoint::{INDEX_HOST, Settings, endpoints};
use super::fault::Fault;
use super::transport::{Exchange, Transport};
use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// Bytes of an answer.
const ANSWER_MAX: u64 = 4 << 20;
const LIMIT_DEFAULT: i64 = 25;
const LIMIT_MAX: i64 = 100;

/// One found repository, as `GET /images/search` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Found {
    pub star_count: i64,
    pub is_official: bool,
    pub name: String,
    pub is_automated: bool,
    pub description: String,
}

/// What is wanted besides the term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// 0 = the default.
    pub limit: i64,
    pub is_official: Option<bool>,
    pub is_automated: Option<bool>,
    pub stars: Option<i64>,
}

impl Wish {
    /// The filters of the request: names with their values.
    pub fn filter(&mut self, name: &str, value: &str) -> Result<()> {
        let truth = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(Error::invalid(format!("invalid filter '{name}=[{value}]'"))),
        };
        match name {
            "is-official" => self.is_official = Some(truth()?),
            "is-automated" => self.is_automated = Some(truth()?),
            "stars" => {
                let stars = value.parse().map_err(|_| Error::invalid(format!("invalid filter 'stars=[{value}]'")))?;
                self.stars = Some(self.stars.unwrap_or(0).max(stars));
            }
            _ => return Err(Error::invalid(format!("invalid filter '{name}'"))),
        }
        Ok(())
    }

    fn takes(&self, found: &Found) -> bool {
        self.is_official.is_none_or(|wish| wish == found.is_official)
            && self.is_automated.is_none_or(|wish| wish == found.is_automated)
            && self.stars.is_none_or(|least| found.star_count >= least)
    }
}

/// Asks an index: the default one, or that of a term like `host:5000/name`.
pub fn search(settings: &Settings, term: &str, wish: &Wish, login: &Login) -> Result<Vec<Found>> {
    let limit = match wish.limit {
        0 => LIMIT_DEFAULT,
        n if (1..=LIMIT_MAX).contains(&n) => n,
        n => return Err(Error::invalid(format!("limit {n} is outside the range of [1, {LIMIT_MAX}]"))),
    };
    // Nothing can be both: the reference answers without asking.
    if wish.is_automated == Some(true) {
        return Ok(Vec::new());
    }
    let (host, term) = split(term);
    let mut transport = Transport::new(settings.clone());
    let bases: Vec<(String, bool)> = match host {
        INDEX_HOST => vec![(format!("https://{INDEX_HOST}"), false)],
        host => endpoints(host, settings, false).into_iter().map(|e| (e.base(), e.insecure)).collect(),
    };
    let mut last = Fault::permanent("no endpoints to search");
    for (base, insecure) in bases {
        let mut exchange = Exchange::new("GET", format!("{base}/v1/search?q={}&n={limit}", encode(term)));
        exchange.headers.extend(login.meta.iter().cloned());
        exchange.authorization = login.credentials.basic();
        match transport.run(exchange, insecure) {
            Ok(mut answer) if answer.status == 200 => {
                #[derive(Deserialize)]
                struct Page {
                    #[serde(default)]
                    results: Vec<Found>,
                }
                let bytes = answer.bytes(ANSWER_MAX, "search results")?;
                let page: Page =
                    serde_json::from_slice(&bytes).map_err(|e| Error::system(format!("error decoding registry search results: {e}")))?;
                return Ok(page.results.into_iter().filter(|found| wish.takes(found)).collect());
            }
            Ok(answer) => return Err(Error::new(Kind::System, format!("Unexpected status code {}", answer.status))),
            Err(fault) => last = fault,
        }
    }
    Err(last.into())
}

/// The index's host and the rest of the term.
fn split(term: &str) -> (&str, &str) {
    match term.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => {
            let host = if matches!(host, "docker.io" | INDEX_HOST) { INDEX_HOST } else { host };
            (host, if host == INDEX_HOST { rest.strip_prefix("library/").unwrap_or(rest) } else { rest })
        }
        _ => (INDEX_HOST, term.strip_prefix("library/").unwrap_or(term)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_name_their_index() {
        for (term, host, rest) in [
            ("busybox", INDEX_HOST, "busybox"),
            ("library/busybox", INDEX_HOST, "busybox"),
            ("me/app", INDEX_HOST, "me/app"),
            ("docker.io/me/app", INDEX_HOST, "me/app"),
            ("localhost:5000/x", "localhost:5000", "x"),
            ("h.example/x/y", "h.example", "x/y"),
        ] {
            assert_eq!(split(term), (host, rest));
        }
    }

    #[test]
    fn limits_and_filters_are_checked() {
        let settings = Settings::default();
        let refuse = |limit| search(&settings, "x", &Wish { limit, ..Wish::default() }, &Login::default()).unwrap_err().message;
        assert_eq!(refuse(101), "limit 101 is outside the range of [1, 100]");
        assert_eq!(refuse(-1), "limit -1 is outside the range of [1, 100]");
        let mut wish = Wish::default();
        wish.filter("stars", "3").unwrap();
        wish.filter("is-official", "true").unwrap();
        assert_eq!(wish.filter("stars", "x").unwrap_err().message, "invalid filter 'stars=[x]'");
        assert_eq!(wish.filter("nope", "x").unwrap_err().message, "invalid filter 'nope'");
        assert!(wish.takes(&Found { star_count: 3, is_official: true, ..Found::default() }));
        assert!(!wish.takes(&Found { star_count: 2, is_official: true, ..Found::default() }));
    }
}
