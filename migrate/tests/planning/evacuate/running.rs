//! Evacuations carried out on a model, with faults in every phase and kills at every step.

use std::collections::{BTreeMap, BTreeSet};

use super::fleets::*;
use super::thousand;
use super::world::*;
use migrate::evacuate::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// A directory in memory, where there can be one: each record of a journal is synced.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// The journals of all evacuations there.
fn journals(state: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(state.join("evacuations")).unwrap().flatten();
    entries
        .map(|it| it.path())
        .filter(|path| path.extension().is_some_and(|it| it == "journal"))
        .collect()
}

/// Begins, is killed after so many steps, and is taken up again until nothing changes; at last with all faults mended.
/// The last report, and where the guests are.
fn evacuate(
    fleet: &Fleet,
    faults: &BTreeMap<String, Fault>,
    kills: &[usize],
    orders: &Orders,
) -> (Evacuated, BTreeMap<String, usize>) {
    let state = scratch();
    let mended: BTreeMap<_, _> = faults
        .iter()
        .filter(|(_, fault)| matches!(fault, Fault::InDoubt | Fault::Unverified))
        .map(|(uuid, fault)| (uuid.clone(), *fault))
        .collect();
    let mut world = World::new(fleet, faults, orders);
    let mut kills = kills.iter();
    drop(Evacuation::begin(state.path(), orders).unwrap());
    let [journal] = &journals(state.path())[..] else { panic!("not one journal") };
    for mend in [false, false, false, true, true] {
        if mend {
            world.faults = &mended;
        }
        loop {
            let kill = if mend { None } else { kills.next() };
            world = world.killing_at(kill.map_or(usize::MAX / 2, |step| *step), journal.clone());
            let mut evacuation = Evacuation::again(state.path(), None).unwrap();
            evacuation.settle(&world, &Deaf, &Stops::default()).unwrap();
            let plan = place(&world.look(&evacuation.remaining()));
            let report = evacuation.run(plan, &world, &Deaf, &Stops::default()).unwrap();
            drop(evacuation);
            let (next, killed) = world.once_killed();
            world = next;
            match killed {
                // What this process did after the kill never was.
                Some(bytes) => std::fs::write(journal, bytes).unwrap(),
                None if mend && report.stopped.is_none() => {
                    return (report, world.assert_settled());
                }
                None => break,
            }
        }
    }
    panic!("it does not end")
}

/// Cases of the search: a sample, or as many as `PROPTEST_CASES` says.
fn cases() -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    cases.unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_guest_is_on_one_host_whatever_fails_and_whenever_the_tool_is_killed(
        fleet in fleets(),
        faults in proptest::collection::vec(0..FAULTS.len(), 24),
        kills in proptest::collection::vec(1_usize..60, 0..3),
        at_once in 1_usize..5,
    ) {
        let faults: BTreeMap<_, _> =
            fleet.guests.iter().zip(faults).map(|(guest, at)| (guest.uuid.clone(), FAULTS[at])).collect();
        // In doubt nothing more begins, so only one of those.
        let mut doubts = 0;
        let faults: BTreeMap<_, _> = faults
            .into_iter()
            .map(|(uuid, fault)| match fault {
                Fault::InDoubt if doubts > 0 => (uuid, Fault::None),
                Fault::InDoubt => { doubts += 1; (uuid, fault) }
                _ => (uuid, fault),
            })
            .collect();
        let guests = fleet.guests.iter().map(|guest| guest.uuid.clone()).collect();
        let orders = Orders { guests, at_once, bandwidth: Some(20 * MIB), ..Orders::default() };
        let (report, left) = evacuate(&fleet, &faults, &kills, &orders);
        let moved: BTreeSet<_> = report.guests.iter().filter(|it| it.ending == Ending::Moved).collect::<Vec<_>>()
            .into_iter().map(|it| it.uuid.clone()).collect();
        for outcome in &report.guests {
            let gone = left.contains_key(&outcome.uuid);
            match outcome.ending {
                Ending::Moved | Ending::Unverified => prop_assert!(gone, "{outcome:?}"),
                other => prop_assert!(false, "{other:?}: {outcome:?}"),
            }
        }
        prop_assert!(moved.iter().all(|uuid| left.contains_key(uuid)));
        // What is not gone had no place.
        let told = report.guests.len() + report.refused.len();
        prop_assert_eq!(told, fleet.guests.len());
    }
}

fn small(count: usize) -> Fleet {
    let guests = (0..count).map(|nth| {
        let name = format!("guest-{nth:03}");
        guest(&name, 1, &demand(&name, nth as u64 + 1), 1)
    });
    let guests = guests.collect();
    fleet(vec![host("b", 1000, 1000, 1_000_000)], guests)
}

