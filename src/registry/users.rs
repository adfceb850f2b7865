//! How many users are connected to this replica, over all its workers.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Locks taken when a connection begins or ends, never by a delivery; spread by hash.
const PARTS: usize = 16;

/// Connections per user, by the hash of the id: the sum is all that anyone asks for.
pub(super) struct Users([Mutex<HashMap<u64, u32, ahash::RandomState>>; PARTS]);

impl Default for Users {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Users {
    /// Counts a connection; whether it is the user's first.
    pub(super) fn add(&self, hash: u64) -> bool {
        let mut part = self.part(hash);
        let count = part.entry(hash).or_insert(0);
        *count += 1;
        *count == 1
    }

    /// Takes a connection off; whether it was the user's last.
    pub(super) fn remove(&self, hash: u64) -> bool {
        let mut part = self.part(hash);
        match part.get_mut(&hash) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                let known = part.remove(&hash).is_some();
                if part.capacity() > 64 && part.len() * 4 < part.capacity() {
                    part.shrink_to_fit();
                }
                known
            }
        }
    }

    fn part(&self, hash: u64) -> MutexGuard<'_, HashMap<u64, u32, ahash::RandomState>> {
        let index = usize::try_from(hash >> 60).unwrap_or(0) % PARTS;
        // A count cannot be left half changed, so a poisoned lock is as good as new.
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_and_last() {
        let users = Users::default();
        for hash in [1, u64::MAX] {
            assert!(users.add(hash));
            assert!(!users.add(hash));
            assert!(!users.remove(hash));
            assert!(users.remove(hash));
            assert!(!users.remove(hash), "nothing is left to take off");
        }
    }
}
