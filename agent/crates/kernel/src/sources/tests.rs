//! Tables against the obvious model: an address is on a list when one of its prefixes contains it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tidegate_abi::{
    SourceLine,
    address::from_ip,
    sources::{ALLOWED, DENIED},
};
use tidegate_model::SourceList;
use tidegate_programs::sources::find;

use super::{
    lists::{Lists, differing, merge},
    table::{Plan, Table},
};

/// A small generator (xorshift64*): the same cases in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// An IPv4 address; `spread` says how many different ones there are about.
    fn v4(&mut self, spread: u32) -> Ipv4Addr {
        let bits = self.next() as u32;
        let dense = 0x0a01_0000 | bits & 0x0003_03ff;
        match self.below(4) {
            0 => Ipv4Addr::from(bits),
            1 => [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST][self.below(2) as usize],
            _ => Ipv4Addr::from(dense & !0 << (32 - spread.min(31)) | bits & 0x3ff),
        }
    }

    fn v6(&mut self) -> Ipv6Addr {
        let bits = u128::from(self.next()) << 64 | u128::from(self.next());
        let base = 0x2001_0db8_u128 << 96;
        match self.below(5) {
            0 => Ipv6Addr::from(bits),
            1 => [Ipv6Addr::UNSPECIFIED, Ipv6Addr::from(u128::MAX)][self.below(2) as usize],
            2 => Ipv6Addr::from(base | bits & 0x3 << 76 | bits & 0x3 << 64),
            _ => Ipv6Addr::from(base | bits & 0x7 << 76 | bits & 0x7 << 64 | bits & 0xf0f),
        }
    }

    fn prefix(&mut self) -> IpNet {
        if self.below(2) == 0 {
            let len = match self.below(6) {
                0 => self.below(33) as u8,
                1 => 32,
                2 => 24,
                3 => 16 + self.below(9) as u8,
                _ => 25 + self.below(8) as u8,
            };
            Ipv4Net::new(self.v4(24), len).expect("up to 32").into()
        } else {
            let len = match self.below(6) {
                0 => self.below(129) as u8,
                1 => 128,
                2 => [29, 32, 40, 48, 56, 64][self.below(6) as usize],
                3 => 65 + self.below(64) as u8,
                _ => [48, 56, 64, 72, 96, 128][self.below(6) as usize],
            };
            Ipv6Net::new(self.v6(), len).expect("up to 128").into()
        }
    }

    fn prefixes(&mut self, count: u64) -> Vec<IpNet> {
        (0..self.below(count + 1)).map(|_| self.prefix()).collect()
    }
}

/// A table in plain memory.
struct Sheet {
    table: Table,
    lines: Vec<SourceLine>,
}

impl Sheet {
    fn build(lists: &Lists) -> Self {
        let mut plan = Plan::of(lists);
        for tries in 1.. {
            let mut lines = vec![SourceLine::default(); plan.lines() as usize];
            match Table::build(lists, &plan, &mut lines) {
                Ok(table) => return Self { table, lines },
                Err(_) => plan = plan.grown(tries).expect("it fits in the end"),
            }
        }
        unreachable!()
    }

    /// Whether it could be changed; otherwise it is built anew, as in the agent.
    fn update(&mut self, lists: &Lists) -> bool {
        let is_changed = self.table.update(lists, &mut self.lines).is_ok();
        if !is_changed {
            *self = Self::build(lists);
        }
        is_changed
    }

    fn find(&self, ip: IpAddr) -> u32 {
        let bits = u128::from_be_bytes(from_ip(ip));
        find(self.lines.as_slice(), (bits >> 64) as u64, bits as u64)
    }
}

fn lists(deny: &[IpNet], allow: &[IpNet]) -> Lists {
    Lists { deny: deny.to_vec().into(), allow: allow.to_vec().into(), is_closed: true }
}

/// By looking at every prefix.
fn expected(lists: &Lists, ip: IpAddr) -> u32 {
    let has = |list: &SourceList| list.iter().any(|prefix| prefix.contains(&ip));
    (if has(&lists.deny) { DENIED } else { 0 }) | (if has(&lists.allow) { ALLOWED } else { 0 })
}

