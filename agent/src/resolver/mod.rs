//! Names of endpoints (`Backend` objects with `fqdn`) as addresses: resolved by the agent, because a worker resolves
//! nothing and may dial only what its guard knows.
//!
//! A name that cannot be resolved keeps its last good addresses. The system's resolver configuration is used
//! (`/etc/resolv.conf`, `/etc/hosts`).

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use hickory_resolver::TokioResolver;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep_until, timeout},
};

/// Shortest time between two look-ups of a name: a TTL of 0 must not become a flood of queries.
const MIN_TTL: Duration = Duration::from_secs(5);

/// Longest time: a name server that promises a day must not hide a move for a day.
const MAX_TTL: Duration = Duration::from_secs(300);

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Time for one look-up with everything that the resolver tries.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Look-ups at once.
const MAX_LOOKUPS: usize = 16;

/// What a name leads to now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The name as it was asked for.
    pub name: String,
    /// Its addresses, sorted; the last good ones when `error` is set.
    pub addresses: Vec<IpAddr>,
    /// Why it cannot be resolved now.
    pub error: Option<String>,
}

/// Resolves the names that `wanted` brings, the whole set each time, and sends what changes. Returns when either channel
/// is closed.
pub async fn run(mut wanted: mpsc::UnboundedReceiver<BTreeSet<String>>, out: mpsc::UnboundedSender<Resolved>) {
    let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
    let mut names: HashMap<String, Entry> = HashMap::new();
    let mut lookups: JoinSet<(String, Result<Answer, String>)> = JoinSet::new();
    loop {
        let now = Instant::now();
        for (name, entry) in &mut names {
            if lookups.len() >= MAX_LOOKUPS {
                break;
            }
            if !entry.is_running && entry.due <= now {
                entry.is_running = true;
                let resolver = resolver.clone();
                let name = name.clone();
                lookups.spawn(async move {
                    let answer = match &resolver {
                        Ok(resolver) => find_addresses(resolver, &name).await,
                        Err(error) => Err(format!("the system's resolver configuration cannot be used: {error}")),
                    };
                    (name, answer)
                });
            }
        }
        let is_full = lookups.len() >= MAX_LOOKUPS;
        let next = names.values().filter(|entry| !entry.is_running && !is_full).map(|entry| entry.due).min();
        tokio::select! {
            set = wanted.recv() => {
                let Some(set) = set else { return };
                names.retain(|name, _| set.contains(name));
                for name in set {
                    names.entry(name).or_insert_with(|| Entry { due: now, is_running: false, last: None });
                }
            }
            Some(done) = lookups.join_next(), if !lookups.is_empty() => {
                let Ok((name, answer)) = done else { continue };
                let Some(entry) = names.get_mut(&name) else { continue };
                if let Some(resolved) = entry.take_answer(name, answer, Instant::now())
                    && out.send(resolved).is_err()
                {
                    return;
                }
            }
            () = sleep_until(next.unwrap_or(now).into()), if next.is_some() => {}
        }
    }
}

struct Entry {
    due: Instant,
    is_running: bool,
    last: Option<Resolved>,
}

struct Answer {
    addresses: Vec<IpAddr>,
    ttl: Duration,
}

impl Entry {
    /// Notes an answer; returns it when it is news.
    fn take_answer(&mut self, name: String, answer: Result<Answer, String>, now: Instant) -> Option<Resolved> {
        self.is_running = false;
        let resolved = match answer {
            Ok(Answer { mut addresses, ttl }) => {
                self.due = now + ttl.clamp(MIN_TTL, MAX_TTL);
                addresses.sort_unstable();
                addresses.dedup();
                Resolved { name, addresses, error: None }
            }
            Err(error) => {
                self.due = now + RETRY;
                let addresses = self.last.as_ref().map(|last| last.addresses.clone()).unwrap_or_default();
                Resolved { name, addresses, error: Some(error) }
            }
        };
        if self.last.as_ref() == Some(&resolved) {
            return None;
        }
        self.last = Some(resolved.clone());
        Some(resolved)
    }
}

async fn find_addresses(resolver: &TokioResolver, name: &str) -> Result<Answer, String> {
    let lookup = timeout(LOOKUP_TIMEOUT, resolver.lookup_ip(name))
        .await
        .map_err(|_| format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs()))?
        .map_err(|error| error.to_string())?;
    let addresses: Vec<IpAddr> = lookup.iter().collect();
    if addresses.is_empty() {
        return Err("the name has no address".to_owned());
    }
    Ok(Answer { addresses, ttl: lookup.valid_until().saturating_duration_since(Instant::now()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Result<Answer, String> {
        Ok(Answer { addresses: vec![text.parse().unwrap()], ttl: Duration::ZERO })
    }

    #[test]
    fn a_failure_keeps_the_last_good_addresses_and_is_told_once() {
        let now = Instant::now();
        let mut entry = Entry { due: now, is_running: true, last: None };
        let good = entry.take_answer("a".into(), answer("192.0.2.1"), now).unwrap();
        assert_eq!(entry.due, now + MIN_TTL);
        let failed = entry.take_answer("a".into(), Err("away".into()), now).unwrap();
        assert_eq!((failed.addresses, failed.error.as_deref()), (good.addresses.clone(), Some("away")));
        assert_eq!(entry.take_answer("a".into(), Err("away".into()), now), None);
        assert_eq!(entry.take_answer("a".into(), answer("192.0.2.1"), now), Some(good.clone()));
        assert_eq!(entry.take_answer("a".into(), answer("192.0.2.1"), now), None);
    }

    #[tokio::test]
    async fn resolves_what_is_wanted_with_the_systems_configuration() {
        let (want, wanted) = mpsc::unbounded_channel();
        let (out, mut resolved) = mpsc::unbounded_channel();
        let task = tokio::spawn(run(wanted, out));
        want.send(BTreeSet::from(["localhost".to_owned()])).unwrap();
        let first = timeout(Duration::from_secs(10), resolved.recv()).await.unwrap().unwrap();
        assert!(first.addresses.iter().any(IpAddr::is_loopback), "{first:?}");
        drop(want);
        timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    }
}
