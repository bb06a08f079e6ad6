//! The planner of evacuations: where guests go, and that no host gets more than it has.

pub(crate) mod fleets;
mod running;
mod world;

use self::fleets::*;
use migrate::evacuate::*;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_host_gets_more_than_it_has_and_what_is_refused_fits_nowhere(fleet in fleets()) {
        let plan = place(&fleet);
        assert_right(&fleet, &plan);
        prop_assert_eq!(&plan, &place(&fleet), "the same fleet gives the same plan");
        let json = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(plan, serde_json::from_str::<EvacuationPlan>(&json).unwrap());
    }
}

/// Guests with this much memory each.
fn guests(memory: &[u64], hosts: usize) -> Vec<Candidate> {
    (0..)
        .zip(memory)
        .map(|(nth, memory)| {
            let name = format!("guest-{nth}");
            guest(&name, *memory, &demand(&name, 10 + nth), hosts)
        })
        .collect()
}

#[test]
fn guests_are_spread_evenly() {
    let hosts = vec![host("b", 64, 64, 1000), host("c", 64, 64, 1000)];
    let fleet = fleet(hosts, guests(&[8; 12], 2));
    let plan = place(&fleet);
    assert_right(&fleet, &plan);
    assert_eq!(plan.destinations.iter().map(|it| it.guests).collect::<Vec<_>>(), [6, 6]);
}

#[test]
fn a_host_with_less_left_gets_less() {
    let hosts = vec![host("b", 96, 64, 1000), host("c", 32, 64, 1000)];
    let plan = place(&fleet(hosts, guests(&[8; 12], 2)));
    assert_eq!(plan.destinations.iter().map(|it| it.guests).collect::<Vec<_>>(), [9, 3]);
}

