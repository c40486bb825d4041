//! One table of sources in memory: planned, built, and led from one state of the lists to the next.
//!
//! Pure: the lines are a slice, which in the agent is a BPF array mapped into it. While a table is written no program may
//! read it; that is the caller's to see to.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use tidegate_abi::sources::{
    FREE_LINE, HEADER_LINE, Header, IMMEDIATE, LINE_UNITS, MAX_LINES, Place, ROOT_LINE, STEPS_LINE, SourceLine,
};

use super::{
    arena::{Arena, Full},
    exact,
    lists::Lists,
    v4::{Count, V4},
    v6::{Size, V6},
};

/// Room for changes beside what the IPv4 lists take: an eighth, and this many units.
const SPARE_UNITS: u64 = 1_024;
/// Room for IPv4 addresses that find no place in their hash, among the prefixes: one in so many takes a block and a leaf.
const SPILLED: u64 = 64;
/// How often hashes are made larger when an entry finds no place in one. With each try a place becomes much likelier.
const TRIES: u32 = 8;

/// How large a table of some lists is.
pub(crate) struct Plan {
    v4: [Count; 2],
    v6: Size,
    /// Hundred, or more when a table of this size was too small.
    generosity: u64,
}

impl Plan {
    pub(crate) fn of(lists: &Lists) -> Self {
        let v4 = Count::of([lists.deny.v4(), lists.allow.v4()]);
        let v6 = Size::of([lists.deny.v6(), lists.allow.v6()]);
        Self { v4, v6, generosity: 100 }
    }

    /// A plan with larger hashes and more room, for when an entry found no place.
    pub(crate) fn grown(self, tries: u32) -> Option<Self> {
        let generosity = 100 + 15 * u64::from(tries);
        (tries < TRIES).then_some(Self { generosity, ..self })
    }

    /// Lines of the table.
    pub(crate) fn lines(&self) -> u64 {
        let parts = self.exact_lines().into_iter().chain(self.v6.lines(self.generosity));
        u64::from(FREE_LINE) + parts.sum::<u64>() + self.units().div_ceil(LINE_UNITS.into())
    }

    /// Whether places of lines and entries have numbers enough.
    pub(crate) fn fits(&self) -> bool {
        self.lines() <= MAX_LINES.into()
    }

    fn exact_lines(&self) -> [u64; 2] {
        self.v4.map(|count| exact::count_lines(count.addresses, self.generosity))
    }

    fn units(&self) -> u64 {
        let spilled: u64 = self.v4.iter().map(|count| count.addresses / SPILLED).sum();
        let units = self.v4.iter().map(|count| count.units).sum::<u64>();
        (units + units / 8 + spilled * Count::ALONE + SPARE_UNITS) * self.generosity / 100
    }
}

/// A table that holds some lists.
#[derive(Debug)]
pub(crate) struct Table {
    lists: Lists,
    v4: V4,
    v6: V6,
}

impl Table {
    /// Writes lists into empty lines, as many as planned.
    pub(crate) fn build(lists: &Lists, plan: &Plan, lines: &mut [SourceLine]) -> Result<Self, Full> {
        let mut header = Header { seed: RandomState::new().build_hasher().finish(), ..Header::default() };
        let mut first = FREE_LINE;
        for (place, count) in header.exact.iter_mut().zip(plan.exact_lines()) {
            let count = count as u32;
            *place = Place { first: if count > 0 { first } else { 0 }, lines: count };
            first += count;
        }
        let parts = plan.v6.lines(plan.generosity);
        let steps = &mut lines[STEPS_LINE as usize..ROOT_LINE as usize];
        let runs = plan.v6.place(&mut header, first, parts, steps);
        first += parts.iter().sum::<u64>() as u32;
        let arena = Arena::new(first * LINE_UNITS, lines.len() as u32 * LINE_UNITS);
        let v4 = V4::build([lists.deny.v4(), lists.allow.v4()], header, arena, lines)?;
        let v6 = V6::build([lists.deny.v6(), lists.allow.v6()], &plan.v6, header, runs, lines)?;
        lines[HEADER_LINE as usize] = header.write();
        Ok(Self { lists: lists.clone(), v4, v6 })
    }

    /// Leads to other lists; costs what differs. After an error the table is to be built anew.
    pub(crate) fn update(&mut self, lists: &Lists, lines: &mut [SourceLine]) -> Result<usize, Full> {
        let (old, new) = (&self.lists, lists);
        let v4 = self.v4.update([old.deny.v4(), old.allow.v4()], [new.deny.v4(), new.allow.v4()], lines)?;
        let v6 = self.v6.update([old.deny.v6(), old.allow.v6()], [new.deny.v6(), new.allow.v6()], lines)?;
        self.lists = lists.clone();
        Ok(v4 + v6)
    }

    /// What it holds.
    pub(crate) fn lists(&self) -> &Lists {
        &self.lists
    }
}

const _: () = assert!(MAX_LINES as u64 * (LINE_UNITS as u64) < IMMEDIATE as u64);
