//! One backend as a shard knows it: how to speak to it, its endpoints and whose turn it is.
//!
//! The state outlives changes of rules and endpoints: both refer to it by its key. Endpoints that stay keep their load and
//! history when the list changes.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::{Rc, Weak},
};

use hashbrown::HashMap;
use tidegate_model::{Backend, BackendKey, BackendProtocol, Endpoints};

use super::{endpoint::EndpointState, random::Prng};
use crate::{
    certificates::{ClientIdentity, UpstreamTls},
    error::{Error, ErrorKind},
    stats::UpstreamStats,
};

/// A backend.
#[derive(Debug)]
pub struct BackendState {
    /// Its key.
    pub key: BackendKey,
    /// Counters of this shard.
    pub stats: Rc<UpstreamStats>,
    speech: RefCell<Speech>,
    endpoints: RefCell<Vec<Rc<EndpointState>>>,
    ready: Cell<usize>,
    /// The turn that is next; it is the endpoint's at this place, modulo their number. It counts on whatever becomes of the list:
    /// shards that began apart would else meet at the first endpoint of a list that had been empty, or of one.
    turn: Cell<usize>,
}

#[derive(Debug)]
struct Speech {
    protocol: BackendProtocol,
    tls: Option<UpstreamTls>,
    is_usable: bool,
    /// The same TLS settings with a certificate to show, by the certificate; made when first asked for. There are as many
    /// as Gateways with different certificates whose requests come here.
    identified: Vec<(Weak<ClientIdentity>, UpstreamTls)>,
}

impl Default for Speech {
    fn default() -> Self {
        Self { protocol: BackendProtocol::Http1, tls: None, is_usable: true, identified: Vec::new() }
    }
}

impl BackendState {
    /// A backend of which nothing but its name is known: clear HTTP/1.1, no endpoint.
    pub fn new(key: BackendKey) -> Self {
        Self {
            key,
            stats: Rc::default(),
            speech: RefCell::default(),
            endpoints: RefCell::default(),
            ready: Cell::new(0),
            turn: Cell::new(0),
        }
    }

    /// Application protocol to speak.
    pub fn protocol(&self) -> BackendProtocol {
        self.speech.borrow().protocol
    }

    /// TLS to use, with `identity` as the certificate to show if the backend asks for one; `None` is clear text.
    ///
    /// # Errors
    /// The backend's TLS settings cannot be used: nothing may be sent to it.
    pub fn tls(&self, identity: Option<&Rc<ClientIdentity>>) -> Result<Option<UpstreamTls>, Error> {
        let mut speech = self.speech.borrow_mut();
        if !speech.is_usable {
            return Err(Error::internal(ErrorKind::BackendUnusable));
        }
        let (Some(plain), Some(identity)) = (&speech.tls, identity) else { return Ok(speech.tls.clone()) };
        let known = speech.identified.iter().find(|(of, _)| of.as_ptr() == Rc::as_ptr(identity));
        if let Some((_, known)) = known {
            return Ok(Some(known.clone()));
        }
        let made = plain.with_identity(identity);
        speech.identified.retain(|(of, _)| of.strong_count() > 0);
        speech.identified.push((Rc::downgrade(identity), made.clone()));
        Ok(Some(made))
    }

    /// Whether it is spoken to over TLS, or should be.
    pub fn has_tls(&self) -> bool {
        let speech = self.speech.borrow();
        speech.tls.is_some() || !speech.is_usable
    }

    /// Whether requests may be sent: a backend whose TLS settings cannot be used gets none, least of all in clear text.
    pub fn is_usable(&self) -> bool {
        self.speech.borrow().is_usable
    }

    /// Whether there is any endpoint.
    pub fn has_endpoints(&self) -> bool {
        !self.endpoints.borrow().is_empty()
    }

    /// Endpoints that are ready, and that are not.
    pub fn count_endpoints(&self) -> (usize, usize) {
        (self.ready.get(), self.endpoints.borrow().len() - self.ready.get())
    }

