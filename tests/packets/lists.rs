//! Source lists are swapped whole: no verdict in between belongs to neither list.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tidegate_kernel::{Kernel, Reason};

use crate::{
    bed::{ALLOWED_V4, DENIED_V4, PRIVATE, PRIVATE_V4, PUBLIC, PUBLIC_V4, STRANGER_V4, desired, nets, on_bed},
    frame::{Link, TCP, V4, tcp},
};

#[test]
fn a_list_swapped_while_packets_are_judged_gives_no_wrong_verdict() {
    on_bed(|bed| {
        let config = bed.config.clone();
        let (wan, lan) = (bed.wan, bed.lan);
        let is_done = AtomicBool::new(false);
        let frame = |source, destination, port| V4::new(source, destination, TCP, tcp(port)).on(Link::untagged());
        // Whatever else the lists hold, these verdicts stay.
        let denied = frame(DENIED_V4, PUBLIC_V4, 443);
        let free = frame(STRANGER_V4, PUBLIC_V4, 443);
        let allowed = frame(ALLOWED_V4, PRIVATE_V4, 80);
        let stranger = frame(STRANGER_V4, PRIVATE_V4, 80);
        let (reader, opened) = Kernel::open(&config).expect("opening beside");
        assert!(opened.has_adopted_maps);
        // Before the thread exists: its namespace is the one of this thread.
        let judged = thread::scope(|scope| {
            let judge = scope.spawn(|| {
                let mut verdicts: BTreeMap<(usize, Reason), u64> = BTreeMap::new();
                while !is_done.load(Ordering::Relaxed) {
                    let cases = [(&denied, wan), (&free, wan), (&allowed, lan), (&stranger, lan)];
                    for (index, (frame, ifindex)) in cases.into_iter().enumerate() {
                        let verdict = reader.explain(frame, ifindex).expect("running");
                        *verdicts.entry((index, verdict.reason)).or_default() += 1;
                    }
                }
                verdicts
            });
            let mut swaps = 0;
            for round in 0..60u8 {
                let mut state = desired(wan, lan);
                let filler: Vec<String> = (0..200).map(|net| format!("172.16.{net}.{round}/32")).collect();
                let filler: Vec<&str> = filler.iter().map(String::as_str).collect();
                let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
                public.admission.deny.extend(nets(&filler));
                let private = state.domains.get_mut(&PRIVATE).expect("in every bed");
                private.admission.allow.as_mut().expect("in every bed").extend(nets(&filler));
                let report = bed.kernel.apply(&state).expect("applying");
                assert!(report.failures.is_empty(), "{:?}", report.failures);
                swaps += 1;
            }
            is_done.store(true, Ordering::Relaxed);
            assert_eq!(swaps, 60);
            judge.join().expect("the judging thread")
        });
        let reasons: Vec<_> = judged.keys().copied().collect();
        assert_eq!(
            reasons,
            [(0, Reason::SourceDenied), (1, Reason::Admitted), (2, Reason::Admitted), (3, Reason::SourceNotAllowed),],
            "{judged:?}"
        );
        assert!(judged.values().all(|count| *count > 100), "hardly anything was judged: {judged:?}");
        // Nothing of the sixty old lists is left.
        let fill = bed.kernel.map_fill();
        let sources = fill.iter().find(|fill| fill.map == "SOURCES_V4").expect("listed");
        assert_eq!(sources.entries, 200 + 1 + 200 + 1 + 1);
    });
}

#[test]
fn a_change_of_one_list_touches_no_other() {
    on_bed(|bed| {
        let mut state = desired(bed.wan, bed.lan);
        assert_eq!(bed.kernel.apply(&state).expect("applying").written, 0, "nothing differs");
        state.domains.get_mut(&PUBLIC).expect("in every bed").admission.deny.extend(nets(&["100.64.0.0/10"]));
        let report = bed.kernel.apply(&state).expect("applying");
        // Three prefixes and the policy; the two prefixes of the old list.
        assert_eq!((report.written, report.removed), (4, 2));
        let frame = V4::new([100, 127, 0, 1], PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        bed.assert_admit("a source denied later", &frame, bed.wan, PUBLIC, Reason::SourceDenied);
        state.domains.get_mut(&PUBLIC).expect("in every bed").admission.deny.clear();
        bed.kernel.apply(&state).expect("applying");
        bed.assert_admit("no list any more", &frame, bed.wan, PUBLIC, Reason::Admitted);
    });
}
