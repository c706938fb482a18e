//! The image configuration document: Docker's and OCI's JSON, whose digest is the image's id.
//!
//! The bytes are kept exactly; what is parsed here is a view of them. Unknown fields live on in the bytes.

use super::digest::{Digest, chain_ids};
use crate::container::config::Config;
use crate::error::{Error, Result};
use crate::{json, timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Largest configuration document: 8 MiB.
pub const CONFIG_MAX: u64 = 8 << 20;
/// Overlay takes this many lower directories beside the upper one in an option page.
pub const LAYERS_MAX: usize = 127;
/// The diff id of a tar without entries: a step that changed nothing.
pub const EMPTY_TAR: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// What the document says, as far as the engine needs it. Absent fields are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Document {
    pub created: Option<String>,
    pub author: String,
    pub architecture: String,
    pub variant: String,
    pub os: String,
    #[serde(rename = "os.version")]
    pub os_version: String,
    #[serde(rename = "os.features")]
    pub os_features: Vec<String>,
    pub config: Option<Config>,
    pub container: String,
    pub container_config: Option<Config>,
    pub docker_version: String,
    pub comment: String,
    pub rootfs: Option<RootFs>,
    pub history: Vec<History>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// "layers".
    #[serde(rename = "type")]
    pub kind: String,
    /// Bottom first.
    pub diff_ids: Vec<Digest>,
}

