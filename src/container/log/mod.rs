//! Container logs: splitting streams into messages, writing them by driver, reading them back.

pub mod entry;
pub mod follow;
pub mod json_file;
pub mod read;
pub mod split;

/// Which of a container's streams bytes came from. The numbers are those of the multiplexed stream's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout = 1,
    Stderr = 2,
}

impl Stream {
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    /// The header of one frame of the multiplexed stream: stream number, three zeros, length (big-endian).
    pub fn frame(self, length: usize) -> [u8; 8] {
        let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        [self as u8, 0, 0, 0, a, b, c, d]
    }
}
