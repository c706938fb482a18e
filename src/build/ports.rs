//! EXPOSE's ports and STOPSIGNAL's names, as the reference's parsers take them.

use crate::error::{Error, Result};

/// The container ports that one word names: "80", "80/udp", "7000-7002", "8080:80".
pub fn exposed(word: &str) -> Result<Vec<String>> {
    let (ports, protocol) = match word.rsplit_once('/') {
        Some((ports, "")) => (ports, "tcp".to_owned()),
        Some((ports, protocol)) => (ports, protocol.to_lowercase()),
        None => (word, "tcp".to_owned()),
    };
    // Host parts are allowed and mean nothing here.
    let container = ports.rsplit(':').next().unwrap_or_default();
    if container.is_empty() {
        return Err(Error::invalid(format!("No port specified: {word}<empty>")));
    }
    let bad = || Error::invalid(format!("Invalid containerPort: {container}"));
    let (first, last) = container.split_once('-').unwrap_or((container, container));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
    if first > last {
        return Err(bad());
    }
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(Error::invalid(format!("Invalid proto: {protocol}")));
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

const SIGNALS: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL", "PROF", "PWR", "QUIT",
    "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// Whether a word names a signal: a number, "SIGTERM", "term", "RTMIN+3".
pub fn is_signal(word: &str) -> bool {
    if let Ok(number) = word.parse::<i64>() {
        return number != 0;
    }
    let name = word.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |rest: &str, sign| rest.is_empty() || rest.strip_prefix(sign).is_some_and(|n| n.parse::<u8>().is_ok_and(|n| n <= 15));
    SIGNALS.contains(&name)
        || name.strip_prefix("RTMIN").is_some_and(|rest| offset(rest, '+'))
        || name.strip_prefix("RTMAX").is_some_and(|rest| offset(rest, '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!(exposed("80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed("8080:80/UDP").unwrap(), ["80/udp"]);
        assert_eq!(exposed("1-3/sctp").unwrap().len(), 3);
        for (word, message) in [
            ("x", "Invalid containerPort: x"),
            ("70000", "Invalid containerPort: 70000"),
            ("3-1", "Invalid containerPort: 3-1"),
            ("80/x", "Invalid proto: x"),
            ("/tcp", "No port specified: /tcp<empty>"),
        ] {
            assert_eq!(exposed(word).unwrap_err().message, message);
        }
    }

    #[test]
    fn signals() {
        assert!(["9", "SIGKILL", "term", "sigrtmin+3", "RTMAX-2"].iter().all(|s| is_signal(s)));
        assert!(!["0", "", "SIGFOO", "RTMIN+99"].iter().any(|s| is_signal(s)));
    }
}