/// One step of the image's making.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub author: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl Document {
    /// Parses and checks a document: it must have a root file system, at most 127 layers, no more steps with layers than layers.
    pub fn parse(bytes: &[u8]) -> Result<Document> {
        let value = json::parse(bytes)?;
        let Value::Object(map) = &value else {
            return Err(Error::invalid("invalid image JSON, not an object"));
        };
        // One document must not be a manifest or an index to one reader and a configuration to another.
        if ["layers", "manifests"].iter().any(|key| map.contains_key(*key)) {
            return Err(Error::invalid("invalid image JSON, it is a manifest"));
        }
        let document: Document = json::from_value(value)?;
        let Some(rootfs) = &document.rootfs else {
            return Err(Error::invalid("invalid image JSON, no RootFS key"));
        };
        if rootfs.diff_ids.len() > LAYERS_MAX {
            return Err(Error::invalid("max depth exceeded"));
        }
        if document.history.iter().filter(|step| !step.empty_layer).count() > rootfs.diff_ids.len() {
            return Err(Error::invalid("too many non-empty layers in History section"));
        }
        for created in document.created.iter().chain(document.history.iter().filter_map(|step| step.created.as_ref())) {
            if timestamp::parse_parts(created).is_none() {
                return Err(Error::invalid(format!("parsing time {created:?}: invalid time in image JSON")));
            }
        }
        Ok(document)
    }

    /// Diff ids, bottom first.
    pub fn diff_ids(&self) -> &[Digest] {
        self.rootfs.as_ref().map_or(&[], |rootfs| &rootfs.diff_ids)
    }

    /// The chain id of the whole stack; `None` for an image without layers.
    pub fn chain_id(&self) -> Option<Digest> {
        chain_ids(self.diff_ids()).pop()
    }

    /// The operating system; one that is not named is Linux.
    pub fn operating_system(&self) -> &str {
        if self.os.is_empty() { "linux" } else { &self.os }
    }

    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.operating_system().to_owned(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// Seconds since 1970 of a document's time; zero time and absent ones as the reference counts them.
pub fn unix_seconds(created: Option<&str>) -> Option<i64> {
    created.and_then(timestamp::parse_parts).map(|(seconds, _)| seconds)
}

/// An OCI platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// This machine.
    pub fn host() -> Platform {
        let (architecture, variant) = host_architecture();
        Platform { architecture: architecture.into(), os: "linux".into(), variant: variant.into(), ..Platform::default() }
    }

    /// `os[/arch[/variant]]` or a lone architecture, as query parameters name platforms; normalised.
    pub fn parse(text: &str) -> Result<Platform> {
        let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 3 || !parts.iter().all(|p| part(p)) {
            return Err(Error::invalid(format!(
                "{text:?}: platform specifier component must match \"^[A-Za-z0-9_.-]+$\": invalid argument"
            )));
        }
        let platform = match parts[..] {
            [one] if is_os(one) => Platform { os: one.into(), architecture: host_architecture().0.into(), ..Platform::default() },
            [one] => Platform { os: "linux".into(), architecture: one.into(), ..Platform::default() },
            [os, architecture] => Platform { os: os.into(), architecture: architecture.into(), ..Platform::default() },
            [os, architecture, variant] => {
                Platform { os: os.into(), architecture: architecture.into(), variant: variant.into(), ..Platform::default() }
            }
            _ => return Err(Error::invalid(format!("{text:?}: invalid platform"))),
        };
        Ok(platform.normalised())
    }

    /// A platform as newer API versions send it: a JSON document.
    pub fn from_json(text: &str) -> Result<Platform> {
        let platform: Platform = serde_json::from_str(text).map_err(|e| Error::invalid(format!("failed to parse platform: {e}")))?;
        if platform.os.is_empty() && platform.architecture.is_empty() && platform.variant.is_empty() {
            return Err(Error::invalid("invalid platform: os and architecture are required"));
        }
        Ok(platform.normalised())
    }

    /// One spelling for each architecture (`x86_64` is `amd64`, `aarch64` is `arm64`, arm's variant 7 is the default).
    pub fn normalised(mut self) -> Platform {
        self.os = self.os.to_lowercase();
        self.architecture = self.architecture.to_lowercase();
        self.variant = self.variant.to_lowercase();
        let (architecture, variant) = match (&*self.architecture, &*self.variant) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        let (architecture, variant) = (architecture.to_owned(), variant.to_owned());
        Platform { architecture, variant, ..self }
    }

    /// Whether an image of platform `image` will do for this wish: an arm image of a lower variant does, and one that names no variant.
    pub fn accepts(&self, image: &Platform) -> bool {
        let (want, have) = (self.clone().normalised(), image.clone().normalised());
        if want.os != have.os || want.architecture != have.architecture {
            return false;
        }
        let level = |variant: &str| variant.strip_prefix('v').and_then(|n| n.parse::<u32>().ok());
        want.variant == have.variant
            || image.variant.is_empty()
            || (want.architecture == "arm" && matches!((level(&want.variant), level(&have.variant)), (Some(w), Some(h)) if h <= w))
            || (want.architecture == "amd64" && matches!((level(&want.variant), level(&have.variant)), (Some(w), Some(h)) if h <= w))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [&*self.os, &*self.architecture, &*self.variant];
        f.write_str(&parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"))
    }
}

fn is_os(word: &str) -> bool {
    matches!(word, "linux" | "windows" | "darwin" | "freebsd" | "netbsd" | "openbsd" | "solaris" | "aix" | "plan9" | "android")
}

/// This machine's architecture and variant in Go's words.
pub fn host_architecture() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "x86" => ("386", ""),
        "aarch64" => ("arm64", ""),
        "arm" => ("arm", "v7"),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
        "powerpc64" => ("ppc64", ""),
        "loongarch64" => ("loong64", ""),
        other => (other, ""),
    }
}

/// What goes into a new document.
pub struct NewImage<'a> {
    pub platform: Platform,
    pub config: &'a Config,
    /// RFC 3339.
    pub created: String,
    pub author: &'a str,
    pub comment: &'a str,
    pub diff_ids: Vec<Digest>,
    pub history: Vec<History>,
    /// The container that was committed, with its configuration.
    pub container: Option<(&'a str, &'a Config)>,
}