    /// The endpoint for the next attempt, none of `exclude` (those that this request tried already); `None` when there is
    /// no other.
    ///
    /// Round robin, and of two neighbours the one with fewer requests running. Terminating endpoints only when none is
    /// ready. Endpoints that failed lately only when all others failed too.
    pub fn pick(&self, exclude: &[SocketAddr]) -> Option<Rc<EndpointState>> {
        let endpoints = self.endpoints.borrow();
        let only_ready = self.ready.get() > 0;
        let is_candidate =
            |endpoint: &EndpointState| (!only_ready || endpoint.is_ready()) && !exclude.contains(&endpoint.addr);
        let start = self.turn.get();
        let round = || start..start + endpoints.len();
        let of = |turn: usize| &endpoints[turn % endpoints.len()];
        let mut preferred = round().filter(|&turn| is_candidate(of(turn)) && !of(turn).is_avoided());
        let chosen = match (preferred.next(), preferred.next()) {
            (Some(first), Some(second)) if of(second).active() < of(first).active() => Some(second),
            (Some(first), _) => Some(first),
            (None, _) => round().find(|&turn| is_candidate(of(turn))),
        }?;
        self.turn.set(chosen + 1);
        Some(of(chosen).clone())
    }

    /// The endpoint of that address, whatever its state.
    pub fn find_endpoint(&self, addr: SocketAddr) -> Option<Rc<EndpointState>> {
        self.endpoints.borrow().iter().find(|endpoint| endpoint.addr == addr).cloned()
    }

    /// Whether there is an endpoint that is none of `tried`.
    pub fn has_other(&self, tried: &[SocketAddr]) -> bool {
        let only_ready = self.ready.get() > 0;
        let is_other =
            |endpoint: &Rc<EndpointState>| (!only_ready || endpoint.is_ready()) && !tried.contains(&endpoint.addr);
        self.endpoints.borrow().iter().any(is_other)
    }

    /// Begins the round somewhere else: shards, workers and nodes that all began at the first endpoint would send it the first
    /// requests of each.
    pub fn begin_anywhere(&self, random: &mut Prng) {
        self.turn.set(random.below(u32::MAX) as usize);
    }

    /// Takes how to speak to the backend. `tls` is what was made of `backend.tls`.
    pub fn set_backend(&self, backend: &Backend, tls: Option<UpstreamTls>) {
        let is_usable = backend.tls.is_some() == tls.is_some();
        *self.speech.borrow_mut() = Speech { protocol: backend.protocol, tls, is_usable, identified: Vec::new() };
    }

    /// Forgets how to speak to the backend.
    pub fn clear_backend(&self) {
        *self.speech.borrow_mut() = Speech::default();
    }