#[test]
fn what_is_stopped_ends_what_is_under_way_and_leaves_the_rest() {
    struct StopAt<'a>(&'a Stops, &'a str);
    impl Watcher for StopAt<'_> {
        fn event(&self, event: &Event<'_>) {
            if matches!(event, Event::Phase(guest, _) if guest.name == self.1) {
                self.0.drain.cancel();
            }
        }
    }
    let (fleet, faults, orders) =
        (small(10), BTreeMap::new(), Orders { at_once: 1, ..Orders::default() });
    let state = scratch();
    let world = World::new(&fleet, &faults, &orders);
    let mut evacuation = Evacuation::begin(state.path(), &orders).unwrap();
    let stops = Stops::default();
    let report =
        evacuation.run(place(&fleet), &world, &StopAt(&stops, "guest-003"), &stops).unwrap();
    assert_eq!((report.count(Ending::Moved), report.count(Ending::Waiting)), (4, 6));
    assert!(report.stopped.unwrap().contains("as asked"));
    drop(evacuation);
    let mut again = Evacuation::again(state.path(), Some(&report.id)).unwrap();
    let plan = place(&world.look(&again.remaining()));
    assert_eq!(plan.guests.len(), 6);
    let report = again.run(plan, &world, &Deaf, &Stops::default()).unwrap();
    assert_eq!((report.count(Ending::Moved), report.stopped), (10, None));
}

#[test]
fn the_program_before_a_guest_keeps_it_and_the_one_after_ends_the_evacuation() {
    let (fleet, orders) = (small(4), Orders { at_once: 1, ..Orders::default() });
    let faults = [
        (fleet.guests[0].uuid.clone(), Fault::Before),
        (fleet.guests[1].uuid.clone(), Fault::After),
    ]
    .into();
    let state = scratch();
    let world = World::new(&fleet, &faults, &orders);
    let mut evacuation = Evacuation::begin(state.path(), &orders).unwrap();
    let report = evacuation.run(place(&fleet), &world, &Deaf, &Stops::default()).unwrap();
    let endings: Vec<_> = report.guests.iter().map(|guest| guest.ending).collect();
    assert_eq!(endings, [Ending::Refused, Ending::Moved, Ending::Waiting, Ending::Waiting]);
    assert!(report.guests[1].after.is_some() && report.stopped.unwrap().contains("guest-001"));
}

#[test]
fn two_evacuations_of_one_host_exclude_each_other() {
    let state = scratch();
    let first = Evacuation::begin(state.path(), &Orders::default()).unwrap();
    let second = Evacuation::begin(state.path(), &Orders::default()).unwrap_err();
    assert_eq!(second.kind(), migrate::ErrorKind::Refused);
    drop(first);
    Evacuation::again(state.path(), None).unwrap();
    assert!(Evacuation::again(state.path(), Some("../x")).is_err());
}

#[test]
fn a_link_that_is_too_thin_for_a_guest_refuses_it() {
    let (mut fleet, faults) = (small(2), BTreeMap::new());
    fleet.guests[1].demands[0].as_mut().unwrap().streams = 9;
    let orders = Orders { at_once: 2, bandwidth: Some(4 * MIB), ..Orders::default() };
    let state = scratch();
    let world = World::new(&fleet, &faults, &orders);
    let mut evacuation = Evacuation::begin(state.path(), &orders).unwrap();
    let report = evacuation.run(place(&fleet), &world, &Deaf, &Stops::default()).unwrap();
    assert_eq!((report.guests.len(), report.refused.len()), (1, 1));
    assert_eq!(report.refused[0].reasons[0].refusals[0].code, "bandwidth");
}

/// Carries a schedule out in a time of its own: what is sent takes as long as its part of the link makes it.
fn simulate(
    plan: &EvacuationPlan,
    at_once: usize,
    bandwidth: u64,
    failing: &BTreeSet<&str>,
) -> (u64, Vec<String>) {
    let mut schedule = Schedule::new(&plan.guests, at_once, Some(bandwidth));
    // When each that is under way ends, its rate, and who it is.
    let mut under_way: Vec<(u64, u64, Assignment)> = Vec::new();
    let (mut now, mut order) = (0, Vec::new());
    let mut there: BTreeSet<(String, std::path::PathBuf)> = BTreeSet::new();
    loop {
        while let Some(Begins { guest, bandwidth: rate }) = schedule.next() {
            let rate = rate.unwrap();
            let comes = |base| guest.bases.contains(base);
            for (_, _, other) in under_way.iter().filter(|(_, _, other)| other.to == guest.to) {
                let one = other.bases.iter().find(|base| comes(base));
                assert!(one.is_none_or(|base| there.contains(&(guest.to.clone(), base.clone()))));
            }
            let seconds = guest.transfer_bytes / rate + guest.memory / rate + 1;
            order.push(guest.name.clone());
            under_way.push((now + seconds, rate, guest));
            assert!(under_way.len() <= at_once);
            assert!(under_way.iter().map(|it| it.1).sum::<u64>() <= bandwidth);
        }
        if schedule.is_over() {
            assert!(schedule.waiting().is_empty());
            return (now, order);
        }
        under_way.sort_by_key(|it| std::cmp::Reverse((it.0, it.2.name.clone())));
        let (end, _, guest) = under_way.pop().unwrap();
        now = end;
        let arrived = !failing.contains(&*guest.name);
        if arrived {
            there.extend(guest.bases.iter().map(|base| (guest.to.clone(), base.clone())));
        }
        schedule.ended(&guest.uuid, arrived);
    }
}

