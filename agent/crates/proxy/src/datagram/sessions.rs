//! The sessions of a shard by client and frontend: which are there, which has been idle longest, which must give way.
//!
//! There are never more than the limit. Anybody can begin a session with one datagram from a made-up address, so those that
//! have proven themselves, by a datagram that followed an answer, are kept apart: newcomers take each other's places first,
//! and that of a proven session only when it has been idle for a while. Every operation takes constant time. Pure: time
//! comes in as an argument, and what a session is it does not know.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use tidegate_model::FrontendKey;

/// How long a proven session must have been idle before a newcomer may take its place: several times what a client waits
/// for an answer.
pub const PROTECTED: Duration = Duration::from_secs(10);

/// What tells sessions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The client.
    pub client: SocketAddr,
    /// The frontend that it speaks to.
    pub frontend: FrontendKey,
}

/// Who speaks in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The client.
    Client,
    /// The endpoint.
    Endpoint,
}

/// No session can give way to a new one.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// Sessions by key and by time of their last datagram.
#[derive(Debug)]
pub struct Sessions<T> {
    limit: usize,
    index: HashMap<SessionKey, u32>,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<u32>,
    fresh: Queue,
    proven: Queue,
}

#[derive(Debug)]
struct Slot<T> {
    key: SessionKey,
    value: T,
    seen: Instant,
    is_answered: bool,
    is_proven: bool,
    before: Option<u32>,
    after: Option<u32>,
}

/// A list through slots, longest idle first.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    first: Option<u32>,
    last: Option<u32>,
}

