//! Moments as text: RFC 3339 with nanoseconds as the reference prints and reads them, and the timestamps of query parameters.
//!
//! A moment is an `i64` of nanoseconds since 1970 in UTC (years 1678 to 2262).

use crate::error::{Error, Result};

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

/// What Go prints for its zero time; the reference's "never".
pub const ZERO: &str = "0001-01-01T00:00:00Z";

/// `2024-05-01T12:00:00.5Z`: UTC, trailing zeros of the fraction left out (Go's RFC3339Nano).
pub fn rfc3339(ns: i64) -> String {
    let (text, fraction) = (date_time(ns), ns.rem_euclid(SECOND));
    if fraction == 0 {
        return format!("{text}Z");
    }
    let digits = format!("{fraction:09}");
    format!("{text}.{}Z", digits.trim_end_matches('0'))
}

/// `2024-05-01T12:00:00.500000000Z`: always nine digits, as log files and `logs --timestamps` have it.
pub fn rfc3339_fixed(ns: i64) -> String {
    format!("{}.{:09}Z", date_time(ns), ns.rem_euclid(SECOND))
}

fn date_time(ns: i64) -> String {
    let seconds = ns.div_euclid(SECOND);
    let (year, month, day) = civil_from_days(seconds.div_euclid(DAY));
    let second = seconds.rem_euclid(DAY);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Parses RFC 3339 with any fraction and offset; `None` for anything else, and beyond the range of an `i64`.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let (seconds, fraction) = parse_parts(text)?;
    seconds.checked_mul(SECOND)?.checked_add(fraction)
}

/// As [`parse_rfc3339`], for every year: seconds since 1970 and the nanoseconds beyond them.
pub fn parse_parts(text: &str) -> Option<(i64, i64)> {
    let date = text.get(..19)?;
    let bytes = date.as_bytes();
    if bytes[4] != b'-' || bytes[7] != b'-' || !matches!(bytes[10], b'T' | b't') || bytes[13] != b':' || bytes[16] != b':' {
        return None;
    }
    let number = |from: usize, to: usize| digits(&date[from..to]);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let rest = &text[19..];
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
            (nanoseconds(&rest[..end])?, &rest[end..])
        }
        None => (0, rest),
    };
    let seconds = days_from_civil(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset(zone)?;
    Some((seconds, fraction))
}

/// Seconds east of UTC: `Z` or `±hh:mm`.
fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let sign = match zone.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn digits(text: &str) -> Option<i64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// A fraction's digits as nanoseconds; what is finer is cut off.
fn nanoseconds(fraction: &str) -> Option<i64> {
    let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    digits(&nine)
}

fn leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar; years are counted from March, so that the leap day is last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// `since`, `until` and the like: Unix seconds with a fraction, RFC 3339, a shorter date or time, or a Go duration before `now`.
/// Dates without a zone are taken as UTC.
pub fn parse_query(text: &str, now: i64) -> Result<i64> {
    if let Some(ago) = parse_duration(text) {
        return now.checked_sub(ago).ok_or_else(|| out_of_range(text));
    }
    if let Some(moment) = parse_rfc3339(text) {
        return Ok(moment);
    }
    if text.contains(['-', 'T', ':']) && !text.starts_with('-') {
        return parse_short(text).ok_or_else(|| Error::invalid(format!("failed to parse value as time or duration: {text:?}")));
    }
    let (negative, number) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (seconds, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let seconds = digits(seconds).ok_or_else(|| Error::invalid(format!("failed to parse value as time or duration: {text:?}")))?;
    let fraction = nanoseconds(fraction).ok_or_else(|| out_of_range(text))?;
    let ns = seconds.checked_mul(SECOND).and_then(|s| s.checked_add(fraction)).ok_or_else(|| out_of_range(text))?;
    Ok(if negative { -ns } else { ns })
}

fn out_of_range(text: &str) -> Error {
    Error::invalid(format!("time out of range: {text:?}"))
}

/// `2006-01-02`, `2006-01-02T15`, `…:04`, `…:05`, `….999999999`, each with or without a zone.
fn parse_short(text: &str) -> Option<i64> {
    let (date, time) = text.split_once('T').unwrap_or((text, ""));
    let zone_at = if time.ends_with('Z') { Some(time.len() - 1) } else { time.find(['+', '-']) };
    let (time, zone) = time.split_at(zone_at.unwrap_or(time.len()));
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    let clock = match clock.len() {
        0 if text.contains('T') => return None,
        0 => "00:00:00".to_owned(),
        2 => format!("{clock}:00:00"),
        5 => format!("{clock}:00"),
        _ => clock.to_owned(),
    };
    let dot = if fraction.is_empty() { "" } else { "." };
    parse_rfc3339(&format!("{date}T{clock}{dot}{fraction}{}", if zone.is_empty() { "Z" } else { zone }))
}

/// Go's duration syntax in nanoseconds: `1h30m`, `1.5s`, `-2ms`, `0`. `None` when it is none.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_ends);
        let unit_ends = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_ends);
        let unit: i64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3600 * SECOND,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole = if whole.is_empty() { 0 } else { digits(whole)? };
        let fraction = if fraction.is_empty() { 0 } else { i128::from(nanoseconds(fraction)?) * i128::from(unit) / i128::from(SECOND) };
        total = total.checked_add(whole.checked_mul(unit)?)?.checked_add(i64::try_from(fraction).ok()?)?;
        rest = tail;
    }
    Some(if negative { -total } else { total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_moments() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (1_714_564_800_500_000_000, "2024-05-01T12:00:00.5Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ];
        for (ns, text) in table {
            assert_eq!(rfc3339(ns), text);
            assert_eq!(parse_rfc3339(text), Some(ns));
        }
        assert_eq!(parse_parts(ZERO), Some((-62_135_596_800, 0)));
        assert_eq!(rfc3339_fixed(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(parse_rfc3339("2024-05-01T14:00:00+02:00"), parse_rfc3339("2024-05-01T12:00:00Z"));
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in -146_097..146_097 {
            let (y, m, d) = civil_from_days(day);
            assert_eq!(days_from_civil(y, m, d), day);
        }
    }

    #[test]
    fn refuses_what_is_no_moment() {
        for text in [
            "",
            "2024",
            "2024-02-30T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01 00:00:00Z",
            ZERO,
            "2024-01-01T00:00:00+2:00",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn query_parameters() {
        let now = 1_714_564_800 * SECOND;
        let table = [
            ("1714564800", now),
            ("1714564800.000000001", now + 1),
            ("10m", now - 600 * SECOND),
            ("1h30m", now - 5400 * SECOND),
            ("2024-05-01T12:00:00Z", now),
            ("2024-05-01T12:00", now),
            ("2024-05-01", now - 12 * 3600 * SECOND),
            ("2024-05-01T14:00:00+02:00", now),
            ("2024-05-01T14+02:00", now),
        ];
        for (text, expected) in table {
            assert_eq!(parse_query(text, now).unwrap(), expected, "{text}");
        }
        for text in ["", "yesterday", "2024-13-01", "99999999999999999999", "10x", "1.x"] {
            assert!(parse_query(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1.5s"), Some(1_500_000_000));
        assert_eq!(parse_duration("-2ms"), Some(-2_000_000));
        assert_eq!(parse_duration(".5s"), Some(500_000_000));
        for text in ["", "-", "1", "s", "1s2", "9999999h", "."] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
