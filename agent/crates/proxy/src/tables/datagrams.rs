//! UDP frontends: which listener, and so which route, a datagram is for.
//!
//! A datagram says nothing about itself, so there is nothing to match: the listener's first forward gets everything.

use std::{net::IpAddr, rc::Rc};

use hashbrown::HashMap;
use smallvec::SmallVec;
use tidegate_model::{FrontendKey, Transport};

use super::{FoundForward, ListenerState, Tables};

/// UDP listeners by frontend, in the order of their keys. The agent reports all but the first as conflicted, so there is more
/// than one only for a moment.
#[derive(Debug, Default)]
pub(super) struct DatagramFrontends(HashMap<(IpAddr, u16), SmallVec<[Rc<ListenerState>; 1]>>);

impl DatagramFrontends {
    pub(super) fn push(&mut self, listener: &Rc<ListenerState>) {
        for address in addresses(listener) {
            let present = self.0.entry(address).or_default();
            let at = present.partition_point(|other| other.key < listener.key);
            present.insert(at, listener.clone());
        }
    }

    pub(super) fn remove(&mut self, listener: &Rc<ListenerState>) {
        for address in addresses(listener) {
            if let Some(present) = self.0.get_mut(&address) {
                present.retain(|other| !Rc::ptr_eq(other, listener));
                if present.is_empty() {
                    self.0.remove(&address);
                }
            }
        }
    }
}

impl Tables {
    /// Where the datagrams of a frontend go; `None` when it has no listener or the listener no route.
    pub fn find_datagram_forward(&self, frontend: &FrontendKey) -> Option<(Rc<ListenerState>, FoundForward)> {
        let listeners = self.datagrams.0.get(&(frontend.addr.to_canonical(), frontend.port))?;
        let listener = listeners.first()?;
        Some((listener.clone(), listener.find_forward(None)?))
    }
}

fn addresses(listener: &ListenerState) -> impl Iterator<Item = (IpAddr, u16)> {
    let udp = listener.source.frontends.iter().filter(|frontend| frontend.transport == Transport::Udp);
    udp.map(|frontend| (frontend.addr.to_canonical(), frontend.port))
}
