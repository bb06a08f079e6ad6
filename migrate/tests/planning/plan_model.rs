//! Plans tried on a model of two hosts: first that the model corrupts disks where the real ones were seen
//! to, then that no plan ever makes it do so.

mod carrying_out;
mod worlds;

use std::collections::BTreeMap;
use std::path::Path;

use carrying_out::{Ended, carry_out};
use migrate::domain::{Change, DiskEdit};
use migrate::driver::model::*;
use migrate::facts::NamedLayer;
use migrate::plan::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use qcow::chain::Format;
use worlds::World;

// What the model must do wrong. The names are those of the experiments with the real thing.

const TOP: [Option<u8>; 4] = [Some(1), None, None, None];
const BASE: [Option<u8>; 4] = [Some(5), Some(6), None, None];

fn q(path: &str) -> NamedLayer {
    layer(Path::new(path), Format::Qcow2)
}

fn put(model: &mut Model, side: Side, path: &str, held: &[Option<u8>], base: Option<&str>) {
    let image = Image::new(Format::Qcow2, held.to_vec(), base.map(q));
    model.put(side, Path::new(path), image).unwrap();
}

/// A running guest with `/a/top` on the given lower layers, the uppermost first.
fn guest(lower: &[&[Option<u8>]]) -> Model {
    let mut model = Model::new(&[(Side::Source, "/a", 1), (Side::Destination, "/b", 2)]);
    let names: Vec<String> = (0..lower.len()).map(|depth| format!("/a/base{depth}")).collect();
    for (depth, held) in lower.iter().enumerate() {
        let below = names.get(depth + 1).map(String::as_str);
        put(&mut model, Side::Source, &names[depth], held, below);
    }
    put(&mut model, Side::Source, "/a/top", &TOP, names.first().map(String::as_str));
    let mut disk = GuestDisk::new("vda", Path::new("/a/top"), Format::Qcow2);
    disk.content = model.show(Side::Source, Path::new("/a/top"), Format::Qcow2).unwrap();
    model.disks.push(disk);
    model.start().unwrap();
    model
}

/// Migrates with this flag, the XML naming `below` under `/b/top`.
fn migrate(model: &mut Model, flag: Flag, below: &[&str]) -> Result<(), String> {
    let request = MigrationRequest {
        flags: vec![flag],
        migrate_disks: vec!["vda".into()],
        edits: vec![DiskEdit {
            target: "vda".into(),
            change: Change::Move {
                path: "/b/top".into(),
                block: false,
                format: Format::Qcow2,
                below: below.iter().copied().map(q).collect(),
                slice: None,
            },
        }],
    };
    model.migrate(&request, &Scenario::default()).map_err(|error| error.to_string())
}

fn right(model: &Model) -> bool {
    model.read(&model.disks[0]).unwrap() == model.disks[0].content
}

fn right_after_restart(model: &Model) -> bool {
    model.read_after_restart(&model.disks[0]).unwrap() == model.disks[0].content
}

use Flag::{NonSharedDisk as FULL, NonSharedInc as INC};

const EMPTY: [Option<u8>; 4] = [None; 4];
const STALE: [Option<u8>; 4] = [None, Some(9), Some(9), None];

#[test]
fn e1_m23_what_a_target_without_a_base_held_shows_through_an_incremental_copy() {
    for (flag, good) in [(INC, false), (FULL, true)] {
        let mut model = guest(&[]);
        put(&mut model, Side::Destination, "/b/top", &STALE, None);
        migrate(&mut model, flag, &[]).unwrap();
        assert_eq!(right(&model), good);
    }
}

#[test]
fn e2_m6_an_incremental_copy_into_an_empty_image_loses_the_base() {
    for (flag, good) in [(INC, false), (FULL, true)] {
        let mut model = guest(&[&BASE]);
        put(&mut model, Side::Destination, "/b/top", &EMPTY, None);
        migrate(&mut model, flag, &[]).unwrap();
        assert_eq!(right(&model), good);
    }
}

