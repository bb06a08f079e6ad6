//! What the planner of live flattening decides, fact by fact.

use crate::plan_facts::{MIB, SIZE, alone, chain, disk, guest, header, layer, overlay};
use migrate::facts::{Device, DomainState, Missing, Source};
use migrate::live::{Facts, LivePlan, Method, Needs, Options, Place, plan};
use qcow::chain::Format;

/// A running guest with an overlay on a template, and room.
fn facts() -> Facts {
    Facts {
        domain: guest(vec![]).domain,
        disk: overlay(),
        discard: false,
        needs: Some(Needs { below: 84 * MIB, pull: 85 * MIB, whole: 101 * MIB }),
        place: Place { path: "/old/vda.qcow2".into(), available: Some(SIZE), ..Place::default() },
    }
}

fn copy() -> Options {
    Options::default().method(Method::Copy)
}

fn planned(facts: &Facts, options: &Options) -> LivePlan {
    plan(facts, options).unwrap()
}

#[track_caller]
fn refused(facts: &Facts, options: &Options, codes: &[&str]) {
    let refusals = plan(facts, options).expect_err("it is planned");
    let found: Vec<_> = refusals.iter().map(|refusal| refusal.code.as_str()).collect();
    assert_eq!(found, codes);
    for refusal in refusals {
        assert!(
            !refusal.message.is_empty() && !refusal.way_out.to_string().is_empty(),
            "{refusal:?}"
        );
        assert_eq!(refusal.disk.as_deref(), Some("vda"));
    }
}

/// Each change alone is refused by its code alone, by both methods or by one.
#[test]
fn what_is_in_the_way_is_refused_by_its_code() {
    type Case = (&'static str, &'static [Method], fn(&mut Facts));
    const BOTH: &[Method] = &[Method::Pull, Method::Copy];
    let cases: &[Case] = &[
        ("not-running", BOTH, |f| f.domain.state = DomainState::ShutOff),
        ("not-running", BOTH, |f| f.domain.state = DomainState::Other),
        ("paused", &[Method::Pull], |f| f.domain.state = DomainState::Paused),
        ("busy", BOTH, |f| f.domain.job = Some("backup".into())),
        ("busy", BOTH, |f| f.disk.block_job = Some("block commit".into())),
        ("read-only", BOTH, |f| f.disk.readonly = true),
        ("read-only", BOTH, |f| f.disk.device = Device::Cdrom),
        ("shared", BOTH, |f| f.disk.shareable = true),
        ("transient", BOTH, |f| f.disk.transient = true),
        ("unreadable", BOTH, |f| {
            let missing = Missing { path: "/old/lower.qcow2".into(), why: "no".into() };
            chain(&mut f.disk).missing = Some(missing);
        }),
        ("stands-alone", BOTH, |f| f.disk = alone("vda")),
        ("chains-differ", BOTH, |f| drop(f.disk.live_chain.layers.pop())),
        ("chains-differ", BOTH, |f| f.disk.live_chain.layers[1].path = "/old/else.qcow2".into()),
        ("snapshots", BOTH, |f| header(&mut f.disk, 0).snapshots.push("before".into())),
        ("encrypted", BOTH, |f| header(&mut f.disk, 0).encryption = Some("luks".into())),
        ("data-file", BOTH, |f| header(&mut f.disk, 0).data_file = Some("raw".into())),
        ("corrupt", BOTH, |f| header(&mut f.disk, 0).corrupt = true),
        ("size", &[Method::Copy], |f| f.disk.live_capacity = Some(SIZE + 512)),
        ("no-room", BOTH, |f| f.place.available = Some(100 * MIB)),
        ("target", BOTH, |f| f.place.unusable = Some("read-only file system".into())),
        ("name-taken", &[Method::Copy], |f| f.place.taken = true),
        ("target", &[Method::Copy], |f| f.place.path = "/dev/vg/new".into()),
        ("target", &[Method::Copy], |f| f.place.path = "new.qcow2".into()),
    ];
    for (code, methods, change) in cases {
        let mut facts = facts();
        change(&mut facts);
        for method in [Method::Pull, Method::Copy] {
            let options = Options::default().method(method);
            if methods.contains(&method) {
                refused(&facts, &options, &[code]);
            } else {
                planned(&facts, &options);
            }
        }
    }
}

#[test]
fn all_reasons_are_told_at_once() {
    let mut facts = facts();
    facts.domain.state = DomainState::ShutOff;
    facts.disk.readonly = true;
    facts.place.available = Some(0);
    refused(&facts, &Options::default(), &["not-running", "read-only", "no-room"]);
}

