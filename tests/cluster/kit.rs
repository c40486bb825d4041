//! A stage of the test cluster for tests: it panics where the cluster fails, and says what the agent said.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail};
pub(crate) use tidegate_lab::cluster::{AGENTS, Cluster, LATER};
use tidegate_lab::{Failure, Reply, Request, Target, client, objects, wait_for};

/// Longest wait for a change of an object to be served and to stand in status.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A namespace with a Gateway of class `public` and a backend of two pods behind Service `echo`, port 8080. Gone when dropped.
pub(crate) struct Stage<'a> {
    pub(crate) cluster: &'a Cluster,
    /// The namespace; the Gateway is `gw` in it.
    pub(crate) name: String,
    /// Address of the Gateway.
    pub(crate) address: IpAddr,
}

impl<'a> Stage<'a> {
    /// Sets the stage and waits until Gateway and backend are there.
    pub(crate) fn set(cluster: &'a Cluster, name: &str) -> Self {
        Self::set_with(cluster, name, &[&objects::http_listener("http", 80)])
    }

    /// The same with other listeners, each in flow style.
    pub(crate) fn set_with(cluster: &'a Cluster, name: &str, listeners: &[&str]) -> Self {
        let address = cluster.set_stage(name, listeners);
        let address = address.unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.agent_log()));
        Self { cluster, name: name.to_owned(), address }
    }

    /// Applies a route for one host name to the backend.
    pub(crate) fn route(&self, name: &str, host: &str) {
        self.cluster.apply(&self.route_text(name, host)).unwrap();
    }

    /// That route as text.
    pub(crate) fn route_text(&self, name: &str, host: &str) -> String {
        objects::route(&self.name, name, &format!("{}/gw", self.name), &[host], &[&objects::to_service("echo")])
    }

    /// Where plain HTTP is served.
    pub(crate) fn http(&self) -> Target {
        Target::http(SocketAddr::new(self.address, 80))
    }

    /// One request from the internet's side.
    pub(crate) fn get(&self, host: &str) -> Result<Reply, Failure> {
        let (target, request) = (self.http(), Request::get(host, "/"));
        self.cluster.internet.run(async move { client::send(&target, request).await })
    }

    /// Waits for an answer with this status.
    pub(crate) fn wait_status(&self, host: &str, status: u16) {
        self.wait_status_within(host, status, SOON);
    }

    /// The same with another limit.
    pub(crate) fn wait_status_within(&self, host: &str, status: u16, limit: Duration) {
        wait_for(&format!("{status} for {host}"), limit, || match self.get(host) {
            Ok(reply) if reply.status == status => Ok(()),
            Ok(reply) => bail!("{} {}", reply.status, reply.text()),
            Err(failure) => bail!("{failure}"),
        })
        .unwrap();
    }

    /// Routes attached to the Gateway's first listener.
    pub(crate) fn attached(&self) -> anyhow::Result<u64> {
        self.cluster.attached(&self.name)
    }

    /// Waits for a number of attached routes.
    pub(crate) fn wait_attached(&self, count: u64, limit: Duration) {
        wait_for(&format!("{count} attached routes"), limit, || match self.attached()? {
            attached if attached == count => Ok(()),
            attached => bail!("{attached}"),
        })
        .unwrap();
    }

    /// A condition of a route as its first parent says it: status and reason.
    pub(crate) fn route_condition(&self, route: &str, kind: &str) -> anyhow::Result<(String, String)> {
        let route = self.cluster.object(&self.name, route)?;
        let conditions = route["status"]["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
        let condition = conditions.iter().find(|condition| condition["type"] == kind).context("no such condition")?;
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason")))
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what the agent says ---\n{}\n---", self.cluster.agent_log());
        }
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.name, "--ignore-not-found", "--wait"]);
    }
}