#[test]
fn e3_another_base_shows_through_an_incremental_copy() {
    for (flag, held, good) in [(INC, STALE, false), (FULL, STALE, true), (INC, BASE, true)] {
        let mut model = guest(&[&BASE]);
        put(&mut model, Side::Destination, "/b/base", &held, None);
        put(&mut model, Side::Destination, "/b/top", &EMPTY, Some("/b/base"));
        migrate(&mut model, flag, &["/b/base"]).unwrap();
        assert_eq!(right(&model), good, "{flag:?} {held:?}");
    }
}

#[test]
fn e3c_a_target_right_on_the_template_loses_the_layer_between() {
    let mut model = guest(&[&[None, Some(7), None, None], &BASE]);
    put(&mut model, Side::Destination, "/b/base", &BASE, None);
    put(&mut model, Side::Destination, "/b/top", &EMPTY, Some("/b/base"));
    migrate(&mut model, INC, &["/b/base"]).unwrap();
    assert!(!right(&model));
}

#[test]
fn e8_what_an_overlay_held_shows_through_an_incremental_copy() {
    for (flag, good) in [(INC, false), (FULL, true)] {
        let mut model = guest(&[&BASE]);
        put(&mut model, Side::Destination, "/b/base", &BASE, None);
        put(&mut model, Side::Destination, "/b/top", &STALE, Some("/b/base"));
        migrate(&mut model, flag, &["/b/base"]).unwrap();
        assert_eq!(right(&model), good);
    }
}

#[test]
fn m4_a_full_copy_reads_a_deleted_base() {
    let mut model = guest(&[&BASE]);
    model.unlink(Side::Source, Path::new("/a/base0"));
    put(&mut model, Side::Destination, "/b/top", &EMPTY, None);
    migrate(&mut model, FULL, &[]).unwrap();
    assert!(right(&model) && right_after_restart(&model));
}

#[test]
fn m7_a_chain_in_the_xml_must_be_there() {
    let mut model = guest(&[&BASE]);
    put(&mut model, Side::Destination, "/b/top", &EMPTY, None);
    migrate(&mut model, FULL, &["/b/base"]).unwrap_err();
    assert!(model.on == Side::Source && right(&model));
}

#[test]
fn m7c_a_chain_in_the_xml_alone_lasts_until_the_restart() {
    let mut model = guest(&[&BASE]);
    put(&mut model, Side::Destination, "/b/base", &BASE, None);
    put(&mut model, Side::Destination, "/b/top", &EMPTY, None);
    migrate(&mut model, INC, &["/b/base"]).unwrap();
    assert!(right(&model) && !right_after_restart(&model));
}

#[test]
fn m1_m2_m8_m12_m13_what_fails_leaves_the_guest_and_the_files_as_they_are() {
    for flag in [INC, FULL] {
        let mut model = guest(&[&BASE]);
        migrate(&mut model, flag, &[]).unwrap_err();
        put(&mut model, Side::Destination, "/b/top", &[None; 5], None);
        migrate(&mut model, flag, &[]).unwrap_err();
        assert!(model.look(Side::Destination, Path::new("/b/top")).is_some());
        assert!(model.on == Side::Source && right(&model));
    }
}

#[test]
fn m9_m10_the_list_must_hold_all_that_is_local_and_nothing_that_is_read_only() {
    let mut model = guest(&[&BASE]);
    put(&mut model, Side::Destination, "/b/top", &EMPTY, None);
    let request = |disks: &[&str]| MigrationRequest {
        flags: vec![FULL],
        migrate_disks: disks.iter().map(|disk| (*disk).to_owned()).collect(),
        edits: vec![],
    };
    let mut cdrom = GuestDisk::new("sda", Path::new("/a/base0"), Format::Qcow2);
    cdrom.readonly = true;
    model.disks.push(cdrom);
    let scenario = Scenario::default();
    model.migrate(&request(&["vda", "sda"]), &scenario).unwrap_err();
    model.disks[1].readonly = false;
    // The second disk has the same directory on no other host.
    let mut with_place = Model::clone(&model);
    with_place.migrate(&request(&["vda"]), &scenario).unwrap_err();
}

// What no plan may ever do.

/// How a world went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Went {
    Refused,
    Stopped,
    Failed,
    Moved(CopyMode2),
}

/// [`CopyMode`] and [`Mode`] with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum CopyMode2 {
    Full,
    IncrementalOnExisting,
    IncrementalOnSeed,
    Nothing,
    Offline,
    OfflineThin,
}