#[test]
fn a_disk_without_an_image_is_refused() {
    for source in [Source::None, Source::Network { protocol: "rbd".into(), local: None }] {
        let mut facts = facts();
        (facts.disk.source, facts.disk.chain, facts.needs) = (source, None, None);
        refused(&facts, &Options::default(), &["no-image"]);
    }
}

#[test]
fn a_pull_grows_the_image_and_a_copy_makes_one() {
    let mut facts = facts();
    let pull = planned(&facts, &Options::default());
    assert_eq!((pull.copied_bytes, pull.grows_bytes), (84 * MIB, 85 * MIB));
    assert_eq!(pull.length_bytes, 185 * MIB);
    assert_eq!(pull.image, pull.becomes);
    assert_eq!(pull.below.len(), 1);
    facts.place.path = "/old/new.qcow2".into();
    let copy = planned(&facts, &copy());
    assert_eq!((copy.grows_bytes, copy.length_bytes), (101 * MIB, 101 * MIB));
    assert_ne!(copy.image, copy.becomes);
}

/// All must fit into a device, which does not grow.
#[test]
fn a_device_must_hold_everything() {
    let mut facts = facts();
    chain(&mut facts.disk).layers[0].block_device = true;
    facts.place.available = Some(160 * MIB);
    refused(&facts, &Options::default(), &["no-room"]);
    facts.place.available = Some(170 * MIB);
    assert_eq!(planned(&facts, &Options::default()).length_bytes, 101 * MIB);
}

/// A guest that discards makes tables hold less, and nobody can tell that from a loss.
#[test]
fn tables_are_compared_only_where_they_cannot_shrink() {
    assert!(planned(&facts(), &Options::default()).tables_compared);
    assert!(!planned(&Facts { discard: true, ..facts() }, &Options::default()).tables_compared);
    let mut old = facts();
    header(&mut old.disk, 0).version = 2;
    assert!(!planned(&old, &Options::default()).tables_compared);
}

#[test]
fn what_is_lost_is_said() {
    let notes = |facts: &Facts, options: &Options| planned(facts, options).notes.join("\n");
    let mut facts = facts();
    assert!(notes(&facts, &Options::default()).contains("shares with other guests"));
    chain(&mut facts.disk).layers[1].deleted = true;
    let said = notes(&facts, &Options::default());
    assert!(said.contains("deleted") && !said.contains("shares"), "{said}");
    header(&mut facts.disk, 0).bitmaps.push("daily".into());
    assert!(notes(&facts, &copy()).contains("bitmaps"));
    assert!(!notes(&facts, &Options::default()).contains("bitmaps"));
}

#[test]
fn a_move_keeps_what_is_below_unless_it_cannot() {
    let options = || Options::default().method(Method::Move).compare(true);
    let mut facts = facts();
    facts.place.path = "/fast/vda.qcow2".into();
    let plan = planned(&facts, &options());
    assert!(plan.keeps_below && plan.compare);
    assert_eq!((plan.copied_bytes, plan.grows_bytes), (17 * MIB, 17 * MIB));
    let whole = planned(&facts, &options().standalone(true));
    assert!(!whole.keeps_below);
    assert_eq!(whole.grows_bytes, 101 * MIB);

    // What has no backing file goes too, and in its own format.
    let mut raw = facts.clone();
    raw.disk = disk("vda", vec![layer("/old/vda.raw", 10, Format::Raw)]);
    let plan = planned(&raw, &options());
    assert_eq!((plan.format, plan.keeps_below), (Format::Raw, false));
    raw.disk.live_capacity = Some(SIZE + 512);
    refused(&raw, &options(), &["size"]);

    chain(&mut facts.disk).layers[1].deleted = true;
    let plan = planned(&facts, &options());
    assert!(!plan.keeps_below && !plan.compare);
    assert!(plan.notes.join("\n").contains("cannot be compared"), "{:?}", plan.notes);
    facts.domain.state = DomainState::Paused;
    planned(&facts, &options());
    facts.domain.state = DomainState::ShutOff;
    refused(&facts, &options(), &["not-running"]);
}

#[test]
fn the_plan_is_stable_json() {
    let plan = planned(&facts(), &Options::default());
    let json = serde_json::to_value(&plan).unwrap();
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "domain",
            "uuid",
            "disk",
            "method",
            "image",
            "becomes",
            "format",
            "keeps-below",
            "compare",
            "virtual-size",
            "below",
            "copied-bytes",
            "grows-bytes",
            "length-bytes",
            "available-bytes",
            "bandwidth",
            "timeout",
            "tables-compared",
            "running",
            "notes"
        ]
    );
    assert_eq!(serde_json::from_value::<LivePlan>(json).unwrap(), plan);
}
