//! The stage: the lab, the backends of the example, the agent, and the requests that the steps send.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Context;

use super::story::Story;
use crate::{
    Agent, Authority, Backend, Failure, Lab, LoadPlan, Reply, Request, Target,
    certificate::Leaf,
    client,
    island::{Island, SILENCE},
    lab::{DATACENTRE, INTERNET},
    objects::TWO_DOMAINS,
};

/// Host name that the public domain serves.
pub(super) const SHOP: &str = "shop.example.com";
/// Path that the public route takes.
pub(super) const PRODUCTS: &str = "/api/v1/products";
/// File of the example in the watched folder.
pub(super) const EXAMPLE: &str = "two-domains.yaml";
/// File of the Secret in the watched folder.
pub(super) const SECRET: &str = "example-com.yaml";

/// Everything that a step can reach.
pub(super) struct Stage<'a> {
    pub(super) lab: &'a Lab,
    pub(super) agent: Agent<'a>,
    pub(super) authority: Authority,
    pub(super) leaf: Leaf,
    /// Address of Gateway `gw-external/external`.
    pub(super) public: IpAddr,
    /// Address of Gateway `gw-internal/internal`.
    pub(super) private: IpAddr,
    _backends: Vec<Backend>,
}

impl<'a> Stage<'a> {
    pub(super) fn set(lab: &'a Lab, story: &mut Story) -> anyhow::Result<Self> {
        story.line(format!("namespaces  {}-{{inet,dc,gw,back,pod}}", lab.name));
        story.line(format!("            internet client {INTERNET} ─ wan0 ┐"));
        story.line("                                            ├ gateway node ─ backends 10.30.0.11 .12 .21 .31");
        story.line(format!("            data-centre client {DATACENTRE} ─ lan0 ┘"));
        let backends = [
            ("products-v1", "10.30.0.11:8080"),
            ("products-v1", "10.30.0.12:8080"),
            ("products-v2", "10.30.0.21:8080"),
            ("console", "10.30.0.31:8080"),
        ]
        .map(|(name, addr)| Backend::start(&lab.backends, name, addr.parse().expect("an address of the example")))
        .into_iter()
        .collect::<anyhow::Result<_>>()?;
        let authority = Authority::create()?;
        let leaf = authority.issue(&["*.example.com"])?;
        lab.write(EXAMPLE, TWO_DOMAINS)?;
        lab.write(SECRET, &leaf.to_secret("gw-external", "example-com"))?;
        let ca = lab.folder().join("ca.pem");
        std::fs::write(&ca, authority.pem())?;
        story.line(format!(
            "objects     {} (deploy/examples/two-domains.yaml unchanged, and a TLS Secret)",
            lab.config().display()
        ));
        let agent = Agent::start(lab).context("the agent does not become ready")?;
        let public = agent.gateway_address("gw-external", "external")?;
        let private = agent.gateway_address("gw-internal", "internal")?;
        story.line(format!("agent       ready; Gateway external has {public}, Gateway internal has {private}"));
        Ok(Self { lab, agent, authority, leaf, public, private, _backends: backends })
    }

    /// The public HTTPS frontend.
    pub(super) fn shop(&self) -> Target {
        Target::https(SocketAddr::new(self.public, 443), SHOP, &self.authority)
    }

    /// The private HTTP frontend.
    pub(super) fn console(&self) -> Target {
        Target::http(SocketAddr::new(self.private, 80))
    }

    pub(super) fn shop_load(&self) -> LoadPlan {
        LoadPlan::new(self.shop(), Request::get(SHOP, PRODUCTS))
    }

    pub(super) fn console_load(&self) -> LoadPlan {
        LoadPlan::new(self.console(), Request::get("console.internal", "/"))
    }

    /// Sends a request from a side of the lab.
    pub(super) fn send(&self, from: &Island, target: Target, request: Request) -> Result<Reply, Failure> {
        from.run(async move { client::send(&target, request).await })
    }

    /// Expects that nothing at all comes back from a frontend.
    pub(super) fn expect_silence(&self, from: &Island, target: Target) -> anyhow::Result<()> {
        let target = target.within(SILENCE);
        let outcome = from.run(async move { target.connect_tcp().await.map(drop) });
        anyhow::ensure!(outcome == Err(Failure::Silent), "expected silence, got {outcome:?}");
        Ok(())
    }

    /// Packets judged so far in a domain with a reason.
    pub(super) fn verdicts(&self, domain: &str, reason: &str) -> anyhow::Result<u64> {
        Ok(self.agent.verdicts(domain, reason)? as u64)
    }

    /// Prints what to try while everything runs.
    pub(super) fn describe(&self, story: &Story) {
        let (name, folder) = (&self.lab.name, self.lab.folder().display());
        let tidegate =
            crate::process::program("tidegate").map_or_else(|_| "tidegate".into(), |path| path.display().to_string());
        let socket = crate::agent::socket_path(self.lab);
        let socket = socket.display();
        story.line("\nEverything is still running. Try:");
        story.line(format!(
            "  ip netns exec {name}-inet curl --cacert {folder}/ca.pem --resolve {SHOP}:443:{} https://{SHOP}{PRODUCTS}\n  \
             ip netns exec {name}-dc curl http://{}/\n  \
             ip netns exec {name}-inet curl --interface {} -m 2 http://{}/      (denied: nothing comes)\n  \
             ip netns exec {name}-gw curl -s http://{}/metrics\n  \
             {tidegate} status --socket {socket}\n  \
             {tidegate} verdicts --follow --socket {socket}\n  \
             {tidegate} explain --src {} --dst {}:443 --socket {socket}\n  \
             edit {}",
            self.public,
            self.private,
            crate::lab::DENIED,
            self.public,
            crate::agent::admin(),
            crate::lab::DENIED,
            self.public,
            self.lab.config().display(),
        ));
        story.line("Ctrl-C ends it and cleans up.");
    }
}

/// Waits until a load has been seen to work, so that what follows happens under it.
pub(super) fn warm_up(load: &mut crate::Load) -> anyhow::Result<()> {
    crate::wait_until("the first requests of the load", Duration::from_secs(10), || {
        (load.total().ok() >= 50).then_some(())
    })
}
