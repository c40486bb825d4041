//! What of a table is given out and taken back: lines for the trees of IPv6, and units for blocks and leaves of IPv4.

use std::collections::BTreeMap;

use tidegate_abi::sources::BLOCK_UNITS;

/// No room for what is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Leaves of one node take at most this many units: four for each of its 64 /24s.
const MAX_RUN: usize = 256;

/// Which units are free. Runs of one size are kept together; larger ones are split when none fits.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    next: u32,
    end: u32,
    /// By size in units.
    free: Vec<Vec<u32>>,
    blocks: Vec<u32>,
}

impl Arena {
    /// The units from `next` up to `end`.
    pub(crate) fn new(next: u32, end: u32) -> Self {
        Self { next, end, free: vec![Vec::new(); MAX_RUN + 1], blocks: Vec::new() }
    }

    /// A block; it starts at an even unit, so that none of its nodes lies across lines.
    pub(crate) fn take_block(&mut self) -> Result<u32, Full> {
        if let Some(block) = self.blocks.pop() {
            return Ok(block);
        }
        if self.next % 2 == 1 && self.next < self.end {
            self.free[1].push(self.next);
            self.next += 1;
        }
        self.take_new(BLOCK_UNITS)
    }

    pub(crate) fn give_block(&mut self, block: u32) {
        self.blocks.push(block);
    }

    /// A run of leaves.
    pub(crate) fn take(&mut self, units: u32) -> Result<u32, Full> {
        if units == 0 {
            return Ok(0);
        }
        if let Some(run) = self.free[units as usize].pop() {
            return Ok(run);
        }
        self.take_new(units).or_else(|Full| {
            let larger = (units as usize + 1..=MAX_RUN).find(|&size| !self.free[size].is_empty()).ok_or(Full)?;
            let run = self.free[larger].pop().ok_or(Full)?;
            self.free[larger - units as usize].push(run + units);
            Ok(run)
        })
    }

    pub(crate) fn give(&mut self, run: u32, units: u32) {
        if units > 0 {
            self.free[units as usize].push(run);
        }
    }

    fn take_new(&mut self, units: u32) -> Result<u32, Full> {
        if self.end.saturating_sub(self.next) < units {
            return Err(Full);
        }
        self.next += units;
        Ok(self.next - units)
    }
}

/// Which lines are free, in runs of any length.
#[derive(Clone, Debug)]
pub(crate) struct Runs {
    next: u32,
    end: u32,
    /// By length.
    free: BTreeMap<u32, Vec<u32>>,
}

impl Runs {
    /// The lines from `next` up to `end`.
    pub(crate) fn new(next: u32, end: u32) -> Self {
        Self { next, end, free: BTreeMap::new() }
    }

    /// A run; the shortest free one that is long enough, or a new one.
    pub(crate) fn take(&mut self, lines: u32) -> Result<u32, Full> {
        let Some(entry) = self.free.range_mut(lines..).find(|(_, runs)| !runs.is_empty()) else {
            if self.end - self.next < lines {
                return Err(Full);
            }
            self.next += lines;
            return Ok(self.next - lines);
        };
        let (length, run) = (*entry.0, entry.1.pop().ok_or(Full)?);
        if length > lines {
            self.give(run + lines, length - lines);
        }
        Ok(run)
    }

    pub(crate) fn give(&mut self, run: u32, lines: u32) {
        self.free.entry(lines).or_default().push(run);
    }
}