#[test]
fn each_thing_that_is_scarce_refuses_with_what_is_left() {
    type Scarce = (&'static str, fn(&mut Destination));
    let cases: [Scarce; 3] = [
        ("memory", |host| host.capacity.as_mut().unwrap().memory = 7),
        ("vcpus", |host| host.capacity.as_mut().unwrap().vcpus = 0),
        ("space", |host| host.filesystems = [(DISK.to_owned(), 9)].into()),
    ];
    for (code, scarce) in cases {
        let mut fleet = fleet(vec![host("b", 64, 64, 1000)], guests(&[8], 1));
        assert_eq!(place(&fleet).total.placed, 1);
        scarce(&mut fleet.destinations[0]);
        let plan = place(&fleet);
        let [left] = &plan.refused[..] else { panic!("{plan:#?}") };
        let codes: Vec<_> = left.reasons[0].refusals.iter().map(|it| &*it.code).collect();
        assert_eq!(codes, [code]);
        assert!(plan.to_string().contains(&format!("refused ({code})")), "{plan}");
    }
}

#[test]
fn a_guest_that_is_off_needs_storage_and_no_memory() {
    let mut fleet = fleet(vec![host("b", 0, 0, 1000)], guests(&[8], 1));
    (fleet.guests[0].memory, fleet.guests[0].vcpus) = (0, 0);
    assert_eq!(place(&fleet).total.placed, 1);
}

#[test]
fn a_guest_that_has_a_place_makes_room_for_one_that_has_no_choice() {
    // Only the first host can take the second guest, and the larger one, which has a choice, fills it.
    let mut guests = guests(&[8, 4], 2);
    guests[1].demands[1] = Err(vec![refusal("D05")]);
    let hosts = vec![host("b", 9, 64, 1000), host("c", 8, 64, 1000)];
    let fleet = fleet(hosts, guests);
    let plan = place(&fleet);
    assert_right(&fleet, &plan);
    assert_eq!(plan.total.placed, 2, "{plan}");
}

#[test]
fn what_keeps_all_guests_away_is_said_once() {
    let mut fleet = fleet(vec![host("b", 64, 64, 1000)], guests(&[8, 8], 1));
    fleet.destinations[0].obstacles = vec![refusal("ports-there")];
    let plan = place(&fleet);
    assert_eq!(plan.total.refused, 2);
    assert_eq!(plan.to_string().matches("ports-there").count(), 1, "{plan}");
}

#[test]
fn two_guests_that_need_one_path_go_to_two_hosts_or_one_of_them_stays() {
    let two = |hosts: usize| {
        let guest = |name| guest(name, 1, &demand("disk", 10), hosts);
        vec![guest("one"), guest("two")]
    };
    let b = || host("b", 64, 64, 1000);
    let plan = place(&fleet(vec![b()], two(1)));
    assert_eq!((plan.total.placed, &*plan.refused[0].reasons[0].refusals[0].code), (1, "target"));
    let plan = place(&fleet(vec![b(), host("c", 1, 1, 10)], two(2)));
    assert_eq!(plan.total.placed, 2, "{plan}");
}

#[test]
fn a_shared_backing_file_is_counted_and_brought_once_to_a_host() {
    let named = |name: &str| guest(name, 1, &on_base(demand(name, 10), "base", 100), 1);
    let fleet = fleet(vec![host("b", 64, 64, 130)], vec![named("a"), named("b"), named("c")]);
    let plan = place(&fleet);
    assert_right(&fleet, &plan);
    assert_eq!((plan.total.placed, plan.total.transfer_bytes), (3, 130));
    assert_eq!(plan.guests.iter().map(|guest| guest.brings.len()).collect::<Vec<_>>(), [1, 0, 0]);
}

#[test]
fn guests_of_one_template_keep_together_as_long_as_that_is_not_too_uneven() {
    let named = |name: &str| guest(name, 1, &on_base(demand(name, 10), "base", 1000), 2);
    let few = vec![named("a"), named("b")];
    let hosts = || vec![host("b", 64, 64, 100_000), host("c", 64, 64, 100_000)];
    let plan = place(&fleet(hosts(), few));
    assert_eq!(plan.total.transfer_bytes, 1020, "one copy: {plan}");
    let many = (0..60).map(|nth| named(&format!("guest-{nth}"))).collect();
    let plan = place(&fleet(hosts(), many));
    assert!(plan.destinations.iter().all(|host| host.guests > 10), "both are used: {plan}");
}

/// 1,000 guests of ten templates, and twenty hosts with room for a little more than that.
pub(crate) fn thousand() -> Fleet {
    let hosts: Vec<_> = (0..20)
        .map(|nth| host(&format!("host-{nth:02}"), (200 + nth % 5 * 40) * GIB, 256, 4000 * GIB))
        .collect();
    let mut state = 7_u64;
    let mut draw = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let guests = (0..1000).map(|nth| {
        let name = format!("guest-{nth:04}");
        let own = demand(&name, (1 + draw(40)) * GIB);
        let of = match draw(3) {
            0 => own,
            _ => on_base(own, &format!("template-{}", draw(10)), 10 * GIB),
        };
        let mut guest = guest(&name, (1 << draw(5)) * GIB / 2, &of, hosts.len());
        guest.vcpus = 1 + draw(4);
        // A third of the hosts has a processor that it cannot have.
        for demand in guest.demands.iter_mut().skip(draw(3) as usize).step_by(3) {
            *demand = Err(vec![refusal("cpu")]);
        }
        guest
    });
    let guests = guests.collect();
    fleet(hosts, guests)
}

#[test]
fn a_thousand_guests_go_to_twenty_hosts() {
    let fleet = thousand();
    let plan = place(&fleet);
    assert_right(&fleet, &plan);
    assert_eq!(plan.total.placed, 1000, "{:?}", plan.total);
    let copies: usize = plan.guests.iter().map(|guest| guest.brings.len()).sum();
    assert!(copies < 200, "{copies} copies of backing files, where 200 would be one everywhere");
}
