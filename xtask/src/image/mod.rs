//! `image`: the project's own container image as a file, made without Docker, from the agent that this machine builds.
//!
//! The agent is linked to the C library of the machine that built it, so the image takes that library and the loader
//! along: it holds the agent, three libraries, the loader, certificates of public authorities, and nothing to run a shell with.

mod archive;
mod libraries;
mod tar;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

pub(crate) use archive::{File, Image, write};

use crate::{
    build::{self, Profile},
    place, run,
    setup::{self, Need},
};

/// Where the agent is in the image.
const AGENT: &str = "/usr/local/bin/tidegate";
/// Certificates of the public authorities: where the image has them, which is the first of the places where a machine may.
const AUTHORITIES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
/// The image's name without its tag.
const NAME: &str = "ghcr.io/tidegate/tidegate";

/// What `image` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    own: Own,
    /// File to write, for `docker load`, `podman load` or `ctr images import` [default: tidegate-image.tar in cargo's target folder]
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// The project's own image: what is in it, and its names.
#[derive(clap::Args)]
pub(crate) struct Own {
    /// Build the agent quickly and without optimization.
    #[arg(long, conflicts_with = "agent")]
    dev: bool,
    /// Take this agent instead of building one.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Name and tag of the image; may be given several times [default: ghcr.io/tidegate/tidegate with the version as tag]
    #[arg(long = "tag", value_name = "NAME:TAG")]
    tags: Vec<String>,
}

/// Writes the image's file and says where it is.
///
/// # Errors
/// The agent cannot be built, or the file cannot be written.
pub(crate) fn run(args: &Args) -> Result<()> {
    let output = args.output.clone().unwrap_or_else(|| place::target().join("tidegate-image.tar"));
    let names = args.own.write(&output)?;
    run::note(&format!("image: {} ({})", output.display(), names.join(", ")));
    Ok(())
}

impl Own {
    /// The image with an agent that was built already.
    pub(crate) fn of(agent: PathBuf) -> Self {
        Self { dev: false, agent: Some(agent), tags: Vec::new() }
    }

    /// Builds the agent and writes its image to a file; returns the image's names.
    ///
    /// # Errors
    /// As [`run()`].
    pub(crate) fn write(&self, output: &Path) -> Result<Vec<String>> {
        setup::ensure(&[Need::Build, Need::Download])?;
        let agent = match &self.agent {
            Some(agent) => agent.clone(),
            None => build::agent(if self.dev { Profile::Dev } else { Profile::Release })?,
        };
        let names = if self.tags.is_empty() {
            vec![format!("{NAME}:{}", env!("CARGO_PKG_VERSION"))]
        } else {
            self.tags.clone()
        };
        run::judge("write the agent's image", || {
            let image = Image { names: &names, entry_point: AGENT, user: (0, 0), labels: &self.labels() };
            place::write(output, write(&image, &files(&agent)?))
        })?;
        Ok(names)
    }

    fn labels(&self) -> Vec<(&'static str, String)> {
        let mut labels = vec![
            ("org.opencontainers.image.title", "Tidegate".to_owned()),
            ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE").to_owned()),
            ("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY").to_owned()),
            ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        // Of which commit another agent is, nobody said.
        let commit = place::commit().filter(|_| self.agent.is_none());
        labels.extend(commit.map(|commit| ("org.opencontainers.image.revision", commit)));
        labels
    }
}

/// Everything in the image.
fn files(agent: &Path) -> Result<Vec<File>> {
    let stripped = place::target().join("xtask/tidegate.stripped");
    place::write(&stripped, "")?;
    // Line tables are four fifths of the file; names of functions stay, for traces.
    run::read(Command::new("strip").args(["--strip-debug", "-o"]).arg(&stripped).arg(agent))?;
    let mut files = libraries::of(agent)?;
    files.push(File { path: AGENT.to_owned(), mode: 0o755, content: read(&stripped)? });
    let authorities = AUTHORITIES.into_iter().map(Path::new).find(|file| file.exists());
    let authorities = authorities.with_context(|| format!("this machine has no {}", AUTHORITIES.join(" or ")))?;
    files.push(File { path: AUTHORITIES[0].to_owned(), mode: 0o644, content: read(authorities)? });
    Ok(files)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
