//! Events: the bus, its memory of the last 256, and the streams that follow it.

use super::{ConnId, Daemon, Timer};
use crate::api::filters::Filters;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};

/// How many past events `since` can see, as with the reference.
const REMEMBERED: usize = 256;
/// A subscriber this far behind, in bytes, is dropped.
const MAX_BEHIND: usize = 1 << 20;

pub type SubscriberId = u64;
pub type Attributes = BTreeMap<String, String>;

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: String,
    pub action: String,
    pub id: String,
    pub attributes: Attributes,
    pub time_ns: i64,
}

impl Event {
    /// The API's shape: the new fields, and for containers and images the old `status`, `id`, `from` too.
    fn to_json(&self) -> Value {
        let mut value = json!({
            "Type": self.kind, "Action": self.action,
            "Actor": {"ID": self.id, "Attributes": self.attributes},
            "scope": "local", "time": self.time_ns.div_euclid(1_000_000_000), "timeNano": self.time_ns,
        });
        if let Value::Object(map) = &mut value {
            if self.kind == "container" {
                map.insert("status".into(), json!(self.action));
                map.insert("id".into(), json!(self.id));
                map.insert("from".into(), json!(self.attributes.get("image").cloned().unwrap_or_default()));
            } else if self.kind == "image" {
                map.insert("status".into(), json!(self.action));
                map.insert("id".into(), json!(self.id));
            }
        }
        value
    }

    /// The reference's filter rules: every named filter must match one of its values.
    fn matches(&self, filters: &Filters) -> bool {
        let named = |name: &str, kind: &str| {
            filters.any(name, |want| {
                self.kind == kind && (self.id == *want || self.attributes.get("name") == Some(want) || self.id.starts_with(want.as_str()))
            })
        };
        // "health_status: healthy" and "exec_start: sh" are found by what stands before the colon, too.
        let action = self.action.split(':').next().unwrap_or_default();
        let image = |want: &String| {
            let of = if self.kind == "image" { self.attributes.get("name") } else { self.attributes.get("image") };
            self.kind == "image" && self.id == *want
                || of.is_some_and(|name| name == want || name.rsplit_once(':').is_some_and(|(base, _)| base == want))
        };
        filters.any("event", |want| *want == self.action || want == action)
            && filters.exact("type", &self.kind)
            && filters.exact("scope", "local")
            && named("container", "container")
            && named("plugin", "plugin")
            && named("volume", "volume")
            && named("network", "network")
            && named("daemon", "daemon")
            && filters.any("image", image)
            && filters.labels("label", Some(&self.attributes))
    }
}

struct Subscriber {
    id: SubscriberId,
    conn: ConnId,
    filters: Filters,
    until_ns: Option<i64>,
}

/// The bus.
#[derive(Default)]
pub struct EventBus {
    past: VecDeque<Event>,
    subscribers: Vec<Subscriber>,
    last_ns: i64,
}

impl EventBus {
    pub fn subscriber_count(&self) -> usize {
        self.subscribers.len()
    }
}

fn line(event: &Event) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(&event.to_json()).unwrap_or_default();
    crate::http::response::escape_html(&mut bytes);
    bytes.push(b'\n');
    bytes
}

impl Daemon {
    /// Publishes an event. Times are strictly increasing, so that order survives sorting.
    pub fn emit(&mut self, kind: &str, action: &str, id: &str, attributes: Attributes) {
        let time_ns = crate::sys::time::realtime_ns().max(self.events.last_ns + 1);
        self.events.last_ns = time_ns;
        let event = Event { kind: kind.to_string(), action: action.to_string(), id: id.to_string(), attributes, time_ns };
        log::debug!("event {kind} {action} {id}");
        let bytes = line(&event);
        let (mut behind, mut reached) = (Vec::new(), Vec::new());
        for subscriber in &self.events.subscribers {
            if !event.matches(&subscriber.filters) || subscriber.until_ns.is_some_and(|until| event.time_ns > until) {
                continue;
            }
            if let Some(client) = self.clients.get_mut(&subscriber.conn) {
                client.connection.send(&[&bytes]);
                reached.push(subscriber.conn);
                if client.connection.pending() > MAX_BEHIND {
                    behind.push(subscriber.conn);
                }
            }
        }
        self.touched.extend(reached);
        for conn in behind {
            log::warn!("an event stream is {MAX_BEHIND} bytes behind and is closed");
            self.drop_conn(conn);
        }
        if self.events.past.len() == REMEMBERED {
            self.events.past.pop_front();
        }
        self.events.past.push_back(event);
    }

    /// Turns a parked connection into an event stream: what is remembered since `since_ns`, then what comes, until `until_ns`.
    pub fn follow_events(&mut self, conn: ConnId, filters: Filters, since_ns: Option<i64>, until_ns: Option<i64>) {
        let now = crate::sys::time::realtime_ns();
        let Some(client) = self.clients.get_mut(&conn) else { return };
        client.connection.start_stream(200, &[("Content-Type".into(), "application/json".into())]);
        if let Some(since) = since_ns {
            for event in self.events.past.iter().filter(|e| e.time_ns >= since && until_ns.is_none_or(|until| e.time_ns <= until)) {
                if event.matches(&filters) {
                    client.connection.send(&[&line(event)]);
                }
            }
        }
        if until_ns.is_some_and(|until| until <= now) {
            let now_ms = self.now_ms();
            self.with_conn(conn, |connection| connection.finish_stream(now_ms));
            return;
        }
        let id = self.unique();
        self.events.subscribers.push(Subscriber { id, conn, filters, until_ns });
        self.touched.push(conn);
        if let Some(until) = until_ns {
            let wait_ms = u64::try_from((until - now) / 1_000_000 + 1).unwrap_or(0);
            self.after(wait_ms, Timer::EventsUntil(id));
        }
    }

    pub(super) fn end_events(&mut self, id: SubscriberId) {
        if let Some(at) = self.events.subscribers.iter().position(|s| s.id == id) {
            let conn = self.events.subscribers.swap_remove(at).conn;
            let now_ms = self.now_ms();
            self.with_conn(conn, |connection| connection.finish_stream(now_ms));
        }
    }

    pub(super) fn forget_subscriber(&mut self, conn: ConnId) {
        self.events.subscribers.retain(|s| s.conn != conn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, action: &str, name: &str) -> Event {
        let attributes =
            Attributes::from([("name".into(), name.into()), ("image".into(), "busybox:latest".into()), ("l".into(), "v".into())]);
        Event { kind: kind.into(), action: action.into(), id: "0123abcd".into(), attributes, time_ns: 1 }
    }

    #[test]
    fn filters_select_as_the_reference_does() {
        let cases = [
            (r#"{"type":["container"]}"#, true),
            (r#"{"type":["image"]}"#, false),
            (r#"{"container":["web"]}"#, true),
            (r#"{"container":["0123"]}"#, true),
            (r#"{"container":["other"]}"#, false),
            (r#"{"event":["exec_start"]}"#, true),
            (r#"{"image":["busybox"]}"#, true),
            (r#"{"image":["busybox:latest"],"label":["l=v"]}"#, true),
            (r#"{"label":["l=w"]}"#, false),
            (r#"{"network":["web"]}"#, false),
        ];
        for (filters, expected) in cases {
            let filters = Filters::parse(filters).unwrap();
            assert_eq!(event("container", "exec_start: sh", "web").matches(&filters), expected, "{filters:?}");
        }
    }
}
