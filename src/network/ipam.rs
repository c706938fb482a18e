//! Addresses: which subnets are taken, which addresses in them, and the default pools a new network is cut from.
//!
//! Nothing here is saved: it follows from the networks and the endpoints of living containers, and is rebuilt from them.

use super::prefix::{Prefix, bits, from_bits};
use crate::error::{Error, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A pool that networks without a subnet of their own are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultPool {
    pub base: Prefix,
    /// Prefix length of each network cut from it, in bits.
    pub size: u8,
}

/// The reference's own pools for local networks.
pub fn default_pools() -> Vec<DefaultPool> {
    let v4 = |a: u8, b: u8, length: u8, size: u8| DefaultPool { base: Prefix::new(IpAddr::from([a, b, 0, 0]), length), size };
    let mut pools: Vec<DefaultPool> = (17..20).map(|b| v4(172, b, 16, 16)).collect();
    pools.extend([v4(172, 20, 14, 16), v4(172, 24, 14, 16), v4(172, 28, 14, 16), v4(192, 168, 16, 20)]);
    pools
}

/// The pool for IPv6: a /48 of the unique local range that only this machine derives (RFC 4193), cut into /64.
pub fn unique_local_pool(machine: &[u8]) -> DefaultPool {
    let digest = ring::digest::digest(&ring::digest::SHA256, machine);
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&digest.as_ref()[..5]);
    DefaultPool { base: Prefix::new(IpAddr::from(octets), 48), size: 64 }
}

/// One subnet in use.
#[derive(Clone, Debug, Default)]
struct Pool {
    taken: BTreeSet<u128>,
    /// Ranges of the networks that share the subnet (only networks with a range may share).
    ranges: Vec<Option<Prefix>>,
}

/// All subnets in use, both families.
#[derive(Clone, Debug)]
pub struct Addresses {
    pools: BTreeMap<Prefix, Pool>,
    defaults: Vec<DefaultPool>,
}

impl Addresses {
    pub fn new(mut defaults: Vec<DefaultPool>) -> Addresses {
        defaults.sort_by_key(|pool| pool.base);
        // A pool inside an earlier one would be handed out twice.
        let mut kept: Vec<DefaultPool> = Vec::new();
        for pool in defaults {
            if !kept.iter().any(|k| k.base.overlaps(&pool.base)) {
                kept.push(pool);
            }
        }
        Addresses { pools: BTreeMap::new(), defaults: kept }
    }

    /// The configured default pools, as `/info` lists them.
    pub fn defaults(&self) -> &[DefaultPool] {
        &self.defaults
    }

    /// Takes a subnet that the client chose. Two networks may share one subnet only where each has its own range (macvlan).
    pub fn claim_subnet(&mut self, subnet: Prefix, range: Option<Prefix>) -> Result<()> {
        let subnet = subnet.masked();
        let shared =
            range.is_some() && self.pools.get(&subnet).is_some_and(|pool| !pool.ranges.contains(&None) && !pool.ranges.contains(&range));
        if !shared && self.pools.keys().any(|taken| taken.overlaps(&subnet)) {
            return Err(Error::forbidden("invalid pool request: Pool overlaps with other one on this address space"));
        }
        self.pools.entry(subnet).or_insert_with(|| Pool::of(subnet)).ranges.push(range);
        Ok(())
    }

    /// Takes the next free subnet of the default pools that touches none of `reserved` (the host's routes and name servers).
    pub fn claim_default(&mut self, v4: bool, reserved: &[Prefix]) -> Result<Prefix> {
        let free = self.defaults.iter().filter(|pool| pool.base.is_v4() == v4).find_map(|pool| self.first_free(pool, reserved));
        let Some(subnet) = free else {
            return Err(Error::invalid("all predefined address pools have been fully subnetted"));
        };
        self.pools.entry(subnet).or_insert_with(|| Pool::of(subnet)).ranges.push(None);
        Ok(subnet)
    }

