//! Images as the API shows them, per version: the list, inspect, history.

use super::filters::Filters;
use crate::container::config::{Config, Labels};
use crate::error::{Error, Result};
use crate::image::Store;
use crate::image::config::{Document, unix_seconds};
use crate::image::digest::{Digest, chain_ids};
use crate::image::reference::Reference;
use crate::image::remove::User;
use crate::image::store::Image;
use crate::timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// One line of `GET /images/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Summary {
    /// -1: not counted.
    pub containers: i64,
    /// Seconds since 1970.
    pub created: i64,
    pub id: Digest,
    pub labels: Option<Labels>,
    pub parent_id: String,
    pub repo_digests: Option<Vec<String>>,
    pub repo_tags: Option<Vec<String>>,
    /// Bytes; -1: not reckoned.
    pub shared_size: i64,
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
}

/// What the list is asked for.
pub struct ListOptions<'a> {
    pub all: bool,
    pub shared_size: bool,
    /// Count the containers of each image.
    pub count_users: bool,
    pub filters: &'a Filters,
    /// The API's minor version.
    pub minor: u16,
    pub now_ns: i64,
}

/// The bounds of creation times that `before`, `since` and `until` name.
struct Window {
    before: Option<(i64, i64)>,
    since: Option<(i64, i64)>,
}

impl Window {
    fn of(store: &Store, options: &ListOptions) -> Result<Window> {
        let mut window = Window { before: None, since: None };
        let older = |bound: Option<(i64, i64)>, new: (i64, i64)| Some(bound.map_or(new, |bound| bound.min(new)));
        for name in options.filters.get("before") {
            if let Some(created) = store.resolve(name)?.created_parts() {
                window.before = older(window.before, created);
            }
        }
        for text in options.filters.get("until") {
            let ns = timestamp::parse_query(text, options.now_ns)?;
            window.before = older(window.before, (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000)));
        }
        for name in options.filters.get("since") {
            if let Some(created) = store.resolve(name)?.created_parts() {
                window.since = Some(window.since.map_or(created, |bound| bound.max(created)));
            }
        }
        Ok(window)
    }

    fn holds(&self, created: Option<(i64, i64)>) -> bool {
        self.before.is_none_or(|bound| created.is_some_and(|c| c < bound))
            && self.since.is_none_or(|bound| created.is_some_and(|c| c > bound))
    }
}

/// `GET /images/json`, newest first.
pub fn list(store: &Store, users: &[User], options: &ListOptions) -> Result<Vec<Summary>> {
    options.filters.validate(&["dangling", "label", "before", "since", "reference", "until"])?;
    let dangling = options.filters.boolean("dangling")?;
    let window = Window::of(store, options)?;
    let shared = options.shared_size.then(|| layer_uses(store));
    let mut summaries = Vec::new();
    for image in store.images() {
        if !window.holds(image.created_parts()) || image.platform.os != "linux" {
            continue;
        }
        if options.filters.has("label") && !options.filters.labels("label", image.labels.as_ref()) {
            continue;
        }
        let Some((tags, digests)) = shown_names(store, image, dangling, options)? else { continue };
        let mut summary = summary(store, image, tags, digests);
        if let Some(uses) = &shared {
            summary.shared_size = shared_size(store, image, uses);
        }
        if options.count_users {
            summary.containers = i64::try_from(users.iter().filter(|user| user.image == image.id).count()).unwrap_or(i64::MAX);
        }
        shape_summary(&mut summary, options.minor);
        summaries.push(summary);
    }
    summaries.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    Ok(summaries)
}

type Names = (Vec<String>, Vec<String>);

/// Tags and digests that the filters let through; `None` when the image is not to be shown.
fn shown_names(store: &Store, image: &Image, dangling: Option<bool>, options: &ListOptions) -> Result<Option<Names>> {
    let (mut tags, mut digests) = (Vec::new(), Vec::new());
    let patterns = options.filters.get("reference");
    for name in store.names_of(image.id) {
        if !patterns.is_empty() && !any_matches(patterns, name)? {
            continue;
        }
        if name.tag().is_some() { tags.push(name.familiar()) } else { digests.push(name.familiar()) }
    }
    let shown = match (tags.is_empty() && digests.is_empty(), dangling) {
        (_, Some(true)) if image.has_children() => false,
        (false, Some(true)) => tags.is_empty(),
        (false, _) => true,
        (true, Some(false)) => false,
        (true, _) => patterns.is_empty() && (options.all || !image.has_children()),
    };
    Ok(shown.then_some((tags, digests)))
}

