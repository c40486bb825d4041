//! Session persistence (GEP-1619): a token brings a client back to the endpoint that it had.
//!
//! The token is sealed with a key of its rule (AES-256-GCM), the same on every node: it shows nothing, and a changed one is
//! none. Safety does not hang on the key: what a token names is looked up among the endpoints of the rule's own backends,
//! and is dialled only as one of them. Nothing is remembered here: a token carries all there is.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use smallvec::SmallVec;
use tidegate_model::{BackendKey, SessionCarrier, SessionPersistence};

use crate::{
    balance::EndpointState,
    filters::edits,
    http::head::{RequestHead, ResponseHead},
    tables::{CompiledBackend, Target},
};

/// What is sealed: version, time of the first response, backend, address and port.
const PLAIN: usize = 1 + 8 + 8 + 16 + 2;
/// Version of this form.
const VERSION: u8 = 1;
/// Length of a token in bytes: with its nonce and tag.
const SEALED: usize = NONCE_LEN + PLAIN + 16;
/// Tokens tried in one request: browsers send several cookies of a name for several paths, an attacker sends thousands.
const MAX_TOKENS: usize = 4;

/// Sessions of a rule.
#[derive(Debug)]
pub struct Session {
    source: SessionPersistence,
    key: RandomizedNonceKey,
}

/// A session that a request has.
#[derive(Clone, Debug)]
pub struct Found {
    /// Index of its `backendRef`.
    pub backend: usize,
    /// Its endpoint.
    pub endpoint: Rc<EndpointState>,
}

impl Session {
    /// Makes ready for a rule's sessions.
    ///
    /// # Errors
    /// Text for the object's owner.
    pub fn compile(source: &SessionPersistence) -> Result<Self, String> {
        if let SessionCarrier::Header(name) = &source.carrier
            && let Some(problem) = edits::find_problem(name, "")
        {
            return Err(format!("sessionPersistence: {problem}"));
        }
        let key = digest::digest(&digest::SHA256, format!("tidegate session {VERSION} {}", source.secret).as_bytes());
        let key = RandomizedNonceKey::new(&AES_256_GCM, key.as_ref()).map_err(|error| error.to_string())?;
        Ok(Self { source: source.clone(), key })
    }

    /// The session that a request belongs to: its token is whole and not too old, and its endpoint is one of the rule's
    /// still. The weight of its `backendRef` does not matter, zero included.
    pub fn find(&self, head: &RequestHead, backends: &[CompiledBackend], now: Duration) -> Option<Found> {
        let mut tokens = SmallVec::<[&[u8]; MAX_TOKENS]>::new();
        match &self.source.carrier {
            SessionCarrier::Header(name) => tokens.extend(head.headers.values(name).take(MAX_TOKENS)),
            SessionCarrier::Cookie { name, .. } => {
                let pairs = head.headers.values("cookie").flat_map(|value| value.split(|&byte| byte == b';'));
                let own = pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
                tokens.extend(own.take(MAX_TOKENS));
            }
        }
        tokens.into_iter().filter_map(|token| self.open(token, now)).find_map(|(backend_id, addr)| {
            backends.iter().enumerate().find_map(|(index, backend)| match &backend.target {
                Target::Backend(backend) if id_of(&backend.key) == backend_id => {
                    Some(Found { backend: index, endpoint: backend.find_endpoint(addr)? })
                }
                _ => None,
            })
        })
    }

    /// Begins a session at an endpoint: tells the client its token.
    pub fn begin(
        &self,
        backend: &BackendKey,
        endpoint: SocketAddr,
        is_tls: bool,
        now: Duration,
        response: &mut ResponseHead,
    ) {
        // The system's random source fails at boot only; a response without a session is served all the same.
        let Some(token) = self.seal(backend, endpoint, now) else { return };
        match &self.source.carrier {
            SessionCarrier::Header(name) => response.headers.set(&**name, token),
            SessionCarrier::Cookie { name, path, is_permanent } => {
                let mut cookie = format!("{name}={token}; Path={path}; HttpOnly; SameSite=Strict");
                // A browser would drop a Secure cookie that came in clear.
                if is_tls {
                    cookie.push_str("; Secure");
                }
                if let Some(timeout) = self.source.absolute_timeout.filter(|_| *is_permanent) {
                    cookie.push_str(&format!("; Max-Age={}", timeout.as_secs().max(1)));
                }
                response.headers.append("Set-Cookie", cookie);
            }
        }
    }

