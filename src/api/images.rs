//! `/images`: list, inspect, history, tag, delete, prune.

use super::image_views::{self, ListOptions};
use super::{Reply, Request};
use crate::container::record::Status;
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::http::Response;
use crate::image::Store;
use crate::image::commit::Commit;
use crate::image::config::Platform;
use crate::image::digest::Digest;
use crate::image::import::Import;
use crate::image::insert::Insert;
use crate::image::load::Load;
use crate::image::reference::Reference;
use crate::image::remove::{self, Record, Removal};
use crate::image::save::Save;
use crate::image::store::Image;
use crate::worker::Job;
use crate::{sys, timestamp};
use serde::Serialize;
use std::collections::BTreeMap;

/// GET /images/json.
pub fn list(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let mut filters = request.filters()?;
    if request.minor < 41 && !request.query.get("filter").is_empty() {
        filters.add("reference", request.query.get("filter"));
    }
    let options = ListOptions {
        all: request.query.flag("all"),
        shared_size: request.minor >= 42 && request.query.flag("shared-size"),
        count_users: request.minor >= 51,
        filters: &filters,
        minor: request.minor,
        now_ns: sys::time::realtime_ns(),
    };
    let users = daemon.image_users();
    Ok(Response::json(200, &image_views::list(&daemon.images, &users, &options)?).into())
}

/// The image of a request's name; with a platform, only if it is for that.
fn find<'a>(store: &'a Store, name: &str, platform: Option<&Platform>) -> Result<&'a Image> {
    let image = store.resolve(name)?;
    match platform {
        Some(wanted) if !wanted.accepts(&image.platform) => {
            let shown = Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar());
            Err(Error::not_found(format!(
                "image with reference {shown} was found but its platform ({}) does not match the specified platform ({wanted})",
                image.platform
            )))
        }
        _ => Ok(image),
    }
}

/// The `platform` parameter of newer versions, a JSON document.
pub(super) fn json_platform(request: &Request, since_minor: u16) -> Result<Option<Platform>> {
    match request.query.get("platform") {
        "" => Ok(None),
        _ if request.minor < since_minor => Ok(None),
        text => Platform::from_json(text).map(Some),
    }
}

/// GET /images/{name}/json.
pub fn inspect(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let platform = json_platform(request, 49)?;
    if platform.is_some() && request.minor >= 48 && request.query.flag("manifests") {
        return Err(Error::invalid("conflicting options: manifests and platform options cannot both be set"));
    }
    let image = find(&daemon.images, request.param(0), platform.as_ref())?;
    Ok(Response::json(200, &image_views::inspect(&daemon.images, image, request.minor)?).into())
}

/// GET /images/{name}/history.
pub fn history(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let platform = json_platform(request, 48)?;
    let image = find(&daemon.images, request.param(0), platform.as_ref())?;
    Ok(Response::json(200, &image_views::history(&daemon.images, image)?).into())
}

/// POST /images/{name}/tag.
pub fn tag(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let reference = Reference::from_repo_and_tag(request.query.get("repo"), request.query.get("tag"))?
        .ok_or_else(|| Error::invalid("repository name must have at least one component"))?;
    let id = daemon.images.resolve(request.param(0))?.id;
    let (conn, minor, familiar) = (request.conn, request.minor, reference.familiar());
    daemon.tag_image(reference, id, move |daemon, tagged| match tagged {
        Ok(_) => {
            daemon.image_event("tag", id, &familiar);
            daemon.respond(conn, &Response::empty(201));
        }
        Err(e) => daemon.fail(conn, &e, minor),
    });
    Ok(Reply::Parked)
}

/// DELETE /images/{name}.
pub fn delete(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let (force, prune) = (request.query.flag("force"), !request.query.flag("noprune"));
    let users = daemon.image_users();
    let removal = remove::remove(&mut daemon.images, request.param(0), force, prune, &users)?;
    let answer = Response::json(200, &removal.records);
    finish_removal(daemon, request, removal, answer);
    Ok(Reply::Parked)
}