/// First and last address of each prefix, and their neighbours.
fn edges(lists: &Lists) -> Vec<IpAddr> {
    let mut edges = Vec::new();
    for prefix in lists.deny.iter().chain(lists.allow.iter()) {
        match prefix {
            IpNet::V4(prefix) => {
                let (first, last) = (u32::from(prefix.network()), u32::from(prefix.broadcast()));
                let all = [first, last, first.wrapping_sub(1), last.wrapping_add(1)];
                edges.extend(all.map(|addr| IpAddr::from(Ipv4Addr::from(addr))));
            }
            IpNet::V6(prefix) => {
                let (first, last) = (u128::from(prefix.network()), u128::from(prefix.broadcast()));
                let all = [first, last, first.wrapping_sub(1), last.wrapping_add(1)];
                edges.extend(all.map(|addr| IpAddr::from(Ipv6Addr::from(addr)).to_canonical()));
            }
        }
    }
    edges
}

fn assert_same(sheet: &Sheet, lists: &Lists, random: &mut Random) {
    let others: Vec<IpAddr> =
        (0..40).flat_map(|_| [random.v4(24).into(), IpAddr::from(random.v6()).to_canonical()]).collect();
    for ip in edges(lists).into_iter().chain(others) {
        assert_eq!(sheet.find(ip), expected(lists, ip), "{ip} in {lists:?}");
    }
}

#[test]
fn tables_say_what_looking_at_every_prefix_says() {
    let mut random = Random(0x7163_9a1d);
    for round in 0..240 {
        let count = [3, 12, 40, 100][round % 4];
        let lists = lists(&random.prefixes(count), &random.prefixes(count));
        assert_same(&Sheet::build(&lists), &lists, &mut random);
    }
}

#[test]
fn a_changed_table_says_what_a_new_one_does() {
    let mut random = Random(0xc0ff_ee11);
    let (mut changes, mut rebuilds) = (0, 0);
    for _ in 0..12 {
        let (mut deny, mut allow) = (random.prefixes(40), random.prefixes(40));
        let mut sheet = Sheet::build(&lists(&deny, &allow));
        for _ in 0..25 {
            for list in [&mut deny, &mut allow] {
                for _ in 0..random.below(4) {
                    let at = random.below(list.len() as u64 + 1) as usize;
                    match random.below(3) {
                        0 if at < list.len() => drop(list.swap_remove(at)),
                        // A neighbour of the same length: lengths stay, so that the change is one in place.
                        1 if at < list.len() => list[at] = neighbour(list[at], &mut random),
                        _ => list.push(random.prefix()),
                    }
                }
            }
            if random.below(8) == 0 {
                std::mem::swap(&mut deny, &mut allow);
            }
            let lists = lists(&deny, &allow);
            if sheet.update(&lists) {
                changes += 1
            } else {
                rebuilds += 1
            }
            assert_same(&sheet, &lists, &mut random);
        }
    }
    assert!(changes > 100 && rebuilds > 10, "{changes} changes in place, {rebuilds} tables built anew");
}

fn neighbour(prefix: IpNet, random: &mut Random) -> IpNet {
    match prefix {
        IpNet::V4(prefix) => Ipv4Net::new(random.v4(24), prefix.prefix_len()).expect("as before").into(),
        IpNet::V6(prefix) => Ipv6Net::new(random.v6(), prefix.prefix_len()).expect("as before").into(),
    }
}