    fn seal(&self, backend: &BackendKey, endpoint: SocketAddr, now: Duration) -> Option<String> {
        let ip = match endpoint.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut sealed = Vec::with_capacity(SEALED);
        sealed.push(VERSION);
        sealed.extend_from_slice(&now.as_secs().to_be_bytes());
        sealed.extend_from_slice(&id_of(backend));
        sealed.extend_from_slice(&ip.octets());
        sealed.extend_from_slice(&endpoint.port().to_be_bytes());
        let nonce = self.key.seal_in_place_append_tag(Aad::empty(), &mut sealed).ok()?;
        let mut token = nonce.as_ref().to_vec();
        token.extend_from_slice(&sealed);
        Some(URL_SAFE_NO_PAD.encode(token))
    }

    /// Backend and endpoint of a token; `None` when it is none, or too old.
    fn open(&self, token: &[u8], now: Duration) -> Option<([u8; 8], SocketAddr)> {
        let mut bytes = [0; SEALED];
        // `decode_slice` refuses what does not fit.
        if URL_SAFE_NO_PAD.decode_slice(token, &mut bytes) != Ok(SEALED) {
            return None;
        }
        let (nonce, sealed) = bytes.split_at_mut(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain: &[u8; PLAIN] = (&*self.key.open_in_place(nonce, Aad::empty(), sealed).ok()?).try_into().ok()?;
        let (&version, rest) = plain.split_first()?;
        let (begun, rest) = rest.split_first_chunk::<8>()?;
        let (backend, rest) = rest.split_first_chunk::<8>()?;
        let (ip, port) = rest.split_first_chunk::<16>()?;
        let addr = SocketAddr::new(Ipv6Addr::from(*ip).to_canonical(), u16::from_be_bytes(port.try_into().ok()?));
        // A node whose clock is ahead has begun it in the future: then it is young.
        let age = now.saturating_sub(Duration::from_secs(u64::from_be_bytes(*begun)));
        let is_alive = version == VERSION && self.source.absolute_timeout.is_none_or(|timeout| age < timeout);
        is_alive.then_some((*backend, addr))
    }
}

/// What stands for a backend in a token.
fn id_of(backend: &BackendKey) -> [u8; 8] {
    let digest = digest::digest(&digest::SHA256, backend.to_string().as_bytes());
    let mut id = [0; 8];
    id.copy_from_slice(&digest.as_ref()[..8]);
    id
}

/// Time since the epoch, as tokens count it.
pub fn now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tidegate_model::{Endpoint, EndpointState as ModelState, Endpoints, ObjectName};

    use super::*;
    use crate::{balance::BackendState, filters::Filters};

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn session(carrier: SessionCarrier, secret: &str, timeout: Option<u64>) -> Session {
        let absolute_timeout = timeout.map(Duration::from_secs);
        Session::compile(&SessionPersistence { carrier, absolute_timeout, secret: secret.into() }).unwrap()
    }

    fn cookie(is_permanent: bool) -> SessionCarrier {
        SessionCarrier::Cookie { name: "sid".into(), path: "/".into(), is_permanent }
    }

    fn key(name: &str) -> BackendKey {
        BackendKey::Service { name: ObjectName::new("ns", name), port: 80 }
    }

