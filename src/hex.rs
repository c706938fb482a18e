//! Hexadecimal text, and identifiers made of it.

use std::io;

/// Lower-case hexadecimal.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// A new random identifier of 64 digits. Its first twelve are never all decimal: as a host name that would read as a
/// number (the reference draws again, too).
pub fn random_id() -> io::Result<String> {
    loop {
        let mut bytes = [0; 32];
        crate::sys::security::getrandom(&mut bytes)?;
        let id = encode(&bytes);
        if !id.as_bytes()[..12].iter().all(u8::is_ascii_digit) {
            return Ok(id);
        }
    }
}

/// Whether `text` may be an identifier or a prefix of one.
pub fn is_id_prefix(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    #[test]
    fn encodes() {
        assert_eq!(super::encode(&[0, 0xa5, 0xff]), "00a5ff");
        assert_eq!(super::random_id().unwrap().len(), 64);
    }
}
