//! The messages between workers and the daemon. Each area adds its own; unknown or malformed ones end the worker.

use crate::error::Kind;
use crate::image::digest::Digest;
use crate::image::layer::LayerMeta;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// From a worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// The answer's head is on its way to the client: the daemon must not write to it any more.
    HeadSent,
    /// The answer is complete: the client may go, and that is no reason any more to end the worker.
    Answered,
    /// An event to publish.
    Event { kind: String, action: String, id: String, attributes: BTreeMap<String, String> },
    /// About images and layers.
    Image(ImageMessage),
    /// The descriptor that comes along is to be served like a client's connection. [`Answer::Done`].
    Connect,
    /// This container was made for the worker: it goes when the worker does. [`Answer::Done`].
    Owns { container: String },
}

/// What workers say of images; the image store answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum ImageMessage {
    /// Is this layer here, or may I make it? Answered when it is decided ([`Answer::Layer`] or [`Answer::Make`]); a layer
    /// that is here is held until this worker ends.
    ClaimLayer { chain: Digest },
    /// Is there any layer with these bytes, compressed or not, whatever stands below it? [`Answer::Layer`], held; or [`Answer::None`].
    FindLayer { digest: Digest },
    /// A claimed layer is whole, verified and synced under this name in the worker's place in staging. [`Answer::Layer`].
    LayerReady { name: String, meta: LayerMeta },
    /// A layer was seen in this compressed form. Wants no answer.
    LayerKnown { chain: Digest, blob: crate::image::layer::Blob },
    /// An image's document is in the worker's place in staging, and all its layers are here. [`Answer::Done`].
    ImageReady { name: String, id: Digest, parent: Option<Digest>, built: bool },
    /// This image was made from that one. [`Answer::Done`].
    SetParent { id: Digest, parent: Digest },
    /// Names an image; [`Answer::Tagged`] when that is durable. `event`: publish a tag event.
    Tag { reference: String, id: Digest, event: bool },
    /// Publishes an image event with the image's labels; `name` is the attribute of that name.
    Event { action: String, id: Digest, name: String },
    /// A container's files are about to be copied: paused meanwhile, if `pause` and it runs. [`Answer::Done`].
    BeginCommit { container: String, pause: bool },
    /// They are copied; refused when the container is gone, as the copy is then not whole. [`Answer::Done`].
    EndCommit { container: String },
    /// A container was committed: its event. [`Answer::Done`].
    Committed { container: String, id: Digest, reference: String, comment: String },
    /// The image of this name or id: [`Answer::Image`].
    Resolve { name: String },
}

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Done,
    /// No such thing.
    None,
    /// The layer is here.
    Layer {
        number: u64,
        chain: Digest,
        diff: Digest,
    },
    /// The asking worker is to make the layer.
    Make,
    /// Named; `before` had the name until now.
    Tagged {
        before: Option<Digest>,
    },
    /// An image and its layers' directory numbers, bottom first.
    Image {
        id: Digest,
        top: Option<Digest>,
        layers: Vec<u64>,
    },
    Error {
        kind: Kind,
        message: String,
    },
}
