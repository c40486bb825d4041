//! One endpoint as a shard knows it: its load and whether it refused lately.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tidegate_model::EndpointState as ModelState;

/// How long an endpoint that refused or reset a connection is passed over while others can be had. As long as a process
/// takes to start again; an EndpointSlice that says the endpoint is gone arrives within it as a rule.
pub const AVOID_AFTER_FAILURE: Duration = Duration::from_secs(2);

/// An endpoint. Lives as long as the model or a request holds it.
#[derive(Debug)]
pub struct EndpointState {
    /// Where to connect to.
    pub addr: SocketAddr,
    state: Cell<ModelState>,
    active: Cell<u32>,
    avoid_until: Cell<Option<Instant>>,
    removed: Cell<bool>,
}

impl EndpointState {
    /// An endpoint without load or history.
    pub fn new(addr: SocketAddr, state: ModelState) -> Self {
        Self {
            addr,
            state: Cell::new(state),
            active: Cell::new(0),
            avoid_until: Cell::new(None),
            removed: Cell::new(false),
        }
    }

    /// Requests that it serves now.
    pub fn active(&self) -> u32 {
        self.active.get()
    }

    /// Whether it takes new requests, or serves only what must be served.
    pub fn is_ready(&self) -> bool {
        self.state.get() == ModelState::Ready
    }

    /// Whether the model no longer has it: idle connections to it should be closed.
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    /// Counts a request as running until the guard is dropped.
    #[must_use = "the request counts as running only while the guard lives"]
    pub fn enter(self: &Rc<Self>) -> InFlight {
        self.active.set(self.active.get() + 1);
        InFlight(self.clone())
    }

    /// Says that a connection was refused, reset or could not be made in time.
    pub fn report_failure(&self) {
        self.avoid_until.set(Some(Instant::now() + AVOID_AFTER_FAILURE));
    }

    /// Says that a connection was made: an endpoint that is back is used again at once.
    pub fn report_success(&self) {
        self.avoid_until.set(None);
    }

    /// Whether it failed lately. Reads the clock only for an endpoint that failed.
    pub fn is_avoided(&self) -> bool {
        let Some(until) = self.avoid_until.get() else { return false };
        let is_avoided = Instant::now() < until;
        if !is_avoided {
            self.avoid_until.set(None);
        }
        is_avoided
    }

    pub(super) fn set_state(&self, state: ModelState) {
        self.state.set(state);
    }

    pub(super) fn set_removed(&self) {
        self.removed.set(true);
    }
}

/// A request in flight to an endpoint.
#[derive(Debug)]
pub struct InFlight(Rc<EndpointState>);

impl InFlight {
    /// The endpoint.
    pub fn endpoint(&self) -> &Rc<EndpointState> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}
