//! One stream's bytes as log messages: lines, and pieces of lines that are longer than the buffer.

/// A line's bytes up to which it is one message (the reference's copier buffer).
pub const MAX_MESSAGE: usize = 16 * 1024;

/// Cuts a stream into messages. Holds at most one unfinished line.
#[derive(Debug, Default)]
pub struct Splitter {
    carry: Vec<u8>,
    /// The time of a split line's first piece: all its pieces carry it.
    partial_ns: Option<i64>,
}

/// One message: the text without its newline, whether the line ends here, and its time.
#[derive(Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub text: &'a [u8],
    pub ends_line: bool,
    pub time_ns: i64,
}

impl Splitter {
    /// Feeds bytes that were read at `now_ns`; `log` gets each message.
    pub fn feed(&mut self, mut data: &[u8], now_ns: i64, log: &mut dyn FnMut(Message)) {
        while !data.is_empty() {
            // A message is full at MAX_MESSAGE bytes without a newline among them.
            let room = MAX_MESSAGE - self.carry.len();
            match memchr::memchr(b'\n', &data[..data.len().min(room)]) {
                Some(end) => {
                    let time_ns = self.partial_ns.take().unwrap_or(now_ns);
                    if self.carry.is_empty() {
                        log(Message { text: &data[..end], ends_line: true, time_ns });
                    } else {
                        self.carry.extend_from_slice(&data[..end]);
                        log(Message { text: &self.carry, ends_line: true, time_ns });
                        self.carry.clear();
                    }
                    data = &data[end + 1..];
                }
                None if data.len() >= room => {
                    let time_ns = *self.partial_ns.get_or_insert(now_ns);
                    if self.carry.is_empty() {
                        log(Message { text: &data[..room], ends_line: false, time_ns });
                    } else {
                        self.carry.extend_from_slice(&data[..room]);
                        log(Message { text: &self.carry, ends_line: false, time_ns });
                        self.carry.clear();
                    }
                    data = &data[room..];
                }
                None => {
                    self.carry.extend_from_slice(data);
                    return;
                }
            }
        }
    }

    /// The stream has ended: what is left is a message without a newline.
    pub fn end(&mut self, now_ns: i64, log: &mut dyn FnMut(Message)) {
        if !self.carry.is_empty() {
            log(Message { text: &self.carry, ends_line: false, time_ns: self.partial_ns.unwrap_or(now_ns) });
        }
        *self = Splitter::default();
    }

    /// Bytes that were fed and not yet logged.
    pub fn carried(&self) -> usize {
        self.carry.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let (mut splitter, mut messages) = (Splitter::default(), Vec::new());
        let mut log = |m: Message| messages.push((m.text.to_vec(), m.ends_line));
        for piece in pieces {
            splitter.feed(piece, 1, &mut log);
        }
        splitter.end(2, &mut log);
        messages
    }

    #[test]
    fn lines_are_joined_across_reads() {
        let expected = vec![(b"one".to_vec(), true), (b"two".to_vec(), true), (b"".to_vec(), true), (b"rest".to_vec(), false)];
        assert_eq!(split(&[b"one\ntwo\n\nrest"]), expected);
        assert_eq!(split(&[b"on", b"e\nt", b"wo\n", b"\nre", b"st"]), expected);
    }

    #[test]
    fn long_lines_become_pieces_of_the_buffer_s_size() {
        let line = vec![b'x'; MAX_MESSAGE * 2 + 5];
        let mut whole = line.clone();
        whole.push(b'\n');
        let messages = split(&[&whole[..7], &whole[7..]]);
        let sizes: Vec<_> = messages.iter().map(|(text, ends)| (text.len(), *ends)).collect();
        assert_eq!(sizes, [(MAX_MESSAGE, false), (MAX_MESSAGE, false), (5, true)]);
        assert_eq!(
            split(&[&line[..MAX_MESSAGE], b"\n"]).iter().map(|(t, e)| (t.len(), *e)).collect::<Vec<_>>(),
            [(MAX_MESSAGE, false), (0, true)]
        );
    }
}
