//! An IP address with a prefix length: subnets, ranges, interface addresses; and the arithmetic on them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// `address/length`; the address may have host bits (an interface's address) or not (a subnet, see [`Prefix::masked`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    pub address: IpAddr,
    /// Bits, at most 32 or 128.
    pub length: u8,
}

impl Prefix {
    pub fn new(address: IpAddr, length: u8) -> Prefix {
        Prefix { address, length: length.min(width(address)) }
    }

    pub fn is_v4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Without host bits.
    pub fn masked(&self) -> Prefix {
        Prefix { address: from_bits(self.is_v4(), bits(self.address) & !self.host_mask()), length: self.length }
    }

    /// The bits that number the hosts, all set.
    fn host_mask(&self) -> u128 {
        let host_bits = u32::from(width(self.address) - self.length);
        1u128.checked_shl(host_bits).map_or(u128::MAX, |n| n - 1)
    }

    pub fn first(&self) -> IpAddr {
        self.masked().address
    }

    pub fn last(&self) -> IpAddr {
        from_bits(self.is_v4(), bits(self.address) | self.host_mask())
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_v4() && (bits(address) ^ bits(self.address)) & !self.host_mask() == 0
    }

    pub fn overlaps(&self, other: &Prefix) -> bool {
        self.contains(other.first()) || other.contains(self.first())
    }

    /// The next prefix of `length` bits after this one; `None` at the end of the address space.
    pub fn next(&self, length: u8) -> Option<Prefix> {
        let (start, width) = (bits(self.last()).checked_add(1)?, width(self.address));
        let step = Prefix { address: self.address, length }.host_mask();
        let aligned = start.checked_add(step)? & !step;
        (width == 128 || aligned <= u128::from(u32::MAX)).then(|| Prefix { address: from_bits(width == 32, aligned), length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = ();

    /// CIDR notation, strictly: a plain decimal length without sign or leading zeros.
    fn from_str(text: &str) -> Result<Prefix, ()> {
        let (address, length) = text.split_once('/').ok_or(())?;
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let plain = length.bytes().all(|b| b.is_ascii_digit()) && (length.len() == 1 || !length.starts_with('0'));
        let length: u8 = length.parse().map_err(|_| ())?;
        if plain && length <= width(address) { Ok(Prefix { address, length }) } else { Err(()) }
    }
}

impl serde::Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Prefix, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom(format!("invalid CIDR {text:?}")))
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address as a number.
pub fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The number as an address; IPv4 takes the low 32 bits.
pub fn from_bits(v4: bool, bits: u128) -> IpAddr {
    if v4 { Ipv4Addr::from(u32::try_from(bits & 0xffff_ffff).unwrap_or(0)).into() } else { Ipv6Addr::from(bits).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn only_plain_cidr_is_read() {
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/08", "10.0.0/8", "::/129", "/8", "10.0.0.0/", "x/8"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        assert_eq!(p("fd00::1/64").to_string(), "fd00::1/64");
    }

    #[test]
    fn arithmetic_at_the_edges() {
        assert_eq!(p("172.17.3.4/16").masked(), p("172.17.0.0/16"));
        assert_eq!(p("172.17.3.4/16").last(), IpAddr::from([172, 17, 255, 255]));
        assert_eq!(p("0.0.0.0/0").last(), IpAddr::from([255; 4]));
        assert_eq!(p("::/0").last(), IpAddr::from([0xff; 16]));
        assert_eq!(p("172.17.0.0/16").next(20), Some(p("172.18.0.0/20")));
        assert_eq!(p("10.0.0.128/25").next(16), Some(p("10.1.0.0/16")));
        assert_eq!(p("255.255.0.0/16").next(16), None);
        assert_eq!(p("::/0").next(64), None);
        assert!(p("10.0.0.0/8").overlaps(&p("10.9.0.0/16")) && p("10.9.0.0/16").overlaps(&p("10.0.0.0/8")));
        assert!(!p("10.0.0.0/8").overlaps(&p("11.0.0.0/8")) && !p("0.0.0.0/0").overlaps(&p("::/0")));
    }
}
