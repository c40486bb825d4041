//! The objects that the measurements share: two domains with one shard each, one Gateway each, one backend.

use std::net::SocketAddr;

use tidegate_lab::{
    Agent, AgentOptions, Authority, Lab,
    certificate::Leaf,
    lab::{PRIVATE_POOL, PUBLIC_POOL},
    objects,
};

use crate::nginx::Nginx;

/// Host name of all measurements.
pub(crate) const HOST: &str = "shop.example.com";
/// Address of the public Gateway.
pub(crate) const PUBLIC: &str = "203.0.113.1";
/// Address of the private Gateway.
pub(crate) const PRIVATE: &str = "10.20.1.1";

/// What stands around the agent.
pub(crate) struct Scene {
    pub(crate) leaf: Leaf,
    pub(crate) backend: SocketAddr,
    _backend: Nginx,
}

impl Scene {
    /// Writes the objects; routes are the measurement's own.
    pub(crate) fn build(lab: &Lab) -> anyhow::Result<Self> {
        let backend = SocketAddr::from(([10, 30, 0, 11], 8080));
        let leaf = Authority::create()?.issue(&["*.example.com"])?;
        let https = objects::https_listener("https", 443, "*.example.com", "example-com");
        let http = objects::http_listener("http", 80);
        lab.write(
            "base.yaml",
            &objects::join([
                objects::domain("public", "wan0", &[PUBLIC_POOL], &["shards: 1"]),
                objects::domain("private", "lan0", &[PRIVATE_POOL], &["shards: 1"]),
                objects::class("public"),
                objects::class("private"),
                objects::namespace("shop", ""),
                objects::gateway("gw", "public", "public", &[PUBLIC], &[&http, &https]),
                objects::gateway("gw", "private", "private", &[PRIVATE], &[&http]),
                objects::service_at("shop", "shop", &["10.30.0.11"]),
                leaf.to_secret("gw", "example-com"),
            ]),
        )?;
        Ok(Self { leaf, backend, _backend: Nginx::backend(&lab.backends, lab.folder(), backend)? })
    }

    /// One route that takes everything on a Gateway.
    pub(crate) fn write_catch_all(lab: &Lab, gateway: &str) -> anyhow::Result<()> {
        let route = objects::route("shop", gateway, &format!("gw/{gateway}"), &[HOST], &[&objects::to_service("shop")]);
        lab.write(&format!("route-{gateway}.yaml"), &route)
    }
}

/// The agent without its access log, as the peers have none.
pub(crate) fn start(lab: &Lab) -> anyhow::Result<Agent<'_>> {
    let arguments = vec!["--access-log".into(), "false".into()];
    Agent::start_with(lab, AgentOptions { arguments, log: "warn", ..AgentOptions::default() })
}
