//! Manifests and indexes: read strictly, chosen by platform, written for push.
//!
//! A document is what its mediaType and its Content-Type both say, never both kinds at once; every size and digest in
//! it is checked before anything is fetched by it.

use super::client::{CONFIG_MAX, Fetched, MANIFEST_MAX};
use super::fault::{Fault, Result};
use crate::image::config::Platform;
use crate::image::digest::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// As many layers as an overlay mount can stack.
const LAYERS_MAX: usize = 127;
/// Entries of an index that are looked at.
const ENTRIES_MAX: usize = 1024;

/// A reference to content by digest and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    pub digest: Digest,
    /// A foreign layer's places.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// An image's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u64,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// Manifests for several platforms.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Box<Manifest>),
    Index(Index),
}

impl Document {
    /// Reads what a registry sent.
    pub fn parse(fetched: &Fetched) -> Result<Document> {
        let refuse = |why: String| Err(Fault::permanent(why));
        let value: Value = serde_json::from_slice(&fetched.bytes).map_err(|e| Fault::permanent(format!("invalid manifest: {e}")))?;
        let Value::Object(object) = &value else { return refuse("invalid manifest: not an object".into()) };
        let has = |key: &str| object.get(key).is_some_and(|v| !v.is_null());
        let version = object.get("schemaVersion").and_then(Value::as_u64);
        let own_type = object.get("mediaType").and_then(Value::as_str).unwrap_or_default();
        if version == Some(1) || has("fsLayers") || has("signatures") {
            return refuse(
                "[DEPRECATION NOTICE] Docker Image Format v1 and Docker Image manifest version 2, schema 1 are not supported: \
                 push the image again with a newer engine, or ask its author to"
                    .into(),
            );
        }
        if version != Some(2) {
            return refuse(format!("unsupported manifest schema version {}", object.get("schemaVersion").unwrap_or(&Value::Null)));
        }
        if has("manifests") && (has("layers") || has("config")) {
            return refuse("refusing a document that is both an index and a manifest".into());
        }
        // Servers of plain files know no better type; then the document speaks for itself.
        let told = Some(fetched.media_type.as_str())
            .filter(|t| !matches!(*t, "" | "text/plain" | "application/json" | "application/octet-stream"));
        if !own_type.is_empty() && told.is_some_and(|told| told != own_type) {
            return refuse(format!("manifest media type {own_type:?} does not match its Content-Type {:?}", fetched.media_type));
        }
        let kind = match (own_type, told) {
            ("", Some(told)) => told,
            ("", None) if has("manifests") => OCI_INDEX,
            ("", None) => OCI_MANIFEST,
            (own, _) => own,
        };
        match kind {
            DOCKER_MANIFEST | OCI_MANIFEST if has("manifests") => refuse(format!("a manifest of type {kind} has no layers")),
            DOCKER_LIST | OCI_INDEX if !has("manifests") => refuse(format!("an index of type {kind} has no manifests")),
            DOCKER_MANIFEST | OCI_MANIFEST => manifest(value).map(|m| Document::Manifest(Box::new(m))),
            DOCKER_LIST | OCI_INDEX => index(value).map(Document::Index),
            other => refuse(format!("unsupported manifest media type {other:?}")),
        }
    }
}

fn manifest(value: Value) -> Result<Manifest> {
    let manifest: Manifest = serde_json::from_value(value).map_err(|e| Fault::permanent(format!("invalid manifest: {e}")))?;
    let refuse = |why: String| Err(Fault::permanent(why));
    match manifest.config.media_type.as_str() {
        "" | DOCKER_CONFIG | OCI_CONFIG | "application/octet-stream" | "text/plain" | "application/json" => {}
        other => {
            return refuse(format!(
                "encountered remote {}; if this is a plugin, use 'docker plugin install'",
                crate::build::golang::quote(other)
            ));
        }
    }
    if manifest.config.size > CONFIG_MAX {
        return refuse(format!("image config of {} bytes is too large", manifest.config.size));
    }
    if manifest.layers.len() > LAYERS_MAX {
        return refuse("max depth exceeded".into());
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| layer.size > i64::MAX.unsigned_abs() || !is_layer(&layer.media_type)) {
        return refuse(format!("unsupported layer: {} of type {:?}", layer.digest, layer.media_type));
    }
    Ok(manifest)
}