#[test]
fn a_thousand_guests_are_on_the_way_in_order_and_the_link_is_used() {
    let plan = place(&thousand());
    let link = 1250 * MIB;
    let (alone, in_order) = simulate(&plan, 1, link, &BTreeSet::new());
    let names: Vec<_> = plan.guests.iter().map(|guest| guest.name.clone()).collect();
    assert_eq!(in_order, names, "one at a time, they go in the plan's order");
    let (eight, order) = simulate(&plan, 8, link, &BTreeSet::new());
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 1000);
    // The same link carries the same bytes; what is left is its last guests.
    assert!(eight < alone + alone / 10, "{eight} s for eight at a time, {alone} s one by one");
    let bytes: u64 = plan.guests.iter().map(|guest| guest.transfer_bytes + guest.memory).sum();
    println!("{} s at best, {alone} s one at a time, {eight} s eight at a time", bytes / link);
}

#[test]
fn if_the_first_fails_the_next_brings_the_backing_file() {
    let named = |name: &str| guest(name, 1, &on_base(demand(name, 10), "base", 100), 1);
    let fleet = fleet(vec![host("b", 64, 64, 1000)], ["a", "b", "c"].map(named).to_vec());
    let plan = place(&fleet);
    let mut schedule = Schedule::new(&plan.guests, 3, None);
    let mut begins = || schedule.next().map(|begins| begins.guest.name);
    assert_eq!((begins().as_deref(), begins()), (Some("a"), None));
    schedule.ended(&fleet.guests[0].uuid, false);
    let mut begins = || schedule.next().map(|begins| begins.guest.name);
    assert_eq!((begins().as_deref(), begins()), (Some("b"), None), "it brings it now");
    schedule.ended(&fleet.guests[1].uuid, true);
    assert_eq!(schedule.next().unwrap().guest.name, "c");
    let (_, order) = simulate(&plan, 3, 100 * MIB, &["a"].into());
    assert_eq!(order, ["a", "b", "c"]);
}

/// It arrives, or stays, and its run cannot end because a host does not answer; then it does.
struct Unfinished(migrate::Remedy);

impl Work for Unfinished {
    fn migrate(
        &self,
        _guest: &Assignment,
        _bandwidth: Option<u64>,
        _report: &dyn migrate::run::Report,
        _cancel: &migrate::CancelToken,
    ) -> migrate::Result<Moved> {
        let error = migrate::Error::new(migrate::ErrorKind::Environment, "no answer");
        Err(error.hint(self.0.clone()))
    }

    fn settle(
        &self,
        _guest: &Assignment,
        _begun: &str,
        _report: &dyn migrate::run::Report,
        _cancel: &migrate::CancelToken,
    ) -> migrate::Result<Option<Moved>> {
        let arrived = matches!(self.0, migrate::Remedy::ResumeMoved(_));
        Ok(arrived.then(Moved::default))
    }
}

#[test]
fn what_a_host_that_does_not_answer_leaves_unfinished_is_ended_first_by_the_next_attempt() {
    let orders = Orders { at_once: 1, ..Orders::default() };
    for (remedy, ending) in [
        (migrate::Remedy::ResumeMoved("id".into()), Ending::Moved),
        (migrate::Remedy::RollBackLater("id".into()), Ending::Waiting),
    ] {
        let state = scratch();
        let work = Unfinished(remedy);
        let mut evacuation = Evacuation::begin(state.path(), &orders).unwrap();
        let report = evacuation.run(place(&small(1)), &work, &Deaf, &Stops::default()).unwrap();
        assert_eq!(report.guests[0].ending, Ending::Failed);
        assert!(report.guests[0].unfinished && report.stopped.is_none());
        drop(evacuation);
        let mut again = Evacuation::again(state.path(), None).unwrap();
        assert!(again.remaining().is_empty(), "it is planned again before that is ended");
        again.settle(&work, &Deaf, &Stops::default()).unwrap();
        assert_eq!(again.outcomes()[0].ending, ending);
        let waits = usize::from(ending == Ending::Waiting);
        assert_eq!(again.remaining().len(), waits);
    }
}