    fn addr(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn backend(name: &str, endpoints: &[u8]) -> CompiledBackend {
        let state = BackendState::new(key(name));
        let endpoint = |&last: &u8| Endpoint { addr: addr(last), state: ModelState::Ready };
        state.set_endpoints(&Endpoints { endpoints: endpoints.iter().map(endpoint).collect() });
        CompiledBackend { target: Target::Backend(Rc::new(state)), filters: Filters::default() }
    }

    fn request(field: &str, value: &str) -> RequestHead {
        let mut head = RequestHead::default();
        head.headers.append(field, value);
        head
    }

    fn begin(session: &Session, to: (&str, u8), is_tls: bool) -> ResponseHead {
        let mut response = ResponseHead::default();
        session.begin(&key(to.0), addr(to.1), is_tls, NOW, &mut response);
        response
    }

    fn text(response: &ResponseHead, name: &str) -> String {
        String::from_utf8(response.headers.find(name).unwrap().to_vec()).unwrap()
    }

    fn found(session: &Session, head: &RequestHead, backends: &[CompiledBackend]) -> Option<(usize, SocketAddr)> {
        session.find(head, backends, NOW).map(|found| (found.backend, found.endpoint.addr))
    }

    #[test]
    fn a_cookie_leads_back_to_its_endpoint_among_others() {
        let session = session(cookie(false), "rule", None);
        let backends = [backend("a", &[1, 2]), backend("b", &[1, 2])];
        let set = text(&begin(&session, ("b", 2), false), "set-cookie");
        assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{set}");
        let pair = set.split(';').next().unwrap();
        let head = request("cookie", &format!("other=1; sid=garbage; {pair};last=2"));
        assert_eq!(found(&session, &head, &backends), Some((1, addr(2))));
    }

    #[test]
    fn a_permanent_cookie_has_an_age_and_a_secure_connection_a_secure_one() {
        let set = text(&begin(&session(cookie(true), "rule", Some(300)), ("a", 1), true), "set-cookie");
        assert!(set.ends_with("; Secure; Max-Age=300"), "{set}");
        let set = text(&begin(&session(cookie(false), "rule", Some(300)), ("a", 1), true), "set-cookie");
        assert!(!set.contains("Max-Age") && !set.contains("Expires"), "{set}");
    }

    #[test]
    fn a_header_carries_a_token_too_and_must_not_frame_messages() {
        let session = session(SessionCarrier::Header("x-session".into()), "rule", None);
        let token = text(&begin(&session, ("a", 1), false), "x-session");
        let head = request("X-Session", &token);
        assert_eq!(found(&session, &head, &[backend("a", &[1])]), Some((0, addr(1))));
        for name in ["content-length", "transfer-encoding", "connection", "host"] {
            let carrier = SessionCarrier::Header(name.into());
            let source = SessionPersistence { carrier, absolute_timeout: None, secret: "s".into() };
            assert!(Session::compile(&source).is_err(), "{name}");
        }
    }

    #[test]
    fn a_session_ends_with_its_endpoint_its_backend_and_its_time() {
        let session = session(SessionCarrier::Header("x".into()), "rule", Some(60));
        let head = request("x", &text(&begin(&session, ("a", 1), false), "x"));
        assert!(found(&session, &head, &[backend("a", &[1])]).is_some());
        assert_eq!(found(&session, &head, &[backend("a", &[2])]), None);
        assert_eq!(found(&session, &head, &[backend("b", &[1])]), None);
        let late = |seconds| session.find(&head, &[backend("a", &[1])], NOW + Duration::from_secs(seconds));
        assert!(late(59).is_some());
        assert!(late(60).is_none());
        let early = session.find(&head, &[backend("a", &[1])], NOW - Duration::from_secs(3600));
        assert!(early.is_some(), "the clock of another node is ahead");
    }

    #[test]
    fn no_token_of_another_rule_and_no_changed_one_is_taken() {
        let own = session(SessionCarrier::Header("x".into()), "rule", None);
        let other = session(SessionCarrier::Header("x".into()), "other rule", None);
        let backends = [backend("a", &[1, 2])];
        let token = text(&begin(&own, ("a", 1), false), "x");
        assert_eq!(found(&other, &request("x", &token), &backends), None);
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(found(&own, &request("x", &changed), &backends), None, "{at}");
        }
        for broken in ["", "a", &token[1..], &format!("{token}A"), "10.0.0.1:80", &"A".repeat(10_000)] {
            assert_eq!(found(&own, &request("x", broken), &backends), None, "{broken}");
        }
    }
}
