//! The Gateway API's definitions in the cluster: of one release and one channel, which its own policy forbids to mix.

use std::{fmt, fs};

use anyhow::{Context, Result, bail};

use super::state::State;
use crate::{
    modules::{self, Module},
    run, versions,
};

/// Which kinds and fields are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Channel {
    /// All of them.
    Experimental,
    /// Those that are stable.
    Standard,
    /// No kind of the Gateway API.
    None,
}

/// Which release of the Gateway API is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Release {
    /// That of the official conformance suite.
    #[value(name = "1.6.3")]
    Suite,
    /// That of the agent's own types.
    #[value(name = "1.7.0")]
    Types,
}

impl Release {
    /// As a Go module's version.
    pub(crate) fn version(self) -> &'static str {
        self.module().version
    }

    fn module(self) -> &'static Module {
        match self {
            Self::Suite => &versions::CONFORMANCE_CRDS,
            Self::Types => &versions::GATEWAY_API_MODULE,
        }
    }
}

/// What is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Installed {
    version: String,
    channel: String,
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gateway API {}, {}", self.version, self.channel)
    }
}

impl State {
    /// Installs the definitions, unless they are there.
    ///
    /// # Errors
    /// Others are there.
    pub(super) fn install_crds(&self, channel: Channel, release: Release) -> Result<()> {
        let folder = match channel {
            Channel::Experimental => "experimental",
            Channel::Standard => "standard",
            Channel::None => return Ok(()),
        };
        let module = release.module();
        let wanted = Installed { version: module.version.to_owned(), channel: folder.to_owned() };
        match self.installed_crds()? {
            Some(there) if there == wanted => return Ok(()),
            Some(there) => bail!("the cluster has {there}, not {wanted}: `cargo xtask cluster down` first"),
            None => {}
        }
        let crds = modules::fetch(module)?.join("config/crd").join(folder);
        let mut apply = self.kubectl()?;
        apply.args(["apply", "--server-side"]);
        for entry in fs::read_dir(&crds).with_context(|| format!("cannot read {}", crds.display()))? {
            let file = entry?.path();
            // The list of the folder's files is for kustomize.
            if file.extension().is_some_and(|extension| extension == "yaml") && !file.ends_with("kustomization.yaml") {
                apply.arg("--filename").arg(file);
            }
        }
        run::step(&format!("install {wanted}"), &mut apply)?;
        let mut wait = self.kubectl()?;
        run::read(wait.args(["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])).map(drop)
    }

    /// What is installed, by what the definition of Gateways says of itself.
    pub(super) fn installed_crds(&self) -> Result<Option<Installed>> {
        let list = self.api("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")?;
        let items = list["items"].as_array().into_iter().flatten();
        let gateways =
            items.map(|item| &item["metadata"]).find(|meta| meta["name"] == "gateways.gateway.networking.k8s.io");
        Ok(gateways.map(|meta| {
            let note = |name: &str| {
                let note = &meta["annotations"][format!("gateway.networking.k8s.io/{name}")];
                note.as_str().unwrap_or("unknown").to_owned()
            };
            Installed { version: note("bundle-version"), channel: note("channel") }
        }))
    }
}