fn kind(plan: &Plan) -> CopyMode2 {
    let base = |wanted: fn(&BasePlan) -> bool| {
        plan.disks.iter().any(|disk| match &disk.action {
            Action::Create { base: Some(base), .. } => wanted(base),
            _ => false,
        })
    };
    match (plan.mode, plan.copy) {
        (Mode::Offline, _) if base(|_| true) => CopyMode2::OfflineThin,
        (Mode::Offline, _) => CopyMode2::Offline,
        (_, CopyMode::Full) => CopyMode2::Full,
        (_, CopyMode::None) => CopyMode2::Nothing,
        _ if base(|base| matches!(base, BasePlan::BaseCopy { .. })) => CopyMode2::IncrementalOnSeed,
        _ => CopyMode2::IncrementalOnExisting,
    }
}

/// Plans and migrates in a world, and checks that no disk and no bystander's file is wrong afterwards.
fn try_in(world: &World) -> Went {
    let mut model = world.model();
    let Ok((plan, edits)) = decide(&model.facts(&world.policy), &world.policy) else {
        return Went::Refused;
    };
    world.write_before(&mut model);
    world.tamper(&mut model);
    for index in 0..model.disks.len() {
        // What was done to the source's own layers is not ours to put right.
        if let Ok(content) = model.read(&model.disks[index]) {
            model.disks[index].content = content;
        }
    }
    let before = model.files().clone();
    let ended = carry_out(&mut model, &plan, &edits, &world.policy, &world.scenario, world.damage);

    let mut may_change: Vec<Inode> = Vec::new();
    for disk in &plan.disks {
        if let Action::Adopt { path, .. } = &disk.action {
            may_change.extend(model.look(Side::Destination, path).map(|(inode, _)| inode));
        }
    }
    may_change.extend(world.tops(&before));
    let held = |files: &BTreeMap<Inode, Image>| -> Vec<(Inode, Vec<Option<u8>>)> {
        let bystanders = files.iter().filter(|(inode, image)| {
            before.contains_key(inode) && !may_change.contains(inode) && !image.in_use
        });
        bystanders.map(|(inode, image)| (*inode, image.clusters.clone())).collect()
    };
    assert_eq!(held(model.files()), held(&before), "another's file was written to");

    let moved = model.on == Side::Destination;
    let content = |disk: &GuestDisk| model.read(disk).ok();
    for disk in &model.disks {
        if let (false, None) = (moved, content(disk)) {
            continue; // It could not be read before either.
        }
        assert_eq!(content(disk).as_ref(), Some(&disk.content), "{} is wrong", disk.target);
        if moved {
            let cold = model.read_after_restart(disk).expect("it starts again");
            assert_eq!(cold, disk.content, "{} is wrong after a restart", disk.target);
        }
    }
    match ended {
        Ended::Moved => {
            assert!(moved);
            Went::Moved(kind(&plan))
        }
        Ended::Stopped(why) => {
            assert!(!moved);
            let adopts = plan.disks.iter().any(|disk| matches!(disk.action, Action::Adopt { .. }));
            assert!(world.tampered() || adopts, "nothing was in the way, but: {why}");
            Went::Stopped
        }
        Ended::Failed(why) => {
            assert!(world.scenario.fault.is_some(), "nothing was in the way, but: {why}");
            Went::Failed
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_plan_ends_in_a_wrong_disk_and_undisturbed_ones_end_well(world in worlds::some_world()) {
        try_in(&world);
    }
}

#[test]
fn the_worlds_that_are_tried_are_of_all_kinds() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<Went, usize> = BTreeMap::new();
    for _ in 0..2000 {
        let world = worlds::some_world().new_tree(&mut runner).unwrap().current();
        *seen.entry(try_in(&world)).or_default() += 1;
    }
    use CopyMode2::*;
    let all = [Full, IncrementalOnExisting, IncrementalOnSeed, Nothing, Offline, OfflineThin];
    for went in [Went::Refused, Went::Stopped, Went::Failed].into_iter().chain(all.map(Went::Moved))
    {
        assert!(seen.get(&went).is_some_and(|times| *times >= 10), "{went:?} of {seen:?}");
    }
}