    /// Jumps over what is in the way instead of trying each candidate: a /48 has 65,536 of them.
    fn first_free(&self, pool: &DefaultPool, reserved: &[Prefix]) -> Option<Prefix> {
        let mut candidate = Prefix::new(pool.base.first(), pool.size);
        loop {
            if !pool.base.overlaps(&candidate) {
                return None;
            }
            let obstacle = self.pools.keys().chain(reserved).filter(|p| p.overlaps(&candidate)).max_by_key(|p| bits(p.last()));
            candidate = match obstacle {
                None => return Some(candidate),
                Some(obstacle) if obstacle.length < candidate.length => obstacle.next(pool.size)?,
                Some(_) => candidate.next(pool.size)?,
            };
        }
    }

    /// Gives a subnet back; its addresses go with its last user.
    pub fn release_subnet(&mut self, subnet: Prefix, range: Option<Prefix>) {
        let subnet = subnet.masked();
        if let Some(pool) = self.pools.get_mut(&subnet) {
            if let Some(at) = pool.ranges.iter().position(|r| *r == range) {
                pool.ranges.swap_remove(at);
            }
            if pool.ranges.is_empty() {
                self.pools.remove(&subnet);
            }
        }
    }

    /// Takes the wanted address, or the first free one (of the range, where there is one).
    pub fn claim(&mut self, subnet: Prefix, range: Option<Prefix>, wanted: Option<IpAddr>) -> Result<IpAddr> {
        let subnet = subnet.masked();
        let pool = self.pools.get_mut(&subnet).ok_or_else(|| Error::not_found(format!("cannot find address pool for poolID:{subnet}")))?;
        if let Some(wanted) = wanted {
            if !subnet.contains(wanted) {
                return Err(Error::invalid("Requested address is out of range"));
            }
            return if pool.taken.insert(bits(wanted)) { Ok(wanted) } else { Err(Error::forbidden("Address already in use")) };
        }
        let within = range.unwrap_or(subnet);
        let mut free = bits(within.first());
        for taken in pool.taken.range(free..) {
            if *taken != free {
                break;
            }
            match free.checked_add(1) {
                Some(next) => free = next,
                None => return Err(exhausted()),
            }
        }
        if free > bits(within.last()) {
            return Err(exhausted());
        }
        pool.taken.insert(free);
        Ok(from_bits(subnet.is_v4(), free))
    }

    /// Gives an address back; unknown ones are ignored.
    pub fn release(&mut self, subnet: Prefix, address: IpAddr) {
        if let Some(pool) = self.pools.get_mut(&subnet.masked()) {
            pool.taken.remove(&bits(address));
        }
    }
}

impl Pool {
    /// A new subnet, with the network's own address and IPv4's broadcast address set aside (not in a /31: RFC 3021).
    fn of(subnet: Prefix) -> Pool {
        let mut pool = Pool::default();
        let point_to_point = subnet.is_v4() && subnet.length >= 31;
        if !point_to_point {
            pool.taken.insert(bits(subnet.first()));
        }
        if subnet.is_v4() && !point_to_point {
            pool.taken.insert(bits(subnet.last()));
        }
        pool
    }
}

