//! A container's `/etc/hosts`, as the reference's users know it.

use std::fmt::Write;
use std::net::IpAddr;

/// One line: an address and the names it has, separated by spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub address: IpAddr,
    pub names: String,
}

/// The standard lines, then `extra` (ExtraHosts, links), then the container's own addresses.
/// `ipv6` = the container has IPv6; without it no IPv6 line is written.
pub fn render(ipv6: bool, extra: &[Record], own: &[Record]) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n");
    if ipv6 {
        text.push_str(
            "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
             ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
        );
    }
    for record in extra.iter().chain(own) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}\t{}", record.address, record.names);
    }
    text
}

/// The names of the container's own line: the full name, and the first label where there is a domain.
pub fn own_names(hostname: &str, domainname: &str) -> String {
    let full = if domainname.is_empty() { hostname.to_string() } else { format!("{hostname}.{domainname}") };
    match full.split_once('.') {
        Some((label, _)) => format!("{full} {label}"),
        None => full,
    }
}

/// Adds lines to a file that exists: the container's addresses of a network it was connected to while it ran.
pub fn with_records(mut text: String, records: &[Record]) -> String {
    for record in records {
        let _ = writeln!(text, "{}\t{}", record.address, record.names);
    }
    text
}

/// Removes exactly these lines; everything else, also what the user wrote, stays.
pub fn without_records(text: &str, records: &[Record]) -> String {
    let gone: Vec<String> = records.iter().map(|r| format!("{}\t{}", r.address, r.names)).collect();
    text.lines().filter(|line| !gone.iter().any(|g| g == line)).fold(String::with_capacity(text.len()), |mut kept, line| {
        kept.push_str(line);
        kept.push('\n');
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(address: &str, names: &str) -> Record {
        Record { address: address.parse().unwrap(), names: names.into() }
    }

    #[test]
    fn lines_are_the_references() {
        let text = render(true, &[record("10.0.0.9", "db")], &[record("172.17.0.2", &own_names("web", "example.com"))]);
        assert_eq!(
            text,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
             ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n10.0.0.9\tdb\n172.17.0.2\tweb.example.com web\n"
        );
        assert_eq!(render(false, &[], &[record("172.17.0.2", "a")]), "127.0.0.1\tlocalhost\n172.17.0.2\ta\n");
    }

    #[test]
    fn records_come_and_go_and_leave_the_users_lines() {
        let text = with_records("127.0.0.1\tlocalhost\n# mine\n".into(), &[record("10.1.0.2", "web")]);
        assert_eq!(text, "127.0.0.1\tlocalhost\n# mine\n10.1.0.2\tweb\n");
        assert_eq!(without_records(&text, &[record("10.1.0.2", "web")]), "127.0.0.1\tlocalhost\n# mine\n");
    }
}
