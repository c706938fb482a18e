//! The processes of a container: our own reader of /proc for the default columns, the host's `ps` for any others.

use crate::error::{Error, Result};
use crate::http::Response;
use crate::sys;
use crate::worker::Job;
use serde_json::json;
use std::collections::HashMap;

/// USER_HZ: what /proc counts in, on every architecture that Linux runs containers on.
const TICKS: u64 = 100;

/// Refuses what could be more than a choice of columns.
pub fn check_arguments(arguments: &str) -> Result<Vec<String>> {
    let words: Vec<String> = arguments.split_whitespace().map(str::to_string).collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ',' | '=' | '%' | '+' | ':' | '_');
    if arguments.len() > 1024 || words.iter().any(|word| !word.chars().all(plain)) {
        return Err(Error::invalid(format!("invalid ps arguments: {arguments:?}")));
    }
    Ok(words)
}

/// The worker's job: `pids` as the host numbers them.
pub fn job(pids: Vec<i32>, arguments: Vec<String>) -> Job {
    Job::new("top", move |context| {
        let (titles, processes) = if arguments == ["-ef"] { own_table(&pids) } else { by_ps(&pids, &arguments)? };
        context.respond(&Response::json(200, &json!({"Titles": titles, "Processes": processes})))
    })
}

type Table = (Vec<String>, Vec<Vec<String>>);

fn own_table(pids: &[i32]) -> Table {
    let titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(str::to_string).to_vec();
    let users = users();
    let boot = boot_seconds();
    let now = sys::time::realtime_ns() / 1_000_000_000;
    (titles, pids.iter().filter_map(|pid| row(*pid, &users, boot, now)).collect())
}

fn users() -> HashMap<u32, String> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        Some((fields.get(2)?.parse().ok()?, fields.first()?.to_string()))
    };
    text.lines().filter_map(entry).collect()
}

fn boot_seconds() -> i64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0)
}

fn row(pid: i32, users: &HashMap<u32, String>, boot: i64, now: i64) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    // The name in brackets may contain anything: fields are counted from its last bracket.
    let (head, tail) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |n: usize| fields.get(n).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let uid: u32 = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())?;
    let user = users.get(&uid).cloned().unwrap_or_else(|| uid.to_string());
    let cpu_seconds = (number(11) + number(12)) / TICKS;
    let start = boot + i64::try_from(number(19) / TICKS).ok()?;
    let age = (now - start).max(1);
    let percent = (i64::try_from(cpu_seconds).ok()? * 100 / age).min(99);
    let clock = crate::timestamp::rfc3339(start * 1_000_000_000);
    let stime = if age < 86_400 { clock.get(11..16)?.to_string() } else { clock.get(5..10)?.to_string() };
    let terminal = match number(4) {
        0 => "?".to_string(),
        device if device >> 8 & 0xfff == 136 => format!("pts/{}", device & 0xff),
        device => format!("{}:{}", device >> 8 & 0xfff, device & 0xff),
    };
    let time = format!("{:02}:{:02}:{:02}", cpu_seconds / 3600, cpu_seconds / 60 % 60, cpu_seconds % 60);
    let words: Vec<String> =
        command.split(|b| *b == 0).filter(|word| !word.is_empty()).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let shown = if words.is_empty() { format!("[{}]", head.split_once('(').map_or("?", |(_, name)| name)) } else { words.join(" ") };
    Some(vec![user, pid.to_string(), fields.get(1)?.to_string(), percent.to_string(), stime, terminal, time, shown])
}

/// The host's ps, of which the lines of our processes are kept.
fn by_ps(pids: &[i32], arguments: &[String]) -> Result<Table> {
    let run = |arguments: &[String]| std::process::Command::new("ps").args(arguments).output();
    let list = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    // Asked for our processes only; a ps that does not take that is asked for all.
    let mut narrow = arguments.to_vec();
    narrow.push(format!("-q{list}"));
    let output = match run(&narrow) {
        Ok(output) if output.status.success() => output,
        _ => run(arguments).map_err(|e| Error::io("error running ps", &e))?,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::system(format!("error running ps: {}", said.lines().next().unwrap_or("it failed"))));
    }
    parse(&String::from_utf8_lossy(&output.stdout), pids)
}

fn parse(text: &str, pids: &[i32]) -> Result<Table> {
    let mut lines = text.lines();
    let titles: Vec<String> = lines.next().unwrap_or_default().split_whitespace().map(str::to_string).collect();
    let Some(pid_at) = titles.iter().position(|title| title == "PID") else {
        return Err(Error::system("Couldn't find PID field in ps output"));
    };
    let mut processes = Vec::new();
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let pid: i32 =
            words.get(pid_at).and_then(|word| word.parse().ok()).ok_or_else(|| Error::system(format!("Unexpected pid '{line}'")))?;
        if !pids.contains(&pid) {
            continue;
        }
        // The last column may contain blanks.
        let (columns, rest) = words.split_at(words.len().min(titles.len().saturating_sub(1)));
        let mut row: Vec<String> = columns.iter().map(|word| word.to_string()).collect();
        row.push(rest.join(" "));
        processes.push(row);
    }
    Ok((titles, processes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ps_output_is_cut_into_columns() {
        let (titles, rows) = parse("  PID TTY CMD\n    1 ?   init a b\n    7 ?   sh\n", &[7, 1]).unwrap();
        assert_eq!(titles, ["PID", "TTY", "CMD"]);
        assert_eq!(rows, [vec!["1", "?", "init a b"], vec!["7", "?", "sh"]]);
        assert!(parse("TTY CMD\n", &[1]).is_err());
        assert!(check_arguments("-o pid;reboot").is_err() && check_arguments("-o pid,cmd").is_ok());
    }

    #[test]
    fn this_process_has_a_row() {
        let (titles, rows) = own_table(&[i32::try_from(std::process::id()).unwrap()]);
        assert_eq!((titles.len(), rows.len(), rows[0].len()), (8, 1, 8));
    }
}
