//! Plans as files, and the facts that they hold for.

use crate::plan_facts::*;
use migrate::ErrorKind;
use migrate::facts::*;
use migrate::plan::*;

#[test]
fn a_plan_survives_its_file_and_nothing_else_does() {
    let plan = planned(&guest_with_base(), &Policy::default()).sealed().unwrap();
    let text = plan.to_json().unwrap();
    assert_eq!(Plan::from_json(&text).unwrap(), plan);

    let tampered = [
        ("\"copy\": \"incremental\"", "\"copy\": \"full\""),
        ("/new/base.qcow2", "/new/basf.qcow2"),
        ("non-shared-inc", "non-shared-disk"),
        (plan.digest.as_str(), "00"),
        ("qcowtool-plan/1", "qcowtool-plan/2"),
        ("\"schema\"", "\"scheme\""),
    ];
    for (old, new) in tampered {
        assert!(text.contains(old), "{old}");
        let error = Plan::from_json(&text.replace(old, new)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{old}");
    }
}

#[test]
fn a_plan_of_another_version_is_named_as_such() {
    // Even if nothing else in it can be understood.
    let error = Plan::from_json(r#"{"schema": "qcowtool-plan/7", "x": 1}"#).unwrap_err();
    assert!(error.message().contains("qcowtool-plan/7"), "{error}");
}

type Change = fn(&mut Facts);

#[test]
fn a_guest_that_goes_on_running_does_not_outdate_its_plan() {
    let passing: [Change; 9] = [
        |facts| chain(&mut facts.disks[0]).layers[0].identity.size += 65536,
        |facts| chain(&mut facts.disks[0]).layers[0].identity.mtime_ns += 1,
        |facts| chain(&mut facts.disks[0]).layers[0].identity.ctime_ns += 1,
        |facts| chain(&mut facts.disks[0]).top_bytes += 1,
        |facts| chain(&mut facts.disks[0]).guest_bytes = Some(7),
        |facts| header(&mut facts.disks[0], 0).dirty = true,
        |facts| destination(&mut facts.disks[0]).available = Some(7),
        |facts| facts.domain.state = DomainState::Paused,
        |facts| facts.domain.migratable_xml = "<currentMemory>".into(),
    ];
    let facts = guest_with_base();
    for change in passing {
        let mut later = facts.clone();
        change(&mut later);
        assert_ne!(later, facts);
        assert_eq!(later.fingerprint(), facts.fingerprint());
    }
}

#[test]
fn what_a_plan_rests_on_outdates_it_when_it_changes() {
    let grave: [Change; 19] = [
        |facts| chain(&mut facts.disks[0]).layers[0].identity.inode = Some(99),
        |facts| chain(&mut facts.disks[0]).layers[1].identity.inode = Some(99),
        |facts| chain(&mut facts.disks[0]).layers[1].identity.mtime_ns += 1,
        |facts| chain(&mut facts.disks[0]).layers[1].identity.ctime_ns += 1,
        |facts| chain(&mut facts.disks[0]).layers[1].deleted = true,
        |facts| chain(&mut facts.disks[0]).layers[0].virtual_size += 512,
        |facts| drop(chain(&mut facts.disks[0]).layers.pop()),
        |facts| facts.disks[0].live_capacity = Some(SIZE + 512),
        |facts| facts.disks[0].live_chain.layers[1].path = "/elsewhere".into(),
        |facts| destination(&mut facts.disks[0]).object = Some(object(40)),
        |facts| destination(&mut facts.disks[0]).bases[0].identity.inode = Some(99),
        |facts| destination(&mut facts.disks[0]).bases[0].content = Content::Different,
        |facts| destination(&mut facts.disks[0]).bases.clear(),
        |facts| facts.domain.job = Some("job".into()),
        |facts| facts.domain.snapshots.push("snapshot".into()),
        |facts| facts.domain.state = DomainState::ShutOff,
        |facts| facts.source.libvirt = Some(Version::new(7, 0, 0)),
        |facts| facts.destination.uuid = Some("another".into()),
        |facts| facts.disks.push(alone("vdb")),
    ];
    let facts = guest_with_base();
    for (index, change) in grave.into_iter().enumerate() {
        let mut later = facts.clone();
        change(&mut later);
        assert_ne!(later.fingerprint(), facts.fingerprint(), "change {index}");
    }
}

#[test]
fn of_a_guest_that_is_shut_off_the_active_layer_counts_too() {
    let mut facts = guest_with_base();
    facts.domain.state = DomainState::ShutOff;
    let mut later = facts.clone();
    chain(&mut later.disks[0]).layers[0].identity.mtime_ns += 1;
    assert_ne!(later.fingerprint(), facts.fingerprint());
}

fn object(inode: u64) -> ObjectFacts {
    ObjectFacts { identity: identity(inode), block_device: false, image: None, in_use: None }
}
