//! Sparse maps of tar entries: old GNU blocks, PAX 0.0, 0.1 and 1.0. Holes stay holes: what counts is what is stored.

use super::header::{self, BLOCK, invalid_header};
use crate::error::Result;

/// Most regions of one file; a map of more is refused (tar itself makes one per hole of at least a disk block).
const REGIONS_MAX: usize = 1 << 20;

/// The map of an old GNU sparse entry, read from its header and the blocks that follow.
pub(crate) struct OldMap {
    pub regions: Vec<(u64, u64)>,
    pub real_size: u64,
    pub extended: bool,
}

/// Reads the four regions of a header of type `S`.
pub(crate) fn old_start(block: &[u8; BLOCK]) -> Result<OldMap> {
    let mut map = OldMap { regions: Vec::new(), real_size: header::size(&block[483..495])?, extended: block[482] != 0 };
    map.take(&block[386..482])?;
    Ok(map)
}

impl OldMap {
    /// Reads the 21 regions of a continuation block.
    pub fn extend(&mut self, block: &[u8; BLOCK]) -> Result<()> {
        self.extended = block[504] != 0;
        self.take(&block[..504])
    }

    fn take(&mut self, fields: &[u8]) -> Result<()> {
        for field in fields.chunks_exact(24) {
            let (offset, length) = field.split_at(12);
            if offset[0] == 0 || length[0] == 0 {
                break;
            }
            if self.regions.len() >= REGIONS_MAX {
                return Err(invalid_header());
            }
            self.regions.push((header::size(offset)?, header::size(length)?));
        }
        Ok(())
    }
}

/// The numbers of PAX 0.0 and 0.1 as regions.
pub(crate) fn pairs(numbers: &[u64], count: Option<u64>) -> Result<Vec<(u64, u64)>> {
    let regions: Vec<_> = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    if !numbers.len().is_multiple_of(2) || regions.len() > REGIONS_MAX || count.is_some_and(|n| n != regions.len() as u64) {
        return Err(invalid_header());
    }
    Ok(regions)
}

/// The map of PAX 1.0: decimal lines in whole blocks before the data: count, then offset and length of each.
#[derive(Default)]
pub(crate) struct MapText {
    count: Option<u64>,
    number: Option<u64>,
    offset: Option<u64>,
    pub regions: Vec<(u64, u64)>,
}

impl MapText {
    pub fn complete(&self) -> bool {
        self.count == Some(self.regions.len() as u64)
    }

    pub fn feed(&mut self, block: &[u8; BLOCK]) -> Result<()> {
        for byte in block {
            if self.complete() {
                break; // the rest of this block is padding
            }
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let number = self.number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
                    self.number = Some(number.ok_or_else(invalid_header)?);
                }
                b'\n' => self.line()?,
                _ => return Err(invalid_header()),
            }
        }
        Ok(())
    }

    fn line(&mut self) -> Result<()> {
        let number = self.number.take().ok_or_else(invalid_header)?;
        match (self.count, self.offset.take()) {
            (None, _) if number > REGIONS_MAX as u64 => return Err(invalid_header()),
            (None, _) => self.count = Some(number),
            (Some(_), None) => self.offset = Some(number),
            (Some(_), Some(offset)) => self.regions.push((offset, number)),
        }
        Ok(())
    }
}

/// Refuses regions that overlap, go backwards, pass the file's end, or do not add up to what is stored.
pub(crate) fn checked(regions: Vec<(u64, u64)>, real_size: u64, stored: u64) -> Result<Vec<(u64, u64)>> {
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, length) in &regions {
        if *offset < end {
            return Err(invalid_header());
        }
        end = offset.checked_add(*length).ok_or_else(invalid_header)?;
        sum = sum.checked_add(*length).ok_or_else(invalid_header)?;
    }
    if end > real_size || sum != stored || i64::try_from(real_size).is_err() {
        return Err(invalid_header());
    }
    Ok(regions.into_iter().filter(|(_, length)| *length > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_must_be_orderly_and_add_up() {
        assert_eq!(checked(vec![(0, 2), (10, 0), (10, 5), (100, 0)], 100, 7).unwrap(), vec![(0, 2), (10, 5)]);
        for (regions, size, stored) in
            [(vec![(5, 5), (0, 5)], 10, 10), (vec![(0, 6), (5, 5)], 10, 11), (vec![(0, 11)], 10, 11), (vec![(0, 5)], 10, 4)]
        {
            assert!(checked(regions, size, stored).is_err());
        }
        assert!(checked(vec![(1, u64::MAX)], u64::MAX, u64::MAX).is_err());
        assert!(checked(vec![], 1 << 63, 0).is_err());
    }

    #[test]
    fn text_maps_may_cross_blocks() {
        let mut text = String::from("100\n");
        for i in 0..100 {
            text.push_str(&format!("{}\n{}\n", i * 4096, 512));
        }
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut map = MapText::default();
        for block in bytes.chunks_exact(BLOCK) {
            assert!(!map.complete());
            map.feed(block.try_into().unwrap()).unwrap();
        }
        assert!(map.complete());
        assert_eq!(map.regions[99], (99 * 4096, 512));
        assert!(MapText::default().feed(&[b'\n'; BLOCK]).is_err());
        assert!(MapText::default().feed(&[b'9'; BLOCK]).is_err());
    }
}
