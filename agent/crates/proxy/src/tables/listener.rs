//! Listeners, and the frontends on which they are told apart by host name.
//!
//! Isolation as the Gateway API wants it: of the listeners of a frontend the one with the most specific host name takes a
//! request, and the rules of the others are never asked. Rules hang on a listener's key, not on its state, so they stay
//! where they are when the listener is replaced, and may come before it.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use rustls::ServerConfig;
use smallvec::SmallVec;
use tidegate_model::{Listener, ListenerKey, Protocol};

use super::{
    forward::{FoundForward, Rivals},
    hosts::HostMap,
    paths::{Found, PathTable},
};
use crate::{certificates::ClientIdentity, external_auth::Auths, http::head::RequestHead, stats::RuleStats};

/// What hangs on one listener.
#[derive(Debug, Default)]
pub struct Routes {
    /// Rules by host name, then by path.
    pub(super) rules: RefCell<HostMap<PathTable>>,
    /// Forwards by server name.
    pub(super) forwards: RefCell<HostMap<Rivals>>,
}

impl Routes {
    pub(super) fn is_empty(&self) -> bool {
        self.rules.borrow().is_empty() && self.forwards.borrow().is_empty()
    }
}

/// A listener in force. A request in flight keeps it.
#[derive(Debug)]
pub struct ListenerState {
    /// Its key.
    pub key: ListenerKey,
    /// What it was made from.
    pub source: Arc<Listener>,
    /// Where requests that find no rule here are counted.
    pub unmatched: Rc<RuleStats>,
    /// Who must allow a request before a rule is looked for.
    pub auth: Auths,
    pub(super) routes: Rc<Routes>,
    pub(super) tls: RefCell<Option<Arc<ServerConfig>>>,
    pub(super) identity: RefCell<Identity>,
}

/// What the requests of a listener show to backends that ask for a certificate.
#[derive(Clone, Debug, Default)]
pub enum Identity {
    /// Nothing.
    #[default]
    Anonymous,
    /// A certificate.
    Certificate(Rc<ClientIdentity>),
    /// A certificate that cannot be had: no backend with TLS may be spoken to.
    Missing,
}

impl ListenerState {
    /// TLS for new connections; `None` without a usable certificate, or on a listener without TLS.
    pub fn server_config(&self) -> Option<Arc<ServerConfig>> {
        self.tls.borrow().clone()
    }

    /// What its requests show to backends that ask for a certificate.
    pub fn identity(&self) -> Identity {
        self.identity.borrow().clone()
    }

    /// Asks the rules for a request: those of the most specific host name first, the less specific ones when no rule of
    /// the former takes it (the specification orders rules by host name, it does not hide them). `path` is in normal form.
    pub(crate) fn find_rule<R>(
        &self,
        path: &str,
        head: &RequestHead,
        use_it: impl FnOnce(Found<'_>) -> R,
    ) -> Option<R> {
        let rules = self.routes.rules.borrow();
        rules.find_map(head.host(), |table| table.find(path, head)).map(use_it)
    }
}

impl ListenerState {
    /// The forward for a connection with this SNI (lower case, no trailing dot; `None` also where there is no TLS): of those
    /// with the most specific server name the first in precedence.
    pub fn find_forward(&self, sni: Option<&str>) -> Option<FoundForward> {
        let forwards = self.routes.forwards.borrow();
        let rivals = match sni {
            Some(name) => forwards.find(name),
            None => forwards.any(),
        };
        rivals.and_then(Rivals::first).cloned()
    }
}

/// What connections to a frontend begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A request in clear text.
    Http,
    /// The client's greeting of a TLS handshake.
    Tls,
    /// Anything, or nothing: the server may be first to speak.
    Tcp,
}

/// Listeners of one frontend, by protocol.
#[derive(Debug, Default)]
pub struct Frontend {
    http: HostMap<Listeners>,
    /// Of protocol HTTPS and TLS, told apart by server name.
    tls: HostMap<Listeners>,
    /// How many of `tls` are of protocol TLS.
    forwarding: usize,
    tcp: Listeners,
}

/// Listeners with the same host name in the order of their keys: the first is served. The agent reports the others as
/// conflicted, so there is more than one only for a moment.
type Listeners = SmallVec<[Rc<ListenerState>; 1]>;

impl Frontend {
    /// What connections begin with. The agent lets no two of these share a frontend.
    pub fn opening(&self) -> Opening {
        match (self.tls.is_empty(), self.http.is_empty()) {
            (false, _) => Opening::Tls,
            (true, false) => Opening::Http,
            (true, true) => Opening::Tcp,
        }
    }

    /// Whether connections begin with TLS.
    pub fn is_tls(&self) -> bool {
        self.opening() == Opening::Tls
    }

    /// The listener for a host name (lower case, no port, no trailing dot).
    pub fn find_listener(&self, is_tls: bool, host: &str) -> Option<&Rc<ListenerState>> {
        self.by_protocol(is_tls).find(host).and_then(|listeners| listeners.first())
    }

    /// The TLS listener for a client that sent no SNI: one for every host, because nothing else can be meant.
    pub fn find_listener_without_name(&self) -> Option<&Rc<ListenerState>> {
        self.tls.any().and_then(|listeners| listeners.first())
    }

    /// The TLS listener for a client's SNI (lower case, no trailing dot).
    pub fn find_tls_listener(&self, sni: Option<&str>) -> Option<&Rc<ListenerState>> {
        match sni {
            Some(name) => self.find_listener(true, name),
            None => self.find_listener_without_name(),
        }
    }

    /// Whether some TLS connections are forwarded: those that nobody takes are then told nothing in TLS.
    pub fn forwards_tls(&self) -> bool {
        self.forwarding > 0
    }

    /// The listener of protocol TCP.
    pub fn find_tcp_listener(&self) -> Option<&Rc<ListenerState>> {
        self.tcp.first()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.http.is_empty() && self.tls.is_empty() && self.tcp.is_empty()
    }

    pub(super) fn push(&mut self, listener: Rc<ListenerState>) {
        self.forwarding += usize::from(listener.source.protocol == Protocol::Tls);
        let present = match self.hosts_of(listener.source.protocol) {
            Some(map) => map.entry(listener.source.hostname.as_ref()),
            None => &mut self.tcp,
        };
        let at = present.partition_point(|other| other.key < listener.key);
        present.insert(at, listener);
    }

    pub(super) fn remove(&mut self, listener: &Rc<ListenerState>) {
        self.forwarding -= usize::from(listener.source.protocol == Protocol::Tls);
        let remove = |present: &mut Listeners| {
            present.retain(|other| !Rc::ptr_eq(other, listener));
            present.is_empty()
        };
        match self.hosts_of(listener.source.protocol) {
            Some(map) => map.change(listener.source.hostname.as_ref(), remove),
            None => {
                remove(&mut self.tcp);
            }
        }
    }

    /// Listeners of a protocol by host name; `None` for one that knows no host names.
    fn hosts_of(&mut self, protocol: Protocol) -> Option<&mut HostMap<Listeners>> {
        match protocol {
            Protocol::Http => Some(&mut self.http),
            Protocol::Https | Protocol::Tls => Some(&mut self.tls),
            Protocol::Tcp | Protocol::Udp => None,
        }
    }

    fn by_protocol(&self, is_tls: bool) -> &HostMap<Listeners> {
        if is_tls { &self.tls } else { &self.http }
    }
}
