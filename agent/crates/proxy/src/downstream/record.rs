//! What is remembered of a request until it has ended, then counted and logged.

use std::{rc::Rc, sync::Arc};

use tokio::time::Instant;

use super::client::Client;
use crate::{
    access_log::Line,
    error::{Error, Side},
    http::head::RequestHead,
    respond,
    shard::Shard,
    stats::RuleStats,
    tables::{CompiledRule, ListenerState},
    upstream::forward::Trace,
};

/// A request under way.
#[derive(Debug)]
pub struct Record {
    /// When its head had been read.
    pub started: Instant,
    /// Where it is counted.
    pub stats: Rc<RuleStats>,
    /// Listener that took it.
    pub listener: Option<Rc<ListenerState>>,
    /// Rule that took it.
    pub rule: Option<Rc<CompiledRule>>,
    /// Why the proxy itself answered or broke off.
    pub reason: Option<&'static str>,
    /// More on the reason.
    pub detail: Option<Arc<str>>,
    /// Attempts at the backend.
    pub trace: Trace,
    /// When the backend's response began.
    pub responded: Option<Instant>,
    /// Status for the log, where it is not the response's.
    pub status: u16,
}

impl Record {
    /// Begins with a request whose head has been read.
    pub fn new(shard: &Shard) -> Self {
        Self {
            started: Instant::now(),
            stats: shard.stats.unrouted.clone(),
            listener: None,
            rule: None,
            reason: None,
            detail: None,
            trace: Trace::default(),
            responded: None,
            status: 0,
        }
    }

    /// Remembers a failure; the first one counts.
    pub fn fail(&mut self, shard: &Shard, error: &Error) -> respond::Verdict {
        let verdict = respond::verdict(error);
        if self.reason.is_none() {
            self.reason = Some(verdict.reason);
            self.detail = error.source.as_ref().filter(|_| shard.log.is_on()).map(|source| source.to_string().into());
            let counts = &shard.stats;
            match error.side {
                Side::Downstream => counts.connections.protocol_errors.increment(verdict.reason),
                Side::Upstream | Side::Internal => counts.local_responses.increment(verdict.reason),
            }
        }
        verdict
    }

    /// Counts and logs the request. Bytes are those of the bodies.
    pub fn finish(&self, shard: &Shard, client: &Client, head: &RequestHead, received: u64, sent: u64) {
        let duration = self.started.elapsed();
        self.stats.record(self.status, duration, received, sent);
        if !shard.log.is_on() {
            return;
        }
        shard.log.push(&Line {
            listener: self.listener.as_ref().map(|listener| &listener.key),
            rule: self.rule.as_ref().map(|rule| &rule.key),
            method: head.method.as_str(),
            host: head.received_host(),
            target: head.received_target(),
            protocol: head.version.as_str(),
            tls: client.tls,
            peer: client.facts.peer,
            local: client.facts.local,
            status: self.status,
            reason: self.reason,
            detail: self.detail.as_deref(),
            duration,
            response_after: self.responded.map(|responded| responded - self.started),
            received,
            sent,
            endpoint: self.trace.endpoint,
            attempts: self.trace.attempts,
        });
    }
}
