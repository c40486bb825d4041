//! Decides whether the kernel tier is used: `--kernel` against what this host offers.

use tidegate_kernel::{Kernel, KernelConfig, Samples, probe};
use tracing::{error, info, warn};

use crate::{
    cgroup::Cgroups,
    options::{KernelOption, RunOptions},
    state::TierState,
};

use super::{KernelTier, Tier};

/// `--kernel=require` cannot be met.
#[derive(Debug, thiserror::Error)]
#[error("--kernel=require, but the kernel tier cannot be used:\n{}", .0.join("\n"))]
pub struct Refusal(pub Vec<String>);

/// The tier and what belongs to it.
pub struct Opened {
    /// The tier.
    pub tier: Tier,
    /// What is said about it.
    pub state: TierState,
    /// Sampled verdicts, with the kernel tier.
    pub samples: Option<Samples>,
}

/// Opens the kernel tier as `--kernel` says. `auto` uses it only whole: with one needed feature missing there would be
/// walls that are not there, so it serves as `off` does and says what is missing.
///
/// # Errors
/// [`Refusal`] with `require`, one line for each thing that is missing.
pub fn open(options: &RunOptions) -> Result<Opened, Refusal> {
    if options.kernel == KernelOption::Off {
        warn!("--kernel=off: no admission, no steering, no guard; sources, rates and NICs of domains are not enforced");
        return Ok(off(vec!["--kernel=off: sources, rates, NICs and dialled addresses are not enforced".into()]));
    }
    match open_kernel(options) {
        Ok((tier, samples, warnings)) => {
            warnings.iter().for_each(|warning| warn!("{warning}"));
            let state = TierState { is_on: true, degraded: warnings, problems: Vec::new() };
            Ok(Opened { tier: Tier::On(Box::new(tier)), state, samples })
        }
        Err(missing) if options.kernel == KernelOption::Require => Err(Refusal(missing)),
        Err(missing) => {
            error!("--kernel=auto: serving WITHOUT admission, steering and guard, because:");
            missing.iter().for_each(|line| error!("  {line}"));
            Ok(off(missing))
        }
    }
}

fn off(degraded: Vec<String>) -> Opened {
    Opened { tier: Tier::Off, state: TierState { is_on: false, degraded, problems: Vec::new() }, samples: None }
}

type Kit = (KernelTier, Option<Samples>, Vec<String>);

fn open_kernel(options: &RunOptions) -> Result<Kit, Vec<String>> {
    let features =
        probe(&options.bpffs).map_err(|error| error.to_string().lines().map(str::to_owned).collect::<Vec<_>>())?;
    let config = KernelConfig::new(&options.bpffs, &options.instance);
    let (mut kernel, opened) = Kernel::open(&config).map_err(|error| vec![error.to_string()])?;
    info!(?opened, kernel = features.kernel, "kernel tier opened");
    kernel.attach_steer().map_err(|error| vec![error.to_string()])?;
    // Without a hierarchy of version 2 there is no guard at all, which each domain reports.
    if let Some(base) = Cgroups::discover(&options.instance).base() {
        kernel.watch_borrowed(base).map_err(|error| vec![error.to_string()])?;
        kernel.attach_observe(base).map_err(|error| vec![error.to_string()])?;
    }
    let mut warnings = features.warnings;
    let samples = kernel.take_samples().map_err(|error| warnings.push(format!("no sampled verdicts: {error}"))).ok();
    Ok((KernelTier::new(kernel), samples, warnings))
}
