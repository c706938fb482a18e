//! The lines of Docker's JSON stream for pull and push, byte for byte as its clients expect them.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

/// One message; fields in the reference's order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Line {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stream: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub progress: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<Box<RawValue>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Detail {
    /// Bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// Bytes; 0 when not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// "Pulling from library/busybox", "Digest: …": a message of the whole, or of `id` when there is one.
pub fn status(id: &str, text: impl Into<String>) -> Line {
    Line { status: text.into(), id: id.into(), ..Line::default() }
}

/// "Pulling fs layer", "Pull complete": what happens to one layer.
pub fn layer(id: &str, action: &str) -> Line {
    Line { status: action.into(), detail: Some(Detail::default()), id: id.into(), ..Line::default() }
}

/// "Downloading", "Extracting", "Pushing" with its bar.
pub fn bar(id: &str, action: &str, current: u64, total: u64) -> Line {
    Line {
        status: action.into(),
        detail: Some(Detail { current, total }),
        progress: bar_text(current, total),
        id: id.into(),
        ..Line::default()
    }
}

/// A result for programs: push's tag, digest and size.
pub fn aux(value: &impl Serialize) -> Line {
    // The reference prints an empty progressDetail with it.
    Line { detail: Some(Detail::default()), aux: to_raw_value(value).ok(), ..Line::default() }
}

/// The bar as the reference draws it for a terminal of unknown width.
fn bar_text(current: u64, total: u64) -> String {
    match (current, total) {
        (0, 0) => String::new(),
        (current, 0) => format!("{:>8}", human_size(current)),
        (current, total) => {
            let filled = usize::try_from(u128::from(current) * 100 / u128::from(total) / 2).unwrap_or(50).min(50);
            let bar = format!("[{}>{}] ", "=".repeat(filled), " ".repeat(50 - filled));
            match current > total {
                true => format!("{bar}{:>8}", human_size(current)),
                false => format!("{bar}{:>8}/{}", human_size(current), human_size(total)),
            }
        }
    }
}

/// Bytes in units of 1000 with four significant digits ("1.234MB"), as go-units prints them.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    #[allow(clippy::cast_precision_loss)] // four digits are shown
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    let mut text = four_digits(size);
    // Rounding may reach the next unit's start; Go's %g then prints it with an exponent.
    if text == "1000" && unit > 0 {
        text = "1e+03".into();
    }
    format!("{text}{}", UNITS[unit])
}

/// Go's `%.4g` for 0 ≤ n < 1000.5.
fn four_digits(n: f64) -> String {
    let whole_digits = match n {
        n if n >= 100.0 => 3,
        n if n >= 10.0 => 2,
        _ => 1,
    };
    let text = format!("{n:.*}", 4 - whole_digits);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(line: &Line) -> String {
        serde_json::to_string(line).unwrap()
    }

    #[test]
    fn lines_have_the_reference_s_shape() {
        assert_eq!(json(&status("latest", "Pulling from library/busybox")), r#"{"status":"Pulling from library/busybox","id":"latest"}"#);
        assert_eq!(json(&status("", "Digest: x")), r#"{"status":"Digest: x"}"#);
        assert_eq!(json(&layer("ab", "Pull complete")), r#"{"status":"Pull complete","progressDetail":{},"id":"ab"}"#);
        assert_eq!(
            json(&bar("ab", "Downloading", 720_896, 2_158_412)),
            "{\"status\":\"Downloading\",\"progressDetail\":{\"current\":720896,\"total\":2158412},\"progress\":\"[================>                                  ]  720.9kB/2.158MB\",\"id\":\"ab\"}"
        );
        assert_eq!(json(&aux(&serde_json::json!({"Size": 5}))), r#"{"progressDetail":{},"aux":{"Size":5}}"#);
    }

    #[test]
    fn sizes_have_four_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (5, "5B"),
            (999, "999B"),
            (1000, "1kB"),
            (1024, "1.024kB"),
            (123_456, "123.5kB"),
            (2_158_412, "2.158MB"),
            (32, "32B"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }

    #[test]
    fn bars_at_the_edges() {
        assert_eq!(bar_text(0, 0), "");
        assert_eq!(bar_text(5, 0), "      5B");
        assert_eq!(bar_text(10, 10), format!("[{}>]      10B/10B", "=".repeat(50)));
        assert_eq!(bar_text(20, 10), format!("[{}>]      20B", "=".repeat(50)));
    }
}
