//! The demo: the main job shown with real packets, real processes and the shared example unchanged.
//!
//! Nothing here is canned: each step does something, measures what came of it and says so; a step that does not hold
//! makes the exit code 1.

mod change;
mod faults;
mod stage;
mod story;
mod traffic;

use std::time::Duration;

use self::{stage::Stage, story::Story};

/// Options of the demo.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Leave everything running at the end, print what to try, and clean up on Ctrl-C
    #[arg(long)]
    pub keep: bool,
}

/// One step: what it shows, and the function that does it and returns its evidence.
type Step = (&'static str, fn(&mut Stage<'_>, &mut Story) -> anyhow::Result<String>);

const STEPS: [Step; 8] = [
    ("HTTPS by name through the public domain", traffic::serves_https_by_name),
    ("The private domain serves the data centre", traffic::serves_the_data_centre),
    ("A denied source gets nothing", traffic::denies_a_source),
    ("Neither domain answers on the other's NIC", traffic::refuses_the_wrong_interface),
    ("A canary goes from 90/10 to 0/100", change::shifts_a_canary),
    ("A certificate is rotated live", change::rotates_a_certificate),
    ("A worker is killed", faults::kills_a_worker),
    ("The agent is killed", faults::kills_the_agent),
];

/// Shows everything.
///
/// # Errors
/// When the stage cannot be set, or a step did not hold.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut story = Story::begin();
    let lab = crate::Lab::create()?;
    let mut stage = Stage::set(&lab, &mut story)?;
    for (title, step) in STEPS {
        story.chapter(title);
        let outcome = step(&mut stage, &mut story);
        story.conclude(title, outcome);
    }
    let failed = story.summarize();
    if options.keep {
        stage.describe(&story);
        wait_for_interrupt();
    }
    anyhow::ensure!(failed == 0, "{failed} of {} steps did not hold", STEPS.len());
    Ok(())
}

/// Ctrl-C ends the process from [`crate::cleanup`], which takes the lab away first.
fn wait_for_interrupt() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
