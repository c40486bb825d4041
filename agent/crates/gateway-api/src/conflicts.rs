//! Listeners of one Gateway that cannot be told from each other.
//!
//! Of those that stand in the Gateway itself none is served (Gateway API: no winner is picked). Those of its ListenerSets
//! come after them, set by set in the order of precedence: there the earlier one is served (GEP-1713). A listener whose text
//! says too little to be compared takes nothing from others.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_model::{Hostname, ObjectName, Transport};

use crate::{listener::ListenerDraft, status::Problem};

/// What two listeners of one port must have in common to be told apart by host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    Http,
    /// HTTPS and TLS: both are told apart by server name.
    Tls,
    Tcp,
    Udp,
}

impl Family {
    pub(crate) fn of(protocol: &str) -> Option<Self> {
        match protocol {
            "HTTP" => Some(Self::Http),
            "HTTPS" | "TLS" => Some(Self::Tls),
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }

    fn transport(self) -> Transport {
        if self == Self::Udp { Transport::Udp } else { Transport::Tcp }
    }

    fn has_hostnames(self) -> bool {
        matches!(self, Self::Http | Self::Tls)
    }
}

/// What decides whether two listeners are at odds.
struct Place {
    port: (Transport, u16),
    family: Family,
    hostname: Option<Hostname>,
}

/// `None` when the listener is not comparable.
fn place(draft: &ListenerDraft) -> Option<Place> {
    let family = draft.family.filter(|_| !draft.is_duplicate && draft.port != 0)?;
    let hostname = draft.hostname.clone().filter(|_| family.has_hostnames());
    Some(Place { port: (family.transport(), draft.port), family, hostname })
}

/// Who has something on a Gateway's ports.
#[derive(Clone, Debug)]
enum Holder {
    Gateway,
    Set(ObjectName),
}

/// What a Gateway and the sets judged so far take on one port.
#[derive(Debug, Default)]
struct Taken {
    families: BTreeMap<Family, Holder>,
    hostnames: BTreeMap<Option<Hostname>, Holder>,
}

/// What is taken on the ports of one Gateway.
#[derive(Debug, Default)]
pub(crate) struct Ports(BTreeMap<(Transport, u16), Taken>);

impl Ports {
    /// Ports as a Gateway's own listeners take them, those that are at odds with each other included.
    pub(crate) fn of_gateway(drafts: &[ListenerDraft]) -> Self {
        let mut ports = Self::default();
        for place in drafts.iter().filter_map(place) {
            ports.take(place, &Holder::Gateway);
        }
        ports
    }

    /// Adds the listeners of the next ListenerSet, noting the conflict of each that comes too late.
    pub(crate) fn add_set(&mut self, set: &ObjectName, drafts: &mut [ListenerDraft]) {
        let own = Holder::Set(set.clone());
        for draft in drafts {
            let Some(place) = place(draft) else { continue };
            draft.conflict = self.find_conflict(set, draft, &place);
            if draft.conflict.is_none() && draft.rejection.is_none() {
                self.take(place, &own);
            }
        }
    }

    fn take(&mut self, place: Place, holder: &Holder) {
        let taken = self.0.entry(place.port).or_default();
        taken.families.entry(place.family).or_insert_with(|| holder.clone());
        taken.hostnames.entry(place.hostname).or_insert_with(|| holder.clone());
    }

    fn find_conflict(&self, set: &ObjectName, draft: &ListenerDraft, place: &Place) -> Option<Problem> {
        let taken = self.0.get(&place.port)?;
        let other = taken.families.iter().find(|(family, _)| **family != place.family);
        let (reason, holder, how) = match other {
            Some((_, holder)) => ("ProtocolConflict", holder, "with another protocol"),
            None => ("HostnameConflict", taken.hostnames.get(&place.hostname)?, "with the same host name"),
        };
        // What stands in namespaces of others is not told.
        let holder = match holder {
            Holder::Gateway => "the Gateway itself".to_owned(),
            Holder::Set(other) if other == set => "an earlier listener of this ListenerSet".to_owned(),
            Holder::Set(other) if other.namespace == set.namespace => format!("ListenerSet/{other}"),
            Holder::Set(_) => "a ListenerSet of another namespace".to_owned(),
        };
        Some(Problem::new(
            reason,
            format!(
                "spec.listeners[{}]: {holder} comes first and uses port {} {how}: change one of them",
                draft.index, draft.port
            ),
        ))
    }
}

/// Notes the conflicts of the listeners that stand in a Gateway itself.
pub(crate) fn find_conflicts(drafts: &mut [ListenerDraft]) {
    let mut ports: BTreeMap<(Transport, u16), Vec<(usize, Place)>> = BTreeMap::new();
    for (index, place) in drafts.iter().enumerate().filter_map(|(index, draft)| Some((index, place(draft)?))) {
        ports.entry(place.port).or_default().push((index, place));
    }
    for places in ports.into_values() {
        let families: BTreeSet<_> = places.iter().map(|(_, place)| place.family).collect();
        for (index, own) in &places {
            let is_rival = |(other, place): &&(usize, Place)| match families.len() {
                1 => other != index && place.hostname == own.hostname,
                _ => place.family != own.family,
            };
            let Some((rival, _)) = places.iter().find(is_rival) else { continue };
            let (reason, what) = match families.len() {
                1 => ("HostnameConflict", "the same host name"),
                _ => ("ProtocolConflict", "another protocol"),
            };
            let message = format!(
                "spec.listeners[{}]: listener {:?} uses port {} with {what}: change one of them",
                drafts[*index].index, &*drafts[*rival].name, drafts[*index].port
            );
            drafts[*index].conflict = Some(Problem::new(reason, message));
        }
    }
}
