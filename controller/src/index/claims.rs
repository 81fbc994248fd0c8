//! Who has an address. Several may say they do; one is believed, always the same one.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use crate::resource::Name;

/// Claims to addresses.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Claimants in the order in which they are believed. Nearly every address has one.
    by_ip: HashMap<IpAddr, Vec<Claim>>,
    contested: BTreeSet<IpAddr>,
}

/// A claim. What leaves comes after what stays, so that an address that moves has its new owner at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    leaves: bool,
    name: Name,
}

impl Claims {
    /// Adds a claim. Returns the others whose standing it may change.
    pub(super) fn add(&mut self, ip: IpAddr, name: &Name, leaves: bool) -> Vec<Name> {
        let claims = self.by_ip.entry(ip).or_default();
        let others: Vec<Name> = claims.iter().filter(|c| c.name != *name).map(|c| c.name.clone()).collect();
        let claim = Claim { leaves, name: name.clone() };
        if let Err(at) = claims.binary_search(&claim) {
            claims.insert(at, claim);
        }
        if claims.len() > 1 {
            self.contested.insert(ip);
        }
        others
    }

    /// Takes a claim back. Returns the others whose standing it may change.
    pub(super) fn remove(&mut self, ip: IpAddr, name: &Name) -> Vec<Name> {
        let Some(claims) = self.by_ip.get_mut(&ip) else { return Vec::new() };
        claims.retain(|c| c.name != *name);
        let others: Vec<Name> = claims.iter().map(|c| c.name.clone()).collect();
        if others.len() < 2 {
            self.contested.remove(&ip);
        }
        if others.is_empty() {
            self.by_ip.remove(&ip);
        }
        others
    }

    /// Who is believed.
    pub(super) fn owner(&self, ip: IpAddr) -> Option<&Name> {
        self.by_ip.get(&ip)?.first().map(|c| &c.name)
    }

    /// Who claims an address, best first.
    pub(super) fn claimants(&self, ip: IpAddr) -> impl Iterator<Item = &Name> {
        self.by_ip.get(&ip).into_iter().flatten().map(|c| &c.name)
    }

    /// Those who are not believed, each with the address and its owner.
    pub(super) fn refused(&self) -> impl Iterator<Item = (IpAddr, &Name, &Name)> {
        self.contested
            .iter()
            .filter_map(|ip| Some((*ip, self.by_ip.get(ip)?.split_first()?)))
            .flat_map(|(ip, (owner, others))| others.iter().map(move |other| (ip, &other.name, &owner.name)))
    }
}