fn any_matches(patterns: &[String], name: &Reference) -> Result<bool> {
    for pattern in patterns {
        if name.familiar_matches(pattern)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn summary(store: &Store, image: &Image, tags: Vec<String>, digests: Vec<String>) -> Summary {
    Summary {
        containers: -1,
        created: image.created_seconds().unwrap_or(0),
        id: image.id,
        labels: image.labels.clone(),
        parent_id: image.extra.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        repo_digests: Some(digests),
        repo_tags: Some(tags),
        shared_size: -1,
        size: store.size_of(image),
        virtual_size: None,
    }
}

fn shape_summary(summary: &mut Summary, minor: u16) {
    if minor < 44 {
        summary.virtual_size = Some(summary.size);
    }
    if minor < 43 {
        let none = |names: &Option<Vec<String>>| names.as_ref().is_none_or(Vec::is_empty);
        let (no_tags, no_digests) = (none(&summary.repo_tags), none(&summary.repo_digests));
        if no_tags && no_digests {
            summary.repo_tags = Some(vec!["<none>:<none>".into()]);
            summary.repo_digests = Some(vec!["<none>@<none>".into()]);
        } else {
            summary.repo_tags = summary.repo_tags.take().filter(|_| !no_tags);
            summary.repo_digests = summary.repo_digests.take().filter(|_| !no_digests);
        }
    }
}

/// In how many images each layer is.
fn layer_uses(store: &Store) -> HashMap<Digest, u32> {
    let mut uses = HashMap::new();
    for layer in store.images().flat_map(|image| store.layers.stack(image.top)) {
        *uses.entry(layer.meta.chain).or_insert(0) += 1;
    }
    uses
}

fn shared_size(store: &Store, image: &Image, uses: &HashMap<Digest, u32>) -> i64 {
    let shared = store.layers.stack(image.top).filter(|layer| uses.get(&layer.meta.chain).is_some_and(|n| *n > 1));
    i64::try_from(shared.map(|layer| layer.meta.size).sum::<u64>()).unwrap_or(i64::MAX)
}

/// The bytes that all images' layers take, each layer once: `LayersSize` of system df.
pub fn layers_size(store: &Store) -> u64 {
    store.layers.iter().map(|layer| layer.meta.size).sum()
}

/// `GET /images/{name}/json`.
pub fn inspect(store: &Store, image: &Image, minor: u16) -> Result<Value> {
    let document = store.document(image.id)?;
    let (tags, digests): (Vec<&Reference>, Vec<&Reference>) = store.names_of(image.id).partition(|name| name.tag().is_some());
    let familiar = |names: Vec<&Reference>| names.into_iter().map(Reference::familiar).collect::<Vec<_>>();
    let comment = match (&*document.comment, document.history.last()) {
        ("", Some(last)) => &last.comment,
        (comment, _) => comment,
    };
    let size = store.size_of(image);
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
    put("Id", json!(image.id));
    put("RepoTags", json!(familiar(tags)));
    put("RepoDigests", json!(familiar(digests)));
    put("Parent", json!(image.extra.parent.map(|parent| parent.to_string()).unwrap_or_default()));
    put("Comment", json!(comment));
    match &document.created {
        Some(created) => put("Created", json!(trimmed(created))),
        None if minor < 44 => put("Created", json!(timestamp::ZERO)),
        None => {}
    }
    if minor < 45 {
        if !document.container.is_empty() {
            put("Container", json!(document.container));
        }
        put("ContainerConfig", json!(document.container_config.clone().unwrap_or_default()));
    }
    put("DockerVersion", json!(document.docker_version));
    put("Author", json!(document.author));
    put("Architecture", json!(document.architecture));
    if !document.variant.is_empty() {
        put("Variant", json!(document.variant));
    }
    put("Os", json!(document.operating_system()));
    if !document.os_version.is_empty() {
        put("OsVersion", json!(document.os_version));
    }
    put("Size", json!(size));
    if minor < 44 {
        put("VirtualSize", json!(size));
    }
    put("GraphDriver", json!({"Data": driver_data(store, image), "Name": "overlay2"}));
    put("RootFS", root_fs(&document));
    let tagged = if image.extra.tagged == 0 { timestamp::ZERO.to_owned() } else { timestamp::rfc3339(image.extra.tagged) };
    put("Metadata", json!({"LastTagTime": tagged}));
    put("Config", image_config(document.config.as_ref(), minor));
    Ok(Value::Object(out))
}

/// An RFC 3339 time as Go prints it again: no trailing zeros in its fraction.
fn trimmed(created: &str) -> String {
    let Some((date, rest)) = created.split_once('.') else { return created.to_owned() };
    let zone = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (fraction, zone) = rest.split_at(zone);
    match fraction.trim_end_matches('0') {
        "" => format!("{date}{zone}"),
        fraction => format!("{date}.{fraction}{zone}"),
    }
}

fn root_fs(document: &Document) -> Value {
    let kind = document.rootfs.as_ref().map_or("", |rootfs| &rootfs.kind);
    match document.diff_ids() {
        [] => json!({"Type": kind}),
        layers => json!({"Type": kind, "Layers": layers}),
    }
}

/// Where the layers are, in the words of the reference's overlay2 driver.
fn driver_data(store: &Store, image: &Image) -> Option<Map<String, Value>> {
    let numbers = store.lower_numbers(image.top);
    let (top, lower) = numbers.split_first()?;
    let path = |number: &u64, part: &str| store.place().layer(*number).join(part).to_string_lossy().into_owned();
    let mut data = Map::new();
    if !lower.is_empty() {
        data.insert("LowerDir".into(), lower.iter().map(|number| path(number, "diff")).collect::<Vec<_>>().join(":").into());
    }
    for (key, part) in [("MergedDir", "merged"), ("UpperDir", "diff"), ("WorkDir", "work")] {
        data.insert(key.into(), path(top, part).into());
    }
    Some(data)
}

/// The run configuration: since 1.50 what OCI knows of it, with the fields that were never left out; before, the container's shape.
fn image_config(config: Option<&Config>, minor: u16) -> Value {
    let default = Config::default();
    let mut value = json!(config.unwrap_or(&default));
    if let Value::Object(map) = &mut value {
        if minor >= 50 {
            for key in ["Hostname", "Domainname", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce", "Image"] {
                map.remove(key);
            }
        }
        // A container's alone; no image carries them.
        for key in ["NetworkDisabled", "MacAddress", "StopTimeout"] {
            map.remove(key);
        }
    }
    value
}

/// One line of `GET /images/{name}/history`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HistoryItem {
    pub comment: String,
    pub created: i64,
    pub created_by: String,
    pub id: String,
    pub size: u64,
    pub tags: Option<Vec<String>>,
}

/// `GET /images/{name}/history`, newest first.
pub fn history(store: &Store, image: &Image) -> Result<Vec<HistoryItem>> {
    let document = store.document(image.id)?;
    let chains = chain_ids(document.diff_ids());
    let mut layers = chains.iter();
    let mut items = Vec::with_capacity(document.history.len());
    for step in &document.history {
        let size = match step.empty_layer {
            true => 0,
            false => {
                let chain = layers.next().ok_or_else(|| Error::system("too many non-empty layers in History section"))?;
                store.layers.get(*chain).map_or(0, |layer| layer.meta.size)
            }
        };
        items.push(HistoryItem {
            comment: step.comment.clone(),
            created: unix_seconds(step.created.as_deref()).unwrap_or(0),
            created_by: step.created_by.clone(),
            id: "<missing>".into(),
            size,
            tags: None,
        });
    }
    items.reverse();
    // The steps that were images here have ids and names.
    let mut next = Some(image);
    for item in &mut items {
        let Some(image) = next else { break };
        item.id = image.id.to_string();
        let tags: Vec<String> = store.names_of(image.id).filter(|name| name.tag().is_some()).map(Reference::familiar).collect();
        item.tags = (!tags.is_empty()).then_some(tags);
        next = image.extra.parent.and_then(|parent| store.get(parent));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::names::Extra;
    use crate::image::scratch::Scratch;
    use crate::image::support::{add_image, diff, open};

    fn names(store: &Store, filters: &str, all: bool) -> Vec<String> {
        let filters = Filters::parse(filters).unwrap();
        let options = ListOptions { all, shared_size: true, count_users: true, filters: &filters, minor: 51, now_ns: 0 };
        let mut names: Vec<String> = list(store, &[], &options).unwrap().into_iter().map(|s| s.repo_tags.unwrap().join(",")).collect();
        names.sort();
        names
    }

    #[test]
    fn the_list_filters_as_the_reference_does() {
        let scratch = Scratch::new("view-list");
        let mut store = open(&scratch);
        let base = add_image(&mut store, "base", &[diff("a")], Extra::default());
        add_image(&mut store, "top:1", &[diff("a"), diff("b")], Extra { parent: Some(base), ..Extra::default() });
        add_image(&mut store, "lone", &[diff("c")], Extra::default());
        for name in ["base", "lone"] {
            store.untag(&Reference::parse(name).unwrap().or_latest());
        }
        assert_eq!(names(&store, "", false), ["", "top:1"]);
        assert_eq!(names(&store, "", true), ["", "", "top:1"]);
        assert_eq!(names(&store, r#"{"dangling":["true"]}"#, true), [""]);
        assert_eq!(names(&store, r#"{"dangling":["false"]}"#, true), ["top:1"]);
        assert_eq!(names(&store, r#"{"reference":["t*"]}"#, false), ["top:1"]);
        assert_eq!(names(&store, r#"{"label":["x"]}"#, false), Vec::<String>::new());
        assert_eq!(names(&store, r#"{"until":["2024-05-01T12:00:00Z"]}"#, true), Vec::<String>::new());
        assert_eq!(names(&store, r#"{"until":["2024-05-01T12:00:01Z"]}"#, true).len(), 3);
        let filters = Filters::default();
        let old = ListOptions { all: false, shared_size: true, count_users: false, filters: &filters, minor: 40, now_ns: 0 };
        let old = list(&store, &[], &old).unwrap();
        let lone = old.iter().find(|s| s.repo_tags == Some(vec!["<none>:<none>".into()])).unwrap();
        assert_eq!((lone.virtual_size, lone.shared_size, lone.containers), (Some(10), 0, -1));
        assert_eq!(old.iter().find(|s| s.size == 20).unwrap().shared_size, 10);
    }

    #[test]
    fn inspect_speaks_each_version() {
        let scratch = Scratch::new("view-inspect");
        let mut store = open(&scratch);
        let id = add_image(&mut store, "x", &[diff("a"), diff("b")], Extra::default());
        let image = store.get(id).unwrap();
        let new = inspect(&store, image, 51).unwrap();
        assert_eq!(new["RepoTags"], json!(["x:latest"]));
        assert_eq!(new["Size"], json!(20));
        assert!(new["Config"].get("Hostname").is_none() && new["Config"]["Cmd"].is_null());
        assert!(new.get("ContainerConfig").is_none() && new.get("VirtualSize").is_none());
        assert!(new["GraphDriver"]["Data"]["LowerDir"].as_str().unwrap().ends_with("/layers/1/diff"));
        let old = inspect(&store, image, 43).unwrap();
        assert_eq!((&old["Config"]["Hostname"], &old["VirtualSize"]), (&json!(""), &json!(20)));
        assert!(old["ContainerConfig"].is_object());
        assert_eq!(trimmed("2024-05-01T12:00:00.500Z"), "2024-05-01T12:00:00.5Z");
        assert_eq!(trimmed("2024-05-01T12:00:00.000+02:00"), "2024-05-01T12:00:00+02:00");
    }
}