impl<T> Sessions<T> {
    /// No session, and room for `limit`.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            fresh: Queue::default(),
            proven: Queue::default(),
        }
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The session of a key, which has got a datagram just now.
    pub fn touch(&mut self, key: &SessionKey, from: From, now: Instant) -> Option<&T> {
        let at = *self.index.get(key)?;
        self.unlink(at);
        let slot = self.slot_mut(at);
        slot.seen = now;
        match from {
            From::Client => slot.is_proven |= slot.is_answered,
            From::Endpoint => slot.is_answered = true,
        }
        self.link(at);
        Some(&self.slot(at).value)
    }

    /// Makes room for one more session. Returns the one that had to give way; its place is free.
    ///
    /// # Errors
    /// [`Full`] when there are as many as the limit and none may give way.
    pub fn make_room(&mut self, now: Instant) -> Result<Option<T>, Full> {
        if self.len() < self.limit {
            return Ok(None);
        }
        let may_give_way = |at: &u32| now.duration_since(self.slot(*at).seen) >= PROTECTED;
        let victim = self.fresh.first.or_else(|| self.proven.first.filter(may_give_way)).ok_or(Full)?;
        Ok(Some(self.take(victim)))
    }

    /// Adds a session, for which [`Self::make_room`] has made room. One with the same key is replaced and returned.
    pub fn insert(&mut self, key: SessionKey, value: T, now: Instant) -> Option<T> {
        let old = self.remove(&key);
        let slot = Slot { key, value, seen: now, is_answered: false, is_proven: false, before: None, after: None };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = Some(slot);
                at
            }
            None => {
                self.slots.push(Some(slot));
                u32::try_from(self.slots.len() - 1).expect("the limit is far below")
            }
        };
        self.index.insert(key, at);
        self.link(at);
        old
    }

    /// Removes a session.
    pub fn remove(&mut self, key: &SessionKey) -> Option<T> {
        let at = *self.index.get(key)?;
        Some(self.take(at))
    }

    /// Removes the longest idle session if it has been idle for that long.
    pub fn pop_idle(&mut self, now: Instant, idle: Duration) -> Option<T> {
        let is_over = |at: &u32| now.duration_since(self.slot(*at).seen) >= idle;
        let expired = [self.fresh.first, self.proven.first].into_iter().flatten().find(is_over)?;
        Some(self.take(expired))
    }

    /// Removes every session of a frontend, or all.
    pub fn remove_of(&mut self, frontend: Option<FrontendKey>) -> Vec<T> {
        let is_meant = |key: &SessionKey| frontend.is_none_or(|frontend| key.frontend == frontend);
        let meant: Vec<u32> = self.index.iter().filter(|(key, _)| is_meant(key)).map(|(_, at)| *at).collect();
        meant.into_iter().map(|at| self.take(at)).collect()
    }

    fn take(&mut self, at: u32) -> T {
        self.unlink(at);
        let slot = self.slots[at as usize].take().expect("the index names slots in use");
        self.index.remove(&slot.key);
        self.free.push(at);
        slot.value
    }

    fn slot(&self, at: u32) -> &Slot<T> {
        self.slots[at as usize].as_ref().expect("index and queues name slots in use")
    }

    fn slot_mut(&mut self, at: u32) -> &mut Slot<T> {
        self.slots[at as usize].as_mut().expect("index and queues name slots in use")
    }

    fn queue_mut(&mut self, is_proven: bool) -> &mut Queue {
        if is_proven { &mut self.proven } else { &mut self.fresh }
    }

    /// Puts a slot at the end of its queue.
    fn link(&mut self, at: u32) {
        let is_proven = self.slot(at).is_proven;
        let queue = self.queue_mut(is_proven);
        let before = queue.last.replace(at);
        queue.first.get_or_insert(at);
        if let Some(before) = before {
            self.slot_mut(before).after = Some(at);
        }
        let slot = self.slot_mut(at);
        (slot.before, slot.after) = (before, None);
    }

    fn unlink(&mut self, at: u32) {
        let slot = self.slot_mut(at);
        let (is_proven, before, after) = (slot.is_proven, slot.before.take(), slot.after.take());
        match before {
            Some(before) => self.slot_mut(before).after = after,
            None => self.queue_mut(is_proven).first = after,
        }
        match after {
            Some(after) => self.slot_mut(after).before = before,
            None => self.queue_mut(is_proven).last = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tidegate_model::Transport;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn key(client: u16) -> SessionKey {
        let frontend = FrontendKey { addr: [203, 0, 113, 1].into(), port: 53, transport: Transport::Udp };
        SessionKey { client: ([10, 0, 0, 1], client).into(), frontend }
    }

    fn add(sessions: &mut Sessions<u16>, client: u16, now: Instant) -> Result<Option<u16>, Full> {
        let evicted = sessions.make_room(now)?;
        assert_eq!(sessions.insert(key(client), client, now), None);
        Ok(evicted)
    }

    fn prove(sessions: &mut Sessions<u16>, client: u16, now: Instant) {
        for from in [From::Endpoint, From::Client] {
            assert_eq!(sessions.touch(&key(client), from, now), Some(&client));
        }
    }

    #[test]
    fn the_longest_idle_newcomer_gives_way() {
        let (mut sessions, begin) = (Sessions::new(3), Instant::now());
        let at = |second| begin + Duration::from_secs(second);
        for client in 1..=3 {
            assert_eq!(add(&mut sessions, client, at(client.into())), Ok(None));
        }
        sessions.touch(&key(1), From::Client, at(4));
        assert_eq!(add(&mut sessions, 4, at(5)), Ok(Some(2)));
        assert_eq!(add(&mut sessions, 5, at(5)), Ok(Some(3)));
        assert_eq!(sessions.len(), 3);
        assert_eq!(sessions.touch(&key(2), From::Client, at(6)), None);
    }

    #[test]
    fn a_flood_of_newcomers_drives_out_no_session_that_goes_on() {
        let (mut sessions, begin) = (Sessions::new(10), Instant::now());
        (0..10).for_each(|client| assert_eq!(add(&mut sessions, client, begin), Ok(None)));
        (0..9).for_each(|client| prove(&mut sessions, client, begin));
        for client in 100..1000 {
            assert!(add(&mut sessions, client, begin).unwrap().is_some_and(|gone| gone == 9 || gone >= 100));
        }
        prove(&mut sessions, 999, begin);
        assert_eq!(add(&mut sessions, 2000, begin), Err(Full), "all have proven themselves");
        // An answer alone proves nothing: that is what a made-up address gets, too.
        assert_eq!(add(&mut sessions, 2000, begin + PROTECTED), Ok(Some(0)));
        sessions.touch(&key(2000), From::Endpoint, begin + PROTECTED);
        assert_eq!(add(&mut sessions, 2001, begin + PROTECTED), Ok(Some(2000)));
    }

    #[test]
    fn sessions_end_when_they_are_idle_and_those_of_a_frontend_with_it() {
        let (mut sessions, begin) = (Sessions::new(10), Instant::now());
        let at = |second| begin + Duration::from_secs(second);
        for client in 0..4 {
            add(&mut sessions, client, at(client.into())).unwrap();
        }
        prove(&mut sessions, 0, at(4));
        assert_eq!(sessions.pop_idle(at(60), IDLE), None);
        assert_eq!(sessions.pop_idle(at(62), IDLE), Some(1));
        assert_eq!(sessions.pop_idle(at(62), IDLE), Some(2));
        assert_eq!(sessions.pop_idle(at(62), IDLE), None);
        assert_eq!(sessions.pop_idle(at(64), IDLE), Some(3));
        assert_eq!(sessions.pop_idle(at(64), IDLE), Some(0));
        add(&mut sessions, 7, at(64)).unwrap();
        let other = FrontendKey { port: 54, ..key(7).frontend };
        assert!(sessions.remove_of(Some(other)).is_empty());
        assert_eq!(sessions.remove_of(Some(key(7).frontend)), [7]);
        assert!(sessions.is_empty());
    }

    proptest! {
        /// Against a plain map: same sessions, same order of idleness, never more than the limit.
        #[test]
        fn the_table_never_loses_count(steps in proptest::collection::vec((0u8..5, 0u16..12), 0..400)) {
            let mut sessions = Sessions::<u16>::new(6);
            let mut plain = BTreeMap::<u16, (u64, bool, bool)>::new();
            let begin = Instant::now();
            for (second, (step, client)) in (0u64..).zip(steps) {
                let now = begin + Duration::from_secs(second);
                match step {
                    0 | 1 => {
                        let from = if step == 0 { From::Client } else { From::Endpoint };
                        prop_assert_eq!(sessions.touch(&key(client), from, now).is_some(), plain.contains_key(&client));
                        if let Some((seen, is_answered, is_proven)) = plain.get_mut(&client) {
                            *seen = second;
                            *is_proven |= step == 0 && *is_answered;
                            *is_answered |= step == 1;
                        }
                    }
                    2 => {
                        prop_assert_eq!(sessions.remove(&key(client)), plain.remove(&client).map(|_| client));
                    }
                    3 if !plain.contains_key(&client) => {
                        let oldest = |is_proven| plain.iter().filter(|(_, s)| s.2 == is_proven).min_by_key(|(_, s)| s.0);
                        let victim = oldest(false).or(oldest(true).filter(|(_, s)| second - s.0 >= PROTECTED.as_secs()));
                        let victim = victim.map(|(client, _)| *client);
                        match sessions.make_room(now) {
                            Ok(None) => prop_assert!(plain.len() < 6),
                            Ok(Some(gone)) => {
                                prop_assert_eq!(Some(gone), victim);
                                plain.remove(&gone);
                            }
                            Err(Full) => {
                                prop_assert!(victim.is_none() && plain.len() == 6);
                                continue;
                            }
                        }
                        sessions.insert(key(client), client, now);
                        plain.insert(client, (second, false, false));
                    }
                    4 => {
                        while let Some(gone) = sessions.pop_idle(now, Duration::from_secs(20)) {
                            let (seen, ..) = plain.remove(&gone).expect("known");
                            prop_assert!(second - seen >= 20);
                        }
                        prop_assert!(plain.values().all(|(seen, ..)| second - seen < 20));
                    }
                    _ => {}
                }
                prop_assert_eq!(sessions.len(), plain.len());
                prop_assert!(sessions.len() <= 6);
            }
        }
    }
}
