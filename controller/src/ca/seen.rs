//! Which key belongs to whom: one that was certified for one identity is not certified for another.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::digest;
use loam_core::ids::Identity;

/// Most keys remembered: those of a day in a mesh of thirty thousand identities. Beyond it, reuse goes unnoticed.
pub const MAX_KEYS: usize = 65_536;

/// Keys whose certificates are still valid.
#[derive(Debug, Default)]
pub struct SeenKeys(Mutex<HashMap<[u8; 32], (Identity, SystemTime)>>);

impl SeenKeys {
    /// Notes that a key is `identity`'s until its certificate ends; false when it is another's.
    pub fn claim(&self, spki: &[u8], identity: &Identity, until: SystemTime, now: SystemTime) -> bool {
        let mut key = [0; 32];
        key.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((owner, end)) = seen.get_mut(&key) {
            if owner == identity || *end <= now {
                (*owner, *end) = (identity.clone(), until);
                return true;
            }
            return false;
        }
        if seen.len() >= MAX_KEYS {
            seen.retain(|_, (_, end)| *end > now);
        }
        if seen.len() < MAX_KEYS {
            seen.insert(key, (identity.clone(), until));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(name: &str) -> Identity {
        format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()
    }

    #[test]
    fn a_key_stays_with_its_identity_while_its_certificate_lives() {
        let (seen, now, day) = (SeenKeys::default(), SystemTime::now(), Duration::from_secs(86_400));
        assert!(seen.claim(b"key", &id("web"), now + day, now));
        assert!(seen.claim(b"key", &id("web"), now + day, now));
        assert!(!seen.claim(b"key", &id("db"), now + day, now));
        assert!(seen.claim(b"other", &id("db"), now + day, now));
        assert!(seen.claim(b"key", &id("db"), now + 2 * day, now + day));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_makes_room() {
        let (seen, now) = (SeenKeys::default(), SystemTime::now());
        let end = now + Duration::from_secs(60);
        for i in 0..MAX_KEYS + 10 {
            assert!(seen.claim(&i.to_be_bytes(), &id("web"), end, now));
        }
        assert_eq!(seen.0.lock().unwrap().len(), MAX_KEYS);
        assert!(seen.claim(b"later", &id("web"), end, end));
        assert_eq!(seen.0.lock().unwrap().len(), 1);
    }
}
