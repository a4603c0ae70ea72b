//! One lock per key, made when it is needed and gone when nobody holds it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Locks<K> = Arc<Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>>;

/// See the module.
#[derive(Debug, Clone)]
pub struct Keyed<K: Eq + Hash + Clone>(Locks<K>);

impl<K: Eq + Hash + Clone> Default for Keyed<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Held until dropped.
#[derive(Debug)]
pub struct Held<K: Eq + Hash + Clone> {
    locks: Locks<K>,
    key: K,
    // An Option so that `drop` can let go before it looks whether anybody waits.
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K: Eq + Hash + Clone> Keyed<K> {
    /// Waits until nobody else holds `key`.
    pub async fn lock(&self, key: K) -> Held<K> {
        let lock = self.0.lock().entry(key.clone()).or_default().clone();
        let guard = lock.lock_owned().await;
        Held { locks: self.0.clone(), key, guard: Some(guard) }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().len()
    }
}

impl<K: Eq + Hash + Clone> Drop for Held<K> {
    fn drop(&mut self) {
        self.guard.take();
        let mut locks = self.locks.lock();
        // One reference is the map's own; others are held by those who wait.
        if locks.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn one_at_a_time_per_key_and_nothing_is_left() {
        let keyed = Keyed::<u8>::default();
        let inside = Arc::new(AtomicU32::new(0));
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let (keyed, inside) = (keyed.clone(), inside.clone());
                tokio::spawn(async move {
                    let _held = keyed.lock(1).await;
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(keyed.len(), 0);
    }
}