fn is_layer(media_type: &str) -> bool {
    let compression = media_type
        .strip_prefix("application/vnd.docker.image.rootfs.")
        .and_then(|t| t.strip_prefix("foreign.").or(Some(t)))
        .and_then(|t| t.strip_prefix("diff.tar"))
        .or_else(|| {
            media_type
                .strip_prefix("application/vnd.oci.image.layer.")
                .and_then(|t| t.strip_prefix("nondistributable.").or(Some(t)))
                .and_then(|t| t.strip_prefix("v1.tar"))
        });
    matches!(compression, Some("" | ".gzip" | "+gzip" | ".zstd" | "+zstd" | ".xz" | "+xz" | ".bzip2" | "+bzip2"))
}

/// Whether a layer lives elsewhere and is not pushed.
pub fn is_foreign(media_type: &str) -> bool {
    media_type.contains("foreign") || media_type.contains("nondistributable")
}

fn index(value: Value) -> Result<Index> {
    let mut index: Index = serde_json::from_value(value).map_err(|e| Fault::permanent(format!("invalid manifest list: {e}")))?;
    if index.manifests.len() > ENTRIES_MAX {
        return Err(Fault::permanent(format!("manifest list with more than {ENTRIES_MAX} entries")));
    }
    // Attestations and other artifacts are no images.
    index.manifests.retain(|entry| matches!(entry.media_type.as_str(), DOCKER_MANIFEST | OCI_MANIFEST | DOCKER_LIST | OCI_INDEX | ""));
    if let Some(entry) = index.manifests.iter().find(|entry| entry.size > MANIFEST_MAX) {
        return Err(Fault::permanent(format!("manifest {} of {} bytes is too large", entry.digest, entry.size)));
    }
    Ok(index)
}

impl Index {
    /// The entry for a platform: the best variant that runs there.
    pub fn choose(&self, wanted: &Platform) -> Option<&Descriptor> {
        let usable = self.manifests.iter().filter(|entry| {
            let platform = entry.platform.as_ref();
            platform.is_some_and(|p| p.os != "unknown" && p.architecture != "unknown" && wanted.accepts(p))
        });
        // A higher variant is the better one; of equals the first.
        usable.fold(None, |best: Option<&Descriptor>, entry| match best {
            Some(found) if variant(found) >= variant(entry) => Some(found),
            _ => Some(entry),
        })
    }

    /// The platforms that are offered, for a refusal.
    pub fn platforms(&self) -> Vec<Platform> {
        self.manifests.iter().filter_map(|entry| entry.platform.clone()).collect()
    }
}

fn variant(entry: &Descriptor) -> u32 {
    entry.platform.as_ref().and_then(|p| p.clone().normalised().variant.trim_start_matches('v').parse().ok()).unwrap_or(0)
}