#[test]
fn whole_families_edges_and_leaf_kinds() {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a prefix")).collect::<Vec<IpNet>>();
    let mut random = Random(5);
    let full: Vec<String> = (0..9).map(|octet| format!("198.51.100.{}/32", octet * 2)).collect();
    let full: Vec<&str> = full.iter().map(String::as_str).collect();
    for (deny, allow) in [
        (nets(&["0.0.0.0/0"]), nets(&[])),
        (nets(&["::/0"]), nets(&["0.0.0.0/0"])),
        (nets(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]), nets(&["255.255.255.255/32", "0.0.0.0/32"])),
        // Eight exceptions are sparse, nine are not; a /24 that is put together from parts is even again.
        (nets(&full[..8]), nets(&full)),
        (nets(&["198.51.100.0/25", "198.51.100.128/25"]), nets(&full)),
        (nets(&["198.51.100.0/24"]), nets(&["198.51.100.64/26"])),
        (nets(&["::ffff:0.0.0.0/96"]), nets(&["2001:db8::/64", "2001:db8::/65", "2001:db8::1/128", "2001:db8::/63"])),
        (nets(&[]), nets(&[])),
    ] {
        let lists = lists(&deny, &allow);
        assert_same(&Sheet::build(&lists), &lists, &mut random);
        let mut sheet = Sheet::build(&Lists::default());
        sheet.update(&lists);
        assert_same(&sheet, &lists, &mut random);
        sheet.update(&Lists::default());
        assert_same(&sheet, &Lists::default(), &mut random);
    }
}

#[test]
fn a_table_led_back_and_forth_keeps_its_room() {
    let mut random = Random(77);
    let one = lists(&(0..3_000).map(|_| random.prefix()).collect::<Vec<_>>(), &[]);
    let mut sheet = Sheet::build(&one);
    let lines = sheet.lines.len();
    let mut state: Vec<IpNet> = one.deny.iter().collect();
    let mut in_place = 0;
    for _ in 0..150 {
        for _ in 0..20 {
            let at = random.below(state.len() as u64) as usize;
            state[at] = neighbour(state[at], &mut random);
        }
        in_place += u32::from(sheet.update(&lists(&state, &[])));
    }
    assert!(in_place >= 147, "{in_place} of 150 in place");
    assert!(sheet.lines.len() < lines * 3 / 2, "{} lines after {lines}", sheet.lines.len());
    let now = lists(&state, &[]);
    for ip in edges(&now).into_iter().step_by(61) {
        assert_eq!(sheet.find(ip), expected(&now, ip), "{ip}");
    }
}

#[test]
fn differences_and_merges_are_those_of_sets() {
    let mut random = Random(99);
    for _ in 0..200 {
        let mut old = random.prefixes(300);
        let kept = old.clone();
        for _ in 0..random.below(5) {
            old.push(random.prefix());
        }
        let (old, new) = (SourceList::from(old), SourceList::from(kept));
        let only = |one: &SourceList, other: &SourceList| {
            one.v6().iter().filter(|prefix| !other.v6().contains(prefix)).copied().collect::<Vec<_>>()
        };
        let mut expected = only(&old, &new);
        expected.extend(only(&new, &old));
        expected.sort_unstable();
        assert_eq!(differing(old.v6(), new.v6()), expected);
        let merged: Vec<_> = merge(old.v4(), new.v4()).map(|(prefix, _)| prefix).collect();
        let mut all: Vec<_> = old.v4().iter().chain(new.v4()).copied().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(merged, all);
    }
}

#[test]
fn a_long_list_of_ipv6_prefixes_fits_at_the_first_or_second_try() {
    let mut random = Random(0x1011);
    let prefix = |random: &mut Random| {
        let bits = u128::from(random.next()) << 64 | u128::from(random.next());
        let bits = 0x2 << 124 | bits & (0xfff << 112) | bits & (u128::MAX >> 32);
        let len = [32, 36, 40, 44, 48, 48, 48, 56, 64, 64][random.below(10) as usize];
        IpNet::from(Ipv6Net::new_assert(bits.into(), len))
    };
    let lists = lists(&(0..300_000).map(|_| prefix(&mut random)).collect::<Vec<_>>(), &[]);
    let mut plan = Plan::of(&lists);
    for tries in 1..=3 {
        let mut lines = vec![SourceLine::default(); plan.lines() as usize];
        if Table::build(&lists, &plan, &mut lines).is_ok() {
            assert!(tries <= 2, "{tries} tries");
            return;
        }
        plan = plan.grown(tries).expect("not so soon");
    }
    panic!("it did not fit");
}
