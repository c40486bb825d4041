//! Placeholder while the library is checked.
/// x
#[derive(Debug, clap::Args)]
pub struct Options {}
/// x
/// # Errors
/// x
pub fn run(_: &Options) -> anyhow::Result<()> {
    Ok(())
}