    /// Takes the whole list of endpoints.
    pub fn set_endpoints(&self, list: &Endpoints) {
        let mut endpoints = self.endpoints.borrow_mut();
        let mut old: HashMap<SocketAddr, Rc<EndpointState>> =
            endpoints.drain(..).map(|endpoint| (endpoint.addr, endpoint)).collect();
        for endpoint in &list.endpoints {
            endpoints.push(match old.remove(&endpoint.addr) {
                Some(known) => {
                    known.set_state(endpoint.state);
                    known
                }
                None => Rc::new(EndpointState::new(endpoint.addr, endpoint.state)),
            });
        }
        old.values().for_each(|gone| gone.set_removed());
        self.ready.set(endpoints.iter().filter(|endpoint| endpoint.is_ready()).count());
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::{Endpoint, EndpointState as ModelState, ObjectName};

    use super::*;

    fn addr(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn list(endpoints: &[(u8, ModelState)]) -> Endpoints {
        let endpoint = |&(last, state): &(u8, ModelState)| Endpoint { addr: addr(last), state };
        Endpoints { endpoints: endpoints.iter().map(endpoint).collect() }
    }

    fn backend(endpoints: &[(u8, ModelState)]) -> BackendState {
        let backend = BackendState::new(BackendKey::Backend { name: ObjectName::new("n", "b") });
        backend.set_endpoints(&list(endpoints));
        backend
    }

    fn picks(backend: &BackendState, count: usize) -> Vec<SocketAddr> {
        (0..count).filter_map(|_| backend.pick(&[])).map(|endpoint| endpoint.addr).collect()
    }

    use ModelState::{Ready, Terminating};

    #[test]
    fn ready_endpoints_take_turns_and_terminating_ones_wait() {
        let backend = backend(&[(1, Ready), (2, Terminating), (3, Ready)]);
        assert_eq!(picks(&backend, 4), [addr(1), addr(3), addr(1), addr(3)]);
        backend.set_endpoints(&list(&[(1, Terminating), (2, Terminating)]));
        assert_eq!(picks(&backend, 3).iter().filter(|&&picked| picked == addr(3)).count(), 0);
        assert_eq!(backend.count_endpoints(), (0, 2));
        backend.set_endpoints(&list(&[]));
        assert!(backend.pick(&[]).is_none());
    }

    #[test]
    fn the_round_begins_anywhere_and_leaves_nobody_out() {
        let mut random = Prng::from_seed(5);
        let first = |_| {
            let backend = backend(&[(1, Ready), (2, Ready), (3, Ready)]);
            backend.begin_anywhere(&mut random);
            let mut round = picks(&backend, 3);
            let first = round[0];
            round.sort();
            assert_eq!(round, [addr(1), addr(2), addr(3)]);
            first
        };
        assert_eq!((0..50).map(first).collect::<std::collections::BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn shards_that_began_apart_stay_apart_when_the_list_was_empty_or_one() {
        let mut random = Prng::from_seed(5);
        for before in [&[][..], &[(9, Ready)]] {
            let first = |_| {
                let backend = backend(before);
                backend.begin_anywhere(&mut random);
                picks(&backend, 2);
                backend.set_endpoints(&list(&[(1, Ready), (2, Ready), (3, Ready)]));
                picks(&backend, 1)[0]
            };
            assert_eq!((0..50).map(first).collect::<std::collections::BTreeSet<_>>().len(), 3, "{before:?}");
        }
    }

    #[test]
    fn a_refused_endpoint_is_avoided_but_never_all_of_them() {
        let backend = backend(&[(1, Ready), (2, Ready)]);
        let first = backend.pick(&[]).unwrap();
        first.report_failure();
        assert_eq!(picks(&backend, 3), [addr(2); 3]);
        backend.pick(&[first.addr]).unwrap().report_failure();
        let mut both = picks(&backend, 2);
        both.sort();
        assert_eq!(both, [addr(1), addr(2)]);
        first.report_success();
        assert_eq!(picks(&backend, 2), [addr(1); 2]);
    }

    #[test]
    fn an_attempt_never_returns_to_what_it_tried() {
        let backend = backend(&[(1, Ready), (2, Ready)]);
        assert_eq!(backend.pick(&[addr(1)]).unwrap().addr, addr(2));
        assert!(backend.pick(&[addr(1), addr(2)]).is_none());
    }

    #[test]
    fn the_less_loaded_neighbour_is_taken_and_load_survives_a_change_of_the_list() {
        let backend = backend(&[(1, Ready), (2, Ready)]);
        let first = backend.pick(&[]).unwrap();
        let guards = [first.enter(), first.enter()];
        backend.set_endpoints(&list(&[(2, Ready), (1, Ready), (3, Ready)]));
        assert_eq!(picks(&backend, 6).iter().filter(|&&picked| picked == addr(1)).count(), 0);
        drop(guards);
        assert_eq!(first.active(), 0);
        assert!(picks(&backend, 6).contains(&addr(1)));
    }

    #[test]
    fn an_endpoint_that_went_away_says_so() {
        let backend = backend(&[(1, Ready)]);
        let endpoint = backend.pick(&[]).unwrap();
        backend.set_endpoints(&list(&[(2, Ready)]));
        assert!(endpoint.is_removed());
    }
}