impl NewImage<'_> {
    /// The document's bytes; keys are sorted, as the reference writes them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut map = Map::new();
        let mut text = |key: &str, value: &str| {
            if !value.is_empty() {
                map.insert(key.into(), value.into());
            }
        };
        text("architecture", &self.platform.architecture);
        text("variant", &self.platform.variant);
        text("os", &self.platform.os);
        text("os.version", &self.platform.os_version);
        text("author", self.author);
        text("comment", self.comment);
        text("created", &self.created);
        text("docker_version", crate::DOCKER_VERSION);
        if !self.platform.os_features.is_empty() {
            map.insert("os.features".into(), json!(self.platform.os_features));
        }
        if let Some((id, config)) = self.container {
            map.insert("container".into(), id.into());
            map.insert("container_config".into(), json!(config));
        }
        map.insert("config".into(), json!(self.config));
        map.insert("rootfs".into(), json!(RootFs { kind: "layers".into(), diff_ids: self.diff_ids.clone() }));
        map.insert("history".into(), json!(self.history));
        serde_json::to_vec(&map).expect("a map of plain values")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_matters_and_refuses_confusion() {
        let digest = Digest::of(b"layer");
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-05-01T12:00:00Z","config":{{"Cmd":["sh"],"Env":null,"x-unknown":1}},
               "rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created_by":"a"}},{{"created_by":"b","empty_layer":true}}],"moby.x":1}}"#
        );
        let document = Document::parse(text.as_bytes()).unwrap();
        assert_eq!(document.diff_ids(), [digest]);
        assert_eq!(document.chain_id(), Some(digest));
        assert_eq!(document.config.unwrap().cmd, Some(vec!["sh".into()]));
        for (bad, words) in [
            ("{}", "invalid image JSON, no RootFS key"),
            (r#"{"rootfs":{"diff_ids":[]},"layers":[]}"#, "invalid image JSON, it is a manifest"),
            (r#"{"rootfs":{"diff_ids":[]},"history":[{}]}"#, "too many non-empty layers in History section"),
            ("[]", "invalid image JSON, not an object"),
        ] {
            assert_eq!(Document::parse(bad.as_bytes()).unwrap_err().message, words);
        }
        assert!(Document::parse(br#"{"rootfs":{"diff_ids":["sha256:zz"]}}"#).is_err());
        assert!(Document::parse(br#"{"rootfs":{"diff_ids":[]},"created":"yesterday"}"#).is_err());
        let many = vec![digest.to_string(); 128];
        assert_eq!(
            Document::parse(json!({"rootfs": {"diff_ids": many}}).to_string().as_bytes()).unwrap_err().message,
            "max depth exceeded"
        );
    }

    #[test]
    fn a_new_document_reads_back_with_sorted_keys() {
        let config = Config { cmd: Some(vec!["true".into()]), ..Config::default() };
        let bytes = NewImage {
            platform: Platform::parse("linux/arm/v6").unwrap(),
            config: &config,
            created: timestamp::rfc3339(0),
            author: "",
            comment: "Imported from -",
            diff_ids: vec![Digest::of(b"x")],
            history: vec![History { comment: "Imported from -".into(), created: Some(timestamp::rfc3339(0)), ..History::default() }],
            container: None,
        }
        .to_bytes();
        assert!(bytes.starts_with(br#"{"architecture":"arm","comment":"Imported from -","config":{"#));
        let document = Document::parse(&bytes).unwrap();
        assert_eq!(document.platform().to_string(), "linux/arm/v6");
        assert_eq!(document.config, Some(config));
    }

    #[test]
    fn platforms() {
        for (text, expected) in
            [("linux/x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("linux/arm", "linux/arm/v7"), ("linux/arm64/v8", "linux/arm64")]
        {
            assert_eq!(Platform::parse(text).unwrap().to_string(), expected);
        }
        for bad in ["", "linux/", "a/b/c/d", "linux/a b"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
        let want = Platform::parse("linux/arm/v7").unwrap();
        assert!(want.accepts(&Platform::parse("linux/arm/v6").unwrap()));
        assert!(!Platform::parse("linux/arm/v6").unwrap().accepts(&want));
        assert!(!want.accepts(&Platform::parse("linux/arm64").unwrap()));
    }
}