fn exhausted() -> Error {
    Error::new(Kind::Unavailable, "no available addresses on this pool")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }
    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn default_pools_are_handed_out_in_order() {
        let mut addresses = Addresses::new(default_pools());
        let first: Vec<String> = (0..16).map(|_| addresses.claim_default(true, &[]).unwrap().to_string()).collect();
        assert_eq!(first[0], "172.17.0.0/16");
        assert_eq!(first[3], "172.20.0.0/16");
        assert_eq!(first[14], "172.31.0.0/16");
        assert_eq!(first[15], "192.168.0.0/20");
        for _ in 0..15 {
            addresses.claim_default(true, &[]).unwrap();
        }
        let refusal = addresses.claim_default(true, &[]).unwrap_err();
        assert_eq!(refusal.message, "all predefined address pools have been fully subnetted");
        addresses.release_subnet(p("172.19.0.0/16"), None);
        assert_eq!(addresses.claim_default(true, &[]).unwrap(), p("172.19.0.0/16"));
    }

    #[test]
    fn default_pools_avoid_what_the_host_routes() {
        let mut addresses = Addresses::new(default_pools());
        let reserved = [p("172.17.5.0/24"), p("172.18.0.0/15")];
        assert_eq!(addresses.claim_default(true, &reserved).unwrap(), p("172.20.0.0/16"));
        assert_eq!(addresses.claim_default(true, &[p("0.0.0.0/0")]).unwrap_err().kind, Kind::InvalidParameter);
        let mut v6 = Addresses::new(vec![unique_local_pool(b"machine")]);
        let (a, b) = (v6.claim_default(false, &[]).unwrap(), v6.claim_default(false, &[]).unwrap());
        assert_eq!((a.length, a.next(64)), (64, Some(b)));
    }

    #[test]
    fn overlapping_subnets_are_refused() {
        let mut addresses = Addresses::new(Vec::new());
        addresses.claim_subnet(p("10.1.0.0/16"), None).unwrap();
        for other in ["10.1.0.0/16", "10.0.0.0/8", "10.1.2.0/24"] {
            let refusal = addresses.claim_subnet(p(other), None).unwrap_err();
            assert_eq!(refusal, Error::forbidden("invalid pool request: Pool overlaps with other one on this address space"));
        }
        addresses.claim_subnet(p("10.2.0.0/16"), Some(p("10.2.1.0/24"))).unwrap();
        addresses.claim_subnet(p("10.2.0.0/16"), Some(p("10.2.2.0/24"))).unwrap();
        assert!(addresses.claim_subnet(p("10.2.0.0/16"), Some(p("10.2.2.0/24"))).is_err());
        assert!(addresses.claim_subnet(p("10.2.0.0/16"), None).is_err());
        addresses.release_subnet(p("10.2.0.0/16"), Some(p("10.2.1.0/24")));
        addresses.release_subnet(p("10.2.0.0/16"), Some(p("10.2.2.0/24")));
        addresses.claim_subnet(p("10.2.0.0/16"), None).unwrap();
    }

    #[test]
    fn the_first_free_address_is_next() {
        let mut addresses = Addresses::new(Vec::new());
        let net = p("10.0.0.0/29");
        addresses.claim_subnet(net, None).unwrap();
        let mut next = || addresses.claim(net, None, None);
        assert_eq!((next().unwrap(), next().unwrap(), next().unwrap()), (ip("10.0.0.1"), ip("10.0.0.2"), ip("10.0.0.3")));
        addresses.release(net, ip("10.0.0.2"));
        assert_eq!(addresses.claim(net, None, None).unwrap(), ip("10.0.0.2"));
        assert_eq!(addresses.claim(net, None, Some(ip("10.0.0.6"))).unwrap(), ip("10.0.0.6"));
        assert_eq!(addresses.claim(net, None, Some(ip("10.0.0.6"))).unwrap_err().message, "Address already in use");
        assert_eq!(addresses.claim(net, None, Some(ip("10.0.1.6"))).unwrap_err().kind, Kind::InvalidParameter);
        addresses.claim(net, None, None).unwrap();
        addresses.claim(net, None, None).unwrap();
        assert_eq!(addresses.claim(net, None, None).unwrap_err().kind, Kind::Unavailable);
    }

    #[test]
    fn ranges_and_tiny_subnets() {
        let mut addresses = Addresses::new(Vec::new());
        let (net, range) = (p("10.0.0.0/16"), Some(p("10.0.5.0/31")));
        addresses.claim_subnet(net, range).unwrap();
        assert_eq!(addresses.claim(net, range, None).unwrap(), ip("10.0.5.0"));
        assert_eq!(addresses.claim(net, range, None).unwrap(), ip("10.0.5.1"));
        assert!(addresses.claim(net, range, None).is_err());
        let tiny = p("10.9.0.0/31");
        addresses.claim_subnet(tiny, None).unwrap();
        assert_eq!(addresses.claim(tiny, None, None).unwrap(), ip("10.9.0.0"));
        assert_eq!(addresses.claim(tiny, None, None).unwrap(), ip("10.9.0.1"));
        let v6 = p("fd00::/64");
        addresses.claim_subnet(v6, None).unwrap();
        assert_eq!(addresses.claim(v6, None, None).unwrap(), ip("fd00::1"));
        let all = p("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127");
        addresses.claim_subnet(all, None).unwrap();
        assert!(addresses.claim(all, None, None).is_ok());
        assert!(addresses.claim(all, None, None).is_err());
    }
}
