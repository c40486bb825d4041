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
    hosts::HostMap,
    paths::{Found, PathTable},
};
use crate::{http::head::RequestHead, stats::RuleStats};

/// Rules of one listener by host name, then by path.
#[derive(Debug, Default)]
pub struct Routes(pub(super) RefCell<HostMap<PathTable>>);

/// A listener in force. A request in flight keeps it.
#[derive(Debug)]
pub struct ListenerState {
    /// Its key.
    pub key: ListenerKey,
    /// What it was made from.
    pub source: Arc<Listener>,
    /// Where requests that find no rule here are counted.
    pub unmatched: Rc<RuleStats>,
    pub(super) routes: Rc<Routes>,
    pub(super) tls: RefCell<Option<Arc<ServerConfig>>>,
}

impl ListenerState {
    /// TLS for new connections; `None` without a usable certificate, or on a listener without TLS.
    pub fn server_config(&self) -> Option<Arc<ServerConfig>> {
        self.tls.borrow().clone()
    }

    /// Asks the rules for a request: those of the most specific host name first, the less specific ones when no rule of
    /// the former takes it (the specification orders rules by host name, it does not hide them). `path` is in normal form.
    pub(crate) fn find_rule<R>(
        &self,
        path: &str,
        head: &RequestHead,
        use_it: impl FnOnce(Found<'_>) -> R,
    ) -> Option<R> {
        let routes = self.routes.0.borrow();
        routes.find_map(head.host(), |table| table.find(path, head)).map(use_it)
    }
}

/// Listeners of one frontend, by protocol.
#[derive(Debug, Default)]
pub struct Frontend {
    http: HostMap<Listeners>,
    https: HostMap<Listeners>,
}

/// Listeners with the same host name in the order of their keys: the first is served. The agent reports the others as
/// conflicted, so there is more than one only for a moment.
type Listeners = SmallVec<[Rc<ListenerState>; 1]>;

impl Frontend {
    /// Whether connections begin with TLS.
    pub fn is_tls(&self) -> bool {
        !self.https.is_empty()
    }

    /// The listener for a host name (lower case, no port, no trailing dot).
    pub fn find_listener(&self, is_tls: bool, host: &str) -> Option<&Rc<ListenerState>> {
        self.by_protocol(is_tls).find(host).and_then(|listeners| listeners.first())
    }

    /// The TLS listener for a client that sent no SNI: one for every host, because nothing else can be meant.
    pub fn find_listener_without_name(&self) -> Option<&Rc<ListenerState>> {
        self.https.any().and_then(|listeners| listeners.first())
    }

    /// TLS for a new connection, by its SNI (lower case, no trailing dot).
    ///
    /// # Errors
    /// Why there is none, as in the counter of failed handshakes: no listener is for that name
    /// ([`UNRECOGNIZED_NAME`](crate::certificates::UNRECOGNIZED_NAME) tells the client), or it has no usable certificate.
    pub fn server_config(&self, sni: Option<&str>) -> Result<Arc<ServerConfig>, &'static str> {
        let listener = match sni {
            Some(name) => self.find_listener(true, name),
            None => self.find_listener_without_name(),
        };
        listener.ok_or("unrecognized_name")?.server_config().ok_or("no_certificate")
    }

    pub(super) fn is_empty(&self) -> bool {
        self.http.is_empty() && self.https.is_empty()
    }

    pub(super) fn push(&mut self, listener: Rc<ListenerState>) {
        let map = match listener.source.protocol {
            Protocol::Http => &mut self.http,
            Protocol::Https => &mut self.https,
        };
        let present = map.entry(listener.source.hostname.as_ref());
        let at = present.partition_point(|other| other.key < listener.key);
        present.insert(at, listener);
    }

    pub(super) fn remove(&mut self, listener: &Rc<ListenerState>) {
        let map = match listener.source.protocol {
            Protocol::Http => &mut self.http,
            Protocol::Https => &mut self.https,
        };
        map.change(listener.source.hostname.as_ref(), |present| {
            present.retain(|other| !Rc::ptr_eq(other, listener));
            present.is_empty()
        });
    }

    fn by_protocol(&self, is_tls: bool) -> &HostMap<Listeners> {
        if is_tls { &self.https } else { &self.http }
    }
}