impl Manifest {
    /// A Docker schema 2 manifest's bytes, spelled as the reference's encoder does (three spaces), so that equal
    /// images have equal digests wherever they were pushed from.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"   ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
        self.serialize(&mut serializer).expect("a manifest is plain data");
        out
    }

    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest { schema_version: 2, media_type: DOCKER_MANIFEST.into(), config, layers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fetched(value: &Value, media_type: &str) -> Fetched {
        let bytes = serde_json::to_vec(value).unwrap();
        Fetched { digest: Digest::of(&bytes), bytes, media_type: media_type.into() }
    }

    fn refusal(value: &Value, media_type: &str) -> String {
        Document::parse(&fetched(value, media_type)).unwrap_err().message
    }

    fn descriptor(kind: &str, size: u64) -> Value {
        json!({"mediaType": kind, "size": size, "digest": Digest::of(b"x").to_string()})
    }

    fn good() -> Value {
        json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": descriptor(DOCKER_CONFIG, 5), "layers": [descriptor(DOCKER_LAYER, 7)]})
    }

    #[test]
    fn documents_are_what_they_say() {
        assert!(matches!(Document::parse(&fetched(&good(), DOCKER_MANIFEST)), Ok(Document::Manifest(_))));
        assert!(matches!(Document::parse(&fetched(&good(), "")), Ok(Document::Manifest(_))));
        let list = json!({"schemaVersion": 2, "manifests": []});
        assert!(matches!(Document::parse(&fetched(&list, OCI_INDEX)), Ok(Document::Index(_))));
        assert!(matches!(Document::parse(&fetched(&list, "application/json")), Ok(Document::Index(_))));
    }

    #[test]
    fn lies_are_refused() {
        let with = |change: &dyn Fn(&mut Value)| {
            let mut value = good();
            change(&mut value);
            refusal(&value, DOCKER_MANIFEST)
        };
        assert!(refusal(&good(), OCI_MANIFEST).contains("does not match its Content-Type"));
        assert!(with(&|v| v["manifests"] = json!([])).contains("both an index and a manifest"));
        assert!(with(&|v| v["schemaVersion"] = json!(9)).contains("unsupported manifest schema version 9"));
        assert!(with(&|v| v["schemaVersion"] = json!(1)).contains("schema 1"));
        assert!(with(&|v| v["config"] = Value::Null).contains("invalid manifest"));
        assert!(with(&|v| v["config"]["size"] = json!(-1)).contains("invalid manifest"));
        assert!(with(&|v| v["config"]["size"] = json!(1u64 << 40)).contains("too large"));
        assert!(with(&|v| v["config"]["mediaType"] = json!("application/vnd.docker.plugin.v1+json")).contains("if this is a plugin"));
        assert!(with(&|v| v["layers"][0]["digest"] = json!("md5:0")).contains("invalid manifest"));
        assert!(with(&|v| v["layers"][0]["digest"] = json!("sha256:../../x")).contains("invalid manifest"));
        assert!(with(&|v| v["layers"][0]["size"] = json!(u64::MAX)).contains("unsupported layer"));
        assert!(with(&|v| v["layers"][0]["mediaType"] = json!("text/html")).contains("unsupported layer"));
        assert!(with(&|v| v["layers"] = json!(vec![descriptor(DOCKER_LAYER, 1); 200])).contains("max depth exceeded"));
        assert!(refusal(&json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "layers": []}), "").contains("has no manifests"));
        assert!(refusal(&json!([]), "").contains("not an object"));
        assert!(refusal(&json!({"schemaVersion": 2, "mediaType": "text/html"}), "").contains("unsupported manifest media type"));
    }

    #[test]
    fn layers_of_every_kind_are_known() {
        for kind in [
            DOCKER_LAYER,
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            assert!(is_layer(kind), "{kind}");
        }
        assert!(!is_layer("application/vnd.oci.image.layer.v1.tar+encrypted"));
    }

    #[test]
    fn the_best_variant_is_chosen() {
        let entry = |architecture: &str, variant: &str, seed: &str| {
            let digest = Digest::of(seed.as_bytes());
            json!({"mediaType": OCI_MANIFEST, "size": 1, "digest": digest.to_string(),
                   "platform": {"os": if seed == "u" { "unknown" } else { "linux" }, "architecture": architecture, "variant": variant}})
        };
        let list = json!({"schemaVersion": 2, "manifests": [
            entry("unknown", "", "u"), entry("arm", "v5", "5"), entry("arm", "v7", "7"), entry("arm", "v6", "6"), entry("amd64", "", "a")]});
        let Ok(Document::Index(index)) = Document::parse(&fetched(&list, OCI_INDEX)) else { panic!() };
        let choose = |text: &str| index.choose(&Platform::parse(text).unwrap()).map(|d| d.digest);
        assert_eq!(choose("linux/arm/v7"), Some(Digest::of(b"7")));
        assert_eq!(choose("linux/arm/v6"), Some(Digest::of(b"6")));
        assert_eq!(choose("linux/amd64"), Some(Digest::of(b"a")));
        assert_eq!(choose("linux/s390x"), None);
    }

    #[test]
    fn manifests_are_written_as_the_reference_writes_them() {
        let Ok(Document::Manifest(manifest)) = Document::parse(&fetched(&good(), DOCKER_MANIFEST)) else { panic!() };
        let text = String::from_utf8(manifest.to_bytes()).unwrap();
        assert!(text.starts_with("{\n   \"schemaVersion\": 2,\n   \"mediaType\": \"application/vnd.docker.distribution.manifest.v2+json\",\n   \"config\": {\n      \"mediaType\""));
        assert!(text.contains("\"size\": 5,\n      \"digest\": \"sha256:"));
    }
}
