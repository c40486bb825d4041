//! One table of sources in memory: planned, built, and led from one state of the lists to the next.
//!
//! Pure: the lines are a slice, which in the agent is a BPF array mapped into it. While a table is written no program may
//! read it; that is the caller's to see to.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use tidegate_abi::sources::{
    FREE_LINE, HEADER_LINE, Header, IMMEDIATE, LINE_UNITS, MAX_LINES, ROOT_LINE, STEPS_LINE, SourceLine,
};

use super::{
    arena::{Arena, Full},
    lists::Lists,
    v4::{self, V4},
    v6::{Shape, V6},
};

/// Room for changes beside what the IPv4 lists take: an eighth, and this many units.
const SPARE_UNITS: u64 = 1_024;
/// How often a hash is made larger when an entry finds no place in it. With each try a place becomes much likelier.
const TRIES: u32 = 8;

/// How large a table of some lists is.
pub(crate) struct Plan {
    shape: Shape,
    hash_lines: u64,
    units: u64,
}

impl Plan {
    pub(crate) fn of(lists: &Lists) -> Self {
        let units = v4::count_units([lists.deny.v4(), lists.allow.v4()]);
        let shape = Shape::of([lists.deny.v6(), lists.allow.v6()]);
        Self { hash_lines: shape.lines(100), shape, units: units + units / 8 + SPARE_UNITS }
    }

    /// A plan with a larger hash, for when an entry found no place.
    pub(crate) fn grown(self, tries: u32) -> Option<Self> {
        let hash_lines = self.shape.lines(100 + 15 * u64::from(tries));
        (tries < TRIES).then_some(Self { hash_lines, ..self })
    }

    /// Lines of the table.
    pub(crate) fn lines(&self) -> u64 {
        u64::from(FREE_LINE) + self.hash_lines + self.units.div_ceil(LINE_UNITS.into())
    }

    /// Whether places of lines and entries have numbers enough.
    pub(crate) fn fits(&self) -> bool {
        self.lines() <= MAX_LINES.into()
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
        let hash_end = FREE_LINE + plan.hash_lines as u32;
        let arena = Arena::new(hash_end * LINE_UNITS, lines.len() as u32 * LINE_UNITS);
        let v4 = V4::build([lists.deny.v4(), lists.allow.v4()], arena, lines)?;
        let header = Header {
            seed: RandomState::new().build_hasher().finish(),
            first: FREE_LINE,
            lines: plan.hash_lines as u32,
            root: plan.shape.lengths.write(&mut lines[STEPS_LINE as usize..ROOT_LINE as usize]),
            default: 0,
        };
        let hash = &mut lines[FREE_LINE as usize..hash_end as usize];
        let v6 = V6::build([lists.deny.v6(), lists.allow.v6()], &plan.shape, header, hash)?;
        lines[HEADER_LINE as usize] = v6.header().write();
        Ok(Self { lists: lists.clone(), v4, v6 })
    }

    /// Leads to other lists; costs what differs. After an error the table is to be built anew.
    pub(crate) fn update(&mut self, lists: &Lists, lines: &mut [SourceLine]) -> Result<usize, Full> {
        let (old, new) = (&self.lists, lists);
        let v4 = self.v4.update([old.deny.v4(), old.allow.v4()], [new.deny.v4(), new.allow.v4()], lines)?;
        let header = self.v6.header();
        let hash = &mut lines[header.first as usize..(header.first + header.lines) as usize];
        let v6 = self.v6.update([old.deny.v6(), old.allow.v6()], [new.deny.v6(), new.allow.v6()], hash)?;
        lines[HEADER_LINE as usize] = self.v6.header().write();
        self.lists = lists.clone();
        Ok(v4 + v6)
    }

    /// What it holds.
    pub(crate) fn lists(&self) -> &Lists {
        &self.lists
    }
}

const _: () = assert!(MAX_LINES as u64 * (LINE_UNITS as u64) < IMMEDIATE as u64);
