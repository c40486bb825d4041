//! Which agent writes status: the one that holds a Lease (coordination.k8s.io).
//!
//! Clocks of nodes may differ, so the times in the Lease are for people. A holder counts as gone when the Lease was *seen
//! unchanged* for its duration, measured by this node's own monotonic clock; a holder stops before that time has passed
//! since it last *began* a renewal that succeeded. Every write names the version it changes, so of two that take the Lease
//! at once one is refused.

use kube::{
    Client,
    core::{
        Request,
        params::{GetParams, PostParams},
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::times::now_micro;
use crate::kube::{Failure, Resource, jitter};

/// How long others wait for a holder that is silent.
const DURATION: Duration = Duration::from_secs(10);

/// A holder that could not renew for this long stops writing: two seconds before anybody else may start.
const SAFE: Duration = Duration::from_secs(8);

/// How often the holder renews.
const RENEW: Duration = Duration::from_secs(3);

/// How often the others look; with [`DURATION`] the longest time without a writer.
const LOOK: Duration = Duration::from_secs(2);

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who competes for what.
#[derive(Clone, Debug)]
pub struct Names {
    /// Name of the Lease.
    pub name: String,
    /// Name of this process among all that ever compete.
    pub identity: String,
}

/// Competes for the Lease for as long as the agent runs. `leading` holds the time until which this agent may write; `None`
/// while it may not.
pub async fn run(
    client: Client,
    names: Names,
    leading: watch::Sender<Option<Instant>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut candidate = Candidate { client, names, seen: None, held: None };
    let mut is_failing = false;
    loop {
        let begun = Instant::now();
        let is_leader = leading.borrow().is_some_and(|until| until > begun);
        match timeout(PATIENCE, candidate.attempt(begun)).await.unwrap_or_else(|elapsed| Err(elapsed.into())) {
            Ok(true) => {
                if !is_leader {
                    info!("this agent writes status from now on");
                }
                is_failing = false;
                leading.send_replace(Some(begun + SAFE));
            }
            Ok(false) => {
                if is_leader {
                    info!("another agent writes status from now on");
                }
                is_failing = false;
                leading.send_replace(None);
            }
            Err(failure) => {
                if !is_failing {
                    warn!("the Lease for writing status: {failure}");
                }
                is_failing = true;
            }
        }
        let wait = if candidate.held.is_some() { RENEW } else { LOOK };
        tokio::select! {
            () = sleep(wait.mul_f64(1.0 - jitter() / 4.0)) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    leading.send_replace(None);
    let _ = timeout(PATIENCE, candidate.release()).await;
}

struct Candidate {
    client: Client,
    names: Names,
    /// The version of the Lease that was seen last, and since when.
    seen: Option<(String, Instant)>,
    /// The version that this agent has written.
    held: Option<Value>,
}

impl Candidate {
    /// Renews the Lease, or takes it when nobody has it. Returns whether this agent has it.
    async fn attempt(&mut self, begun: Instant) -> Result<bool, Failure> {
        if let Some(held) = self.held.take() {
            match self.write(held).await {
                Ok(lease) => {
                    self.held = Some(lease);
                    return Ok(true);
                }
                // Somebody has changed it: look who.
                Err(Failure::Conflict(_) | Failure::NotFound(_)) => {}
                // It may have been written all the same; then its version is another, which the look below shows.
                Err(failure) => return Err(failure),
            }
        }
        let request = self.request().get(&self.names.name, &GetParams::default()).map_err(kube::Error::BuildRequest)?;
        let lease: Value = match self.client.request(request).await.map_err(Failure::from) {
            Ok(lease) => lease,
            Err(Failure::NotFound(_)) => return self.create().await,
            Err(failure) => return Err(failure),
        };
        let version = lease["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => begun,
        };
        self.seen = Some((version, since));
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let seconds = lease["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(DURATION.as_secs());
        let is_free = holder.is_empty() || holder == self.names.identity;
        if !is_free && since.elapsed() < Duration::from_secs(seconds) {
            return Ok(false);
        }
        match self.write(lease).await {
            Ok(lease) => {
                self.held = Some(lease);
                Ok(true)
            }
            // Another one was faster.
            Err(Failure::Conflict(_)) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    async fn create(&mut self) -> Result<bool, Failure> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.names.name},
            "spec": self.spec(None),
        });
        let request = self
            .request()
            .create(&PostParams::default(), lease.to_string().into_bytes())
            .map_err(kube::Error::BuildRequest)?;
        match self.client.request(request).await.map_err(Failure::from) {
            Ok(lease) => {
                self.held = Some(lease);
                Ok(true)
            }
            Err(Failure::Conflict(_)) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Writes this agent's name into a version of the Lease, if that is still the newest.
    async fn write(&self, mut lease: Value) -> Result<Value, Failure> {
        lease["spec"] = self.spec(Some(&lease["spec"]));
        self.replace(&lease).await
    }

    async fn replace(&self, lease: &Value) -> Result<Value, Failure> {
        let request = self
            .request()
            .replace(&self.names.name, &PostParams::default(), lease.to_string().into_bytes())
            .map_err(kube::Error::BuildRequest)?;
        Ok(self.client.request(request).await?)
    }

    fn spec(&self, before: Option<&Value>) -> Value {
        let now = now_micro();
        let field = |name: &str| before.map(|before| before[name].clone()).unwrap_or_default();
        let is_same = field("holderIdentity") == *self.names.identity;
        let transitions = field("leaseTransitions").as_i64().unwrap_or_default();
        json!({
            "holderIdentity": self.names.identity,
            "leaseDurationSeconds": DURATION.as_secs(),
            "renewTime": now,
            "acquireTime": if is_same { field("acquireTime") } else { now.clone().into() },
            "leaseTransitions": if is_same || before.is_none() { transitions } else { transitions + 1 },
        })
    }

    /// Gives the Lease back, so that another agent need not wait.
    async fn release(&mut self) -> Result<(), Failure> {
        let Some(mut lease) = self.held.take() else { return Ok(()) };
        lease["spec"]["holderIdentity"] = "".into();
        self.replace(&lease).await.map(drop)
    }

    fn request(&self) -> Request {
        let leases = Resource::new("coordination.k8s.io", "v1", "leases", "Lease");
        Request::new(leases.path(Some(self.client.default_namespace())))
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
