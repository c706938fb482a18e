//! `/system/df`: what takes how much of the disk. Counting files is a worker's.

use super::Request;
use super::filters::Filters;
use super::image_views::{self, ListOptions};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::http::Response;
use crate::image::archive::changes::size_of;
use crate::image::work::open_dir;
use crate::sys;
use crate::worker::Job;
use serde_json::{Map, Value, json};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// The kinds of objects that `type` may name.
const KINDS: [&str; 4] = ["container", "image", "volume", "build-cache"];

/// A container or volume with the directory that is to be counted.
struct Counted {
    value: Value,
    dir: PathBuf,
    /// Bytes of the image below a container; users of a volume.
    beside: u64,
}

/// GET /system/df.
pub fn usage(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let asked: Vec<&str> = if request.minor >= 42 { request.query.all("type").collect() } else { Vec::new() };
    if let Some(unknown) = asked.iter().find(|kind| !KINDS.contains(kind)) {
        return Err(Error::invalid(format!("unknown object type: {unknown}")));
    }
    let wanted = |kind: &str| asked.is_empty() || asked.contains(&kind);
    let mut out = Map::new();
    let images = wanted("image").then(|| images(daemon, request.minor)).transpose()?;
    out.insert("LayersSize".into(), json!(if images.is_some() { image_views::layers_size(&daemon.images) } else { 0 }));
    out.insert("Images".into(), images.unwrap_or_default());
    let containers = wanted("container").then(|| containers(daemon, request.minor)).transpose()?;
    let volumes = wanted("volume").then(|| volumes(daemon));
    out.insert("BuildCache".into(), if wanted("build-cache") { json!([]) } else { Value::Null });
    if request.minor < 42 {
        out.insert("BuilderSize".into(), json!(0));
    }
    Ok(Job::new("system df", move |context| {
        out.insert("Containers".into(), containers.map_or(Value::Null, |list| list.into_iter().map(count_container).collect()));
        out.insert("Volumes".into(), volumes.map_or(Value::Null, |list| list.into_iter().map(count_volume).collect()));
        context.respond(&Response::json(200, &out))
    }))
}

fn images(daemon: &Daemon, minor: u16) -> Result<Value> {
    let filters = Filters::default();
    let options =
        ListOptions { all: false, shared_size: true, count_users: true, filters: &filters, minor, now_ns: sys::time::realtime_ns() };
    Ok(json!(image_views::list(&daemon.images, &daemon.image_users(), &options)?))
}

fn containers(daemon: &Daemon, minor: u16) -> Result<Vec<Counted>> {
    let list = daemon.list_containers(&Filters::default(), true, 0, true, minor)?;
    let counted = |value: Value| {
        let id = value["Id"].as_str().unwrap_or_default();
        let top = daemon.containers.get(id).and_then(|container| container.record.top);
        let beside = top.and_then(|top| daemon.images.layers.get(top)).map_or(0, |layer| layer.total_size);
        Counted { dir: daemon.container_dir(id).join("upper"), value, beside }
    };
    Ok(list.into_iter().map(counted).collect())
}

fn volumes(daemon: &Daemon) -> Vec<Counted> {
    let counted = |volume| Counted {
        value: daemon.volumes.to_json(volume),
        dir: daemon.volumes.data(&volume.name),
        beside: users(daemon, &volume.name),
    };
    daemon.volumes.iter().map(counted).collect()
}

fn users(daemon: &Daemon, volume: &str) -> u64 {
    daemon.volume_users(volume, None).len() as u64
}

/// Bytes below a directory; one that is gone by now has none.
fn bytes_in(dir: &Path) -> u64 {
    match open_dir(dir).and_then(|fd| size_of(fd.as_fd())) {
        Ok(bytes) => bytes,
        Err(e) => {
            log::debug!("system df: {}: {e}", dir.display());
            0
        }
    }
}

fn count_container(mut counted: Counted) -> Value {
    let own = bytes_in(&counted.dir);
    if let Value::Object(map) = &mut counted.value {
        map.remove("SizeRw");
        if own > 0 {
            map.insert("SizeRw".into(), json!(own));
        }
        map.insert("SizeRootFs".into(), json!(own + counted.beside));
    }
    counted.value
}

fn count_volume(mut counted: Counted) -> Value {
    let size = bytes_in(&counted.dir);
    if let Value::Object(map) = &mut counted.value {
        map.insert("UsageData".into(), json!({"RefCount": counted.beside, "Size": size}));
    }
    counted.value
}
