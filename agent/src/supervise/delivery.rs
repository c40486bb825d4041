//! Delivery of a model to a worker: one delta under way at a time, what changes meanwhile is merged into the next.
//!
//! So a slow or hung worker costs no more memory than one model, and it is always known exactly which state it has. Pure:
//! time comes in as an argument, nothing is sent from here.

use std::{
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use tidegate_model::{Change, Delta, Generation, Key, domain::Frontends};

/// How long new frontends wait for the worker's ack. Then they are opened all the same: a connection waits better in a
/// listening socket than in the client's retries.
pub(super) const ACK_PATIENCE: Duration = Duration::from_secs(2);

/// What a worker has been sent, and what waits to be.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    queued: Option<Queued>,
    under_way: Option<UnderWay>,
}

/// A delta that waits. The changes of a key are replaced by later ones.
#[derive(Debug)]
struct Queued {
    is_full: bool,
    generation: Generation,
    changes: BTreeMap<Key, Change>,
    since: Instant,
    changed: Instant,
}

/// A delta that the worker has not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct UnderWay {
    /// Generation of the delta.
    pub(super) generation: Generation,
    /// Frontends of that generation.
    pub(super) frontends: Rc<Frontends>,
    /// When the first of its changes came in here.
    pub(super) since: Instant,
    /// When the source saw the first of its changes.
    pub(super) changed: Instant,
}

impl Delivery {
    /// Adds a delta.
    pub(super) fn push(&mut self, delta: Delta, changed: Instant, now: Instant) {
        let queued = self.queued.get_or_insert_with(|| Queued {
            is_full: false,
            generation: delta.generation,
            changes: BTreeMap::new(),
            since: now,
            changed,
        });
        if delta.is_full {
            queued.is_full = true;
            queued.changes.clear();
        }
        queued.generation = delta.generation;
        for change in delta.changes {
            let key = match &change {
                Change::Put(resource) => resource.key(),
                Change::Remove(key) => key.clone(),
            };
            queued.changes.insert(key, change);
        }
    }

    /// Forgets what was under way, because the worker is gone or new. The caller pushes the whole model next; the time
    /// of what was not acknowledged counts on.
    pub(super) fn restart(&mut self, full: Delta, now: Instant) {
        let since = self.since().unwrap_or(now);
        let changed = self.under_way.as_ref().map(|under_way| under_way.changed);
        let changed = changed.or(self.queued.as_ref().map(|queued| queued.changed)).unwrap_or(now);
        self.under_way = None;
        self.queued = None;
        self.push(full, changed, since);
    }

    /// The next delta to send, when there is one and none is under way. `frontends` are those of the newest generation.
    pub(super) fn next(&mut self, frontends: &Rc<Frontends>) -> Option<Delta> {
        if self.under_way.is_some() {
            return None;
        }
        let queued = self.queued.take()?;
        self.under_way = Some(UnderWay {
            generation: queued.generation,
            frontends: frontends.clone(),
            since: queued.since,
            changed: queued.changed,
        });
        Some(Delta { generation: queued.generation, is_full: queued.is_full, changes: in_safe_order(queued.changes) })
    }

    /// The worker has applied a generation. Returns what was under way, or nothing when this is an ack of something older.
    pub(super) fn acknowledge(&mut self, generation: Generation) -> Option<UnderWay> {
        if self.under_way.as_ref().is_some_and(|under_way| under_way.generation == generation) {
            self.under_way.take()
        } else {
            None
        }
    }

    /// Since when something is not acknowledged.
    pub(super) fn since(&self) -> Option<Instant> {
        let under_way = self.under_way.as_ref().map(|under_way| under_way.since);
        under_way.or(self.queued.as_ref().map(|queued| queued.since))
    }

    /// When patience with the worker ends.
    pub(super) fn patience_ends(&self) -> Option<Instant> {
        self.since().map(|since| since + ACK_PATIENCE)
    }
}

/// Additions in the order of their keys (what is referred to first), then removals in the opposite order.
fn in_safe_order(changes: BTreeMap<Key, Change>) -> Vec<Change> {
    let (puts, removals): (Vec<Change>, Vec<Change>) =
        changes.into_values().partition(|change| matches!(change, Change::Put(_)));
    puts.into_iter().chain(removals.into_iter().rev()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_model::{BackendKey, Endpoints, ObjectName, Resource};

    use super::*;

    fn key(name: &str) -> BackendKey {
        BackendKey::Backend { name: ObjectName::new("ns", name) }
    }

    fn put(name: &str) -> Change {
        Change::Put(Resource::Endpoints(key(name), Arc::new(Endpoints::default())))
    }

    fn remove(name: &str) -> Change {
        Change::Remove(Key::Endpoints(key(name)))
    }

    fn delta(generation: u64, changes: Vec<Change>) -> Delta {
        Delta { generation: Generation(generation), is_full: false, changes }
    }

    #[test]
    fn merges_what_comes_while_a_delta_is_under_way() {
        let (mut delivery, now, frontends) = (Delivery::default(), Instant::now(), Rc::default());
        delivery.push(delta(1, vec![put("a")]), now, now);
        assert_eq!(delivery.next(&frontends).unwrap().generation, Generation(1));
        delivery.push(delta(2, vec![put("b"), put("c")]), now, now);
        delivery.push(delta(3, vec![remove("b"), remove("a")]), now, now);
        assert!(delivery.next(&frontends).is_none(), "one at a time");
        assert!(delivery.acknowledge(Generation(9)).is_none());
        assert!(delivery.acknowledge(Generation(1)).is_some());
        let next = delivery.next(&frontends).unwrap();
        assert_eq!(next, delta(3, vec![put("c"), remove("b"), remove("a")]));
    }

    #[test]
    fn a_full_delta_replaces_what_waited_and_the_clock_runs_on() {
        let (mut delivery, start, frontends) = (Delivery::default(), Instant::now(), Rc::default());
        delivery.push(delta(1, vec![put("a")]), start, start);
        delivery.next(&frontends).unwrap();
        let later = start + Duration::from_secs(1);
        delivery.push(delta(2, vec![put("b")]), later, later);
        delivery.restart(Delta { generation: Generation(2), is_full: true, changes: vec![put("b")] }, later);
        assert_eq!(delivery.patience_ends(), Some(start + ACK_PATIENCE));
        let next = delivery.next(&frontends).unwrap();
        assert!(next.is_full);
        assert_eq!(next.changes, vec![put("b")]);
    }
}
