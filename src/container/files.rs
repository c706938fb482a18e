//! The files of this host that a container sees as /etc/hostname, /etc/hosts and /etc/resolv.conf.

use super::record::Record;
use crate::daemon::options::Options;
use crate::error::{Error, Result};
use crate::network::hosts;
use crate::network::resolv_conf::{MAX_FILE, Overrides, ResolvConf};
use std::io::Read;
use std::path::Path;

/// Writes them for a start, as far as the container's network has not written its own.
pub fn write_names(dir: &Path, record: &Record, options: &Options) -> Result<()> {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|e| Error::io(format!("write {}", path.display()), &e))
    };
    write("hostname", &format!("{}\n", record.config.hostname))?;
    let extra = extra_hosts(record);
    if record.host.network_mode == "host" {
        // As the reference: the host's own names, and what was asked for.
        let mut text = read_bounded("/etc/hosts");
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        write("hosts", &hosts::with_records(text, &extra))?;
    } else {
        write("hosts", &hosts::render(true, &extra, &[]))?;
    }
    write("resolv.conf", &resolv_conf(record, options).render())
}

/// The host's resolv.conf with the container's and the daemon's overrides.
pub fn resolv_conf(record: &Record, options: &Options) -> ResolvConf {
    let mut conf = ResolvConf::parse(&read_bounded("/etc/resolv.conf"), "/etc/resolv.conf");
    let either = |own: &Option<Vec<String>>, flag: &str| match own {
        Some(list) if !list.is_empty() => list.clone(),
        _ => options.list(flag).to_vec(),
    };
    conf.apply(&Overrides {
        servers: either(&record.host.dns, "dns"),
        search: either(&record.host.dns_search, "dns-search"),
        options: either(&record.host.dns_options, "dns-opt"),
    });
    conf
}

/// ExtraHosts as lines; `host-gateway` is filled in by the network that knows it.
pub fn extra_hosts(record: &Record) -> Vec<hosts::Record> {
    let pairs = record.host.extra_hosts.iter().flatten().filter_map(|extra| extra.split_once([':', '=']));
    pairs
        .filter_map(|(name, address)| {
            Some(hosts::Record { address: address.trim_matches(['[', ']']).parse().ok()?, names: name.to_string() })
        })
        .collect()
}

/// A file of the host, at most [`MAX_FILE`] bytes; "" when it is not there.
fn read_bounded(path: &str) -> String {
    let Ok(file) = std::fs::File::open(path) else { return String::new() };
    let mut bytes = Vec::new();
    match file.take(MAX_FILE as u64).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}