/// Publishes what a removal did, sends the rest to be deleted, and answers once the names are durable.
fn finish_removal(daemon: &mut Daemon, request: &Request, removal: Removal, answer: Response) {
    publish(daemon, &removal);
    daemon.sweep_images();
    let (conn, minor) = (request.conn, request.minor);
    daemon.save_refs(move |daemon, written| match written {
        // Images that are gone stay gone: a full disk must not stand in the way of making room.
        Err(e) if !removal.deleted() => {
            for (reference, id) in removal.untagged {
                daemon.images.restore_name(&reference, None, Some(id));
            }
            daemon.fail(conn, &Error::io("write refs.json", &e), minor);
        }
        Err(e) => {
            log::error!("write refs.json: {e}; the names of deleted images are dropped at the next start");
            daemon.respond(conn, &answer);
        }
        Ok(()) => daemon.respond(conn, &answer),
    });
}

fn publish(daemon: &mut Daemon, removal: &Removal) {
    for (action, id) in &removal.events {
        let labels = removal.labels.iter().find(|(gone, _)| gone == id).map(|(_, labels)| labels.clone());
        match labels {
            Some(labels) => daemon.image_event_with(action, *id, &id.to_string(), labels),
            None => daemon.image_event(action, *id, &id.to_string()),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PruneReport {
    images_deleted: Option<Vec<Record>>,
    /// Bytes.
    space_reclaimed: u64,
}

/// POST /images/prune.
pub fn prune(daemon: &mut Daemon, request: &Request) -> Result<Reply> {
    let filters = request.filters()?;
    filters.validate(&["dangling", "label", "label!", "until"])?;
    let dangling_only = filters.boolean("dangling")?.unwrap_or(true);
    let until = match filters.get("until") {
        [] => None,
        [one] => Some(timestamp::parse_query(one, sys::time::realtime_ns())?),
        _ => return Err(Error::invalid("more than one until filter specified")),
    };
    let until = until.map(|ns| (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000)));
    let wanted = |image: &&Image| {
        let labels = image.labels.as_ref();
        (!dangling_only || !image.has_children())
            && (!image.has_children() || daemon.images.names_of(image.id).next().is_some())
            && until.is_none_or(|until| image.created_parts().is_some_and(|created| created <= until))
            && filters.labels("label", labels)
            && !(filters.has("label!") && filters.labels("label!", labels))
    };
    let candidates: Vec<Digest> = daemon.images.images().filter(wanted).map(|image| image.id).collect();
    let users = daemon.image_users();
    let mut total = Removal::default();
    for id in candidates {
        let names: Vec<Reference> = daemon.images.names_of(id).cloned().collect();
        if dangling_only && names.iter().any(|name| name.tag().is_some()) {
            continue;
        }
        let targets = if names.is_empty() { vec![id.hex()] } else { names.iter().map(ToString::to_string).collect() };
        for target in targets {
            // What is in use, or went with another, is simply left out.
            if let Ok(done) = remove::remove(&mut daemon.images, &target, false, true, &users) {
                total.add(done);
            }
        }
    }
    let report =
        PruneReport { space_reclaimed: total.reclaimed, images_deleted: (!total.records.is_empty()).then(|| total.records.clone()) };
    let answer = Response::json(200, &report);
    let attributes = BTreeMap::from([("reclaimed".to_owned(), total.reclaimed.to_string())]);
    if !total.changed() {
        daemon.emit("image", "prune", "", attributes);
        return Ok(answer.into());
    }
    finish_removal(daemon, request, total, answer);
    daemon.emit("image", "prune", "", attributes);
    Ok(Reply::Parked)
}

/// POST /images/create: import with `fromSrc`, pull with `fromImage`.
pub fn create(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let query = &request.query;
    let platform = match query.get("platform") {
        text if request.minor >= 32 && !text.is_empty() => Some(Platform::parse(text)?),
        _ => None,
    };
    if !query.get("fromImage").is_empty() {
        return super::registry::pull(daemon, request, platform);
    }
    let source = query.get("fromSrc").to_owned();
    let message = match query.get("message") {
        "" => format!("Imported from {source}"),
        message => message.to_owned(),
    };
    let changes: Vec<String> = query.all("changes").map(str::to_owned).collect();
    let import = Import::new(daemon.images.place().clone(), query.get("repo"), query.get("tag"), platform, message, &changes)?;
    match &*source {
        "-" => Ok(Job::new("import", |context| import.run_body(context))),
        "" => Err(Error::invalid("fromSrc is required")),
        _ => {
            let settings = super::registry::settings(daemon, request);
            Ok(Job::new("import", move |context| import.run_url(context, &source, settings)))
        }
    }
}

/// POST /images/load.
pub fn load(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let load =
        Load { place: daemon.images.place().clone(), quiet: request.query.flag_or("quiet", true), platform: json_platform(request, 48)? };
    Ok(Job::new("load", |context| load.run(context)))
}

/// GET /images/get and /images/{name}/get.
pub fn save(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let platform = json_platform(request, 48)?;
    let save = match request.param(0) {
        "" => Save::plan(&daemon.images, request.query.all("names"), platform.as_ref())?,
        name => Save::plan(&daemon.images, std::iter::once(name), platform.as_ref())?,
    };
    Ok(Job::new("save", |context| save.run(context)))
}

/// POST /commit.
pub fn commit(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let query = &request.query;
    let reference = Reference::from_repo_and_tag(query.get("repo"), query.get("tag"))?;
    let id = daemon.containers.resolve(query.get("container"))?;
    let container = daemon.containers.find(&id)?;
    match container.record.state.status {
        Status::Dead => return Err(Error::conflict(format!("You cannot commit container {id} which is Dead"))),
        Status::Removing => return Err(Error::conflict(format!("You cannot commit container {id} which is being removed"))),
        _ if container.removing => return Err(Error::conflict(format!("You cannot commit container {id} which is being removed"))),
        _ => {}
    }
    let image = container.record.image.parse()?;
    let commit = Commit {
        place: daemon.images.place().clone(),
        container: id.to_string(),
        upper: daemon.container_dir(&id).join("upper"),
        config: container.record.config.clone(),
        image,
        parent: daemon.images.document(image)?,
        pause: query.get("pause").is_empty() || query.flag("pause"),
        reference,
        author: query.get("author").to_owned(),
        comment: query.get("comment").to_owned(),
        changes: query.all("changes").map(str::to_owned).collect(),
    };
    Ok(Job::new("commit", |context| commit.run(context)))
}

/// POST /images/{name}/insert: of API versions long gone; a new layer with exactly the file that a URL gives.
pub fn insert(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let (path, url) = (request.query.get("path").to_owned(), request.query.get("url").to_owned());
    if path.is_empty() || url.is_empty() {
        return Err(Error::invalid("path and url are required"));
    }
    let settings = super::registry::settings(daemon, request);
    let image = daemon.images.resolve(request.param(0))?;
    let insert = Insert {
        place: daemon.images.place().clone(),
        image: image.id,
        document: daemon.images.document(image.id)?,
        layers: daemon.images.lower_numbers(image.top),
        path,
        url,
        settings,
    };
    Ok(Job::new("insert", |context| insert.run(context)))
}

/// GET /images/viz: the images and what they were made from, for `dot`.
pub fn viz(daemon: &mut Daemon, _: &Request) -> Result<Reply> {
    let mut text = String::from("digraph docker {\n");
    for image in daemon.images.images() {
        let id = image.id.short();
        let edge = match image.extra.parent {
            Some(parent) => format!(" \"{}\" -> \"{id}\"\n", parent.short()),
            None => format!(" base -> \"{id}\" [style=invis]\n"),
        };
        text.push_str(&edge);
        let names: Vec<String> = daemon.images.names_of(image.id).map(Reference::familiar).collect();
        if !names.is_empty() {
            let label = format!("{id}\\n{}", names.join("\\n"));
            text.push_str(&format!(" \"{id}\" [label=\"{label}\",shape=box,fillcolor=\"paleturquoise\",style=\"filled,rounded\"];\n"));
        }
    }
    text.push_str(" base [style=invisible]\n}\n");
    Ok(Response::text(200, &text).into())
}
