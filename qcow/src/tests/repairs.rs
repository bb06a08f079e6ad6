//! What a crash at any moment of a repair leaves behind.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use std::path::Path;
use std::sync::Arc;

use crate::chain::{Chain, Format, OpenOptions};
use crate::check::{
    CheckOptions, CheckOutcome, Finding, Kind as FindingKind, RepairOptions, Scope, Severity,
    check_image, make_plan, make_plan_asked_for,
};
use crate::image::Image;
use crate::io::sim::{Crash, Event, Failure, SimStorage};
use crate::io::{MemoryStorage, Storage};
use crate::ops::digest::{DigestOptions, digest};
use crate::ops::flatten::{FlattenOptions, flatten};
use crate::ops::{Qcow2Options, TargetOptions};
use crate::{CancelToken, ErrorKind, Result, Silent};

/// A sound image of 150 KiB with data in all of its clusters of 4 KiB.
fn sound() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("raw"), dir.path().join("image"));
    let bytes: Vec<u8> = (0..150u32 << 10).map(|at| (at / 512 % 250 + 1) as u8).collect();
    std::fs::write(&raw, &bytes).unwrap();
    let open = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    let chain = Chain::open(&raw, &open).unwrap();
    let target = Qcow2Options { cluster_size: 4096, ..Qcow2Options::default() };
    let options = FlattenOptions { target: TargetOptions::Qcow2(target), ..Default::default() };
    flatten(&chain, &image, &options, &Silent, &CancelToken::new()).unwrap();
    std::fs::read(&image).unwrap()
}

fn u64_at(image: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(image[at..at + 8].try_into().unwrap())
}

fn set(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    image.resize(image.len().max(at + bytes.len()), 0);
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn offset(entry: u64) -> usize {
    usize::try_from(entry & 0x00ff_ffff_ffff_fe00).unwrap()
}

/// Where the L2 table, the refcount table and the first refcount block lie.
fn places(image: &[u8]) -> (usize, usize, usize) {
    let l2 = offset(u64_at(image, offset(u64_at(image, 40))));
    let table = offset(u64_at(image, 48));
    (l2, table, offset(u64_at(image, table)))
}

fn checked(image: &[u8]) -> CheckOutcome {
    let storage = Arc::new(MemoryStorage::new(image.to_vec()));
    check_image(storage, &CheckOptions::default(), &Silent, &CancelToken::new()).unwrap()
}

/// What the active image and all snapshots read as.
fn crc(image: &[u8]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image).unwrap();
    let opened = Image::open(Arc::new(MemoryStorage::new(image.to_vec()))).unwrap();
    let snapshots = opened.snapshots().iter();
    let ids = snapshots.map(|snapshot| Some(String::from_utf8(snapshot.id.clone()).unwrap()));
    let read = |snapshot: Option<String>| {
        let open = OpenOptions { snapshot, ..OpenOptions::default() };
        let chain = Chain::open(Path::new(&path), &open).unwrap();
        let options = DigestOptions::default();
        let outcome = digest(&chain, &options, &Silent, &CancelToken::new()).unwrap();
        outcome.digest.to_string()
    };
    std::iter::once(None).chain(ids).map(read).collect()
}

/// One of the images that are kept in git.
fn kept(name: &str) -> Vec<u8> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/images");
    let mut image = std::fs::read(images.join(name)).unwrap();
    let cluster = 1 << u32_at(&image, 20);
    image.resize(image.len().next_multiple_of(cluster), 0);
    image
}

fn u32_at(image: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(image[at..at + 4].try_into().unwrap())
}

/// A storage that holds `image`, after a repair of everything.
fn repaired(image: &[u8]) -> SimStorage {
    let storage = SimStorage::new(image.to_vec());
    repair_in(&storage, None).unwrap();
    storage
}

/// Repairs everything in `storage`, where a call may fail.
fn repair_in(storage: &SimStorage, failure: Option<Failure>) -> Result<()> {
    let base: Arc<dyn Storage> = Arc::new(MemoryStorage::new(storage.bytes()));
    let options =
        RepairOptions { scope: Scope::All, dry_run: false, check: CheckOptions::default() };
    let (_, plan) = make_plan(&base, &options, &Silent, &CancelToken::new()).unwrap();
    failure.into_iter().for_each(|failure| storage.fail(failure));
    plan.changes.apply(storage)
}

/// Clusters that are used and not, or not enough, counted.
fn dangling(outcome: &CheckOutcome) -> Vec<Option<u64>> {
    let kinds = [FindingKind::RefcountTooLow, FindingKind::PastEnd, FindingKind::Misaligned];
    let dangling = outcome.findings.iter().filter(|finding| kinds.contains(&finding.kind));
    dangling.map(|finding| finding.index).collect()
}

/// Random states of a disk for each stretch between two syncs, besides those at each call.
const DRAWN: usize = 8;
/// Every so many crashes, qemu-img judges as well.
const SAMPLE: usize = 40;

/// Repairs a damaged image, with crashes at every moment and failures of every call: the content stays
/// what it was, nothing dangles that did not before, and a second repair makes it clean.
fn survives_crashes(image: &[u8]) {
    let judge = Judge { before: checked(image), content: crc(image) };
    let storage = repaired(image);
    assert!(storage.events().len() > 1, "there is something to write");
    for (number, crash) in storage.crashes(0x5eed, DRAWN).enumerate() {
        judge.survived(&crash);
        if number % SAMPLE == 0 {
            judge.qemu_agrees(&crash);
        }
    }
    for call in 0..storage.calls() {
        for (errno, written, for_good) in [(5, 0, true), (28, 100, true), (5, 8, false)] {
            let broken = SimStorage::new(image.to_vec());
            let failure = Failure { call, errno, written, for_good };
            let error = repair_in(&broken, Some(failure)).unwrap_err();
            let number = error.io_source().and_then(std::io::Error::raw_os_error);
            assert_eq!(number, Some(errno), "the system's own error is reported");
            // What was written stays in the page cache; then the machine stops as well.
            judge.survived(&Crash { bytes: broken.bytes(), moment: format!("{failure:?}") });
            judge.survived(&broken.crash(call));
        }
    }
    let whole = checked(&storage.bytes());
    assert_eq!((whole.corruptions, whole.leaks, whole.check_errors), (0, 0, 0));
}

/// What was so before a repair.
struct Judge {
    before: CheckOutcome,
    content: Vec<String>,
}

impl Judge {
    fn survived(&self, Crash { bytes: left, moment }: &Crash) {
        let (outcome, was) = (checked(left), dangling(&self.before));
        assert!(
            dangling(&outcome).iter().all(|index| was.contains(index)),
            "{moment}: {outcome:#?}"
        );
        // A copied flag that is not set yet costs a copy at worst, though QEMU counts it.
        if self.before.corruptions == 0 {
            let harmless = |finding: &Finding| finding.message.contains("flag is not set");
            let corrupt = |finding: &&Finding| finding.severity == Severity::Corruption;
            assert!(
                outcome.findings.iter().filter(corrupt).all(harmless),
                "{moment}: {outcome:#?}"
            );
        }
        assert_eq!(crc(left), self.content, "{moment}");
        let again = repaired(left).bytes();
        let whole = checked(&again);
        assert_eq!((whole.corruptions, whole.leaks, whole.check_errors), (0, 0, 0), "{moment}");
        assert_eq!(crc(&again), self.content, "{moment}");
    }

    /// qemu-img counts what we count in what a crash left, and nothing once that is repaired.
    fn qemu_agrees(&self, Crash { bytes: left, moment }: &Crash) {
        for (image, clean) in [(left.clone(), false), (repaired(left).bytes(), true)] {
            let Some((corruptions, leaks)) = checked_by_qemu(&image) else { return };
            let ours = checked(&image);
            assert_eq!((ours.corruptions, ours.leaks), (corruptions, leaks), "{moment}");
            assert!(!clean || (corruptions, leaks) == (0, 0), "{moment}");
        }
    }
}

/// Corruptions and leaks as `qemu-img check` counts them, if it is there and can check the image at all.
fn checked_by_qemu(image: &[u8]) -> Option<(u64, u64)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image).unwrap();
    let mut check = std::process::Command::new("qemu-img");
    let Ok(output) = check.args(["check", "--output", "json"]).arg(&path).output() else {
        println!("SKIPPED: no qemu-img");
        return None;
    };
    let counts: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let count = |key: &str| counts.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
    (count("check-errors") == 0).then(|| (count("corruptions"), count("leaks")))
}

#[test]
fn a_crash_while_leaks_are_repaired_leaves_leaks_at_worst() {
    let mut image = sound();
    let (l2, _, block) = places(&image);
    // Two clusters nobody uses any more, and one whose refcount is too high.
    for at in [3, 7] {
        set(&mut image, l2 + 8 * at, &[0; 8]);
    }
    let cluster = offset(u64_at(&image, l2)) >> 12;
    set(&mut image, block + 2 * cluster, &[0, 9]);
    let entry = u64_at(&image, l2) & !(1 << 63);
    set(&mut image, l2, &entry.to_be_bytes());
    assert_eq!(checked(&image).corruptions, 0);
    survives_crashes(&image);
}

/// A crash can cut off what was allocated at the end of the file. No check counts that, and no repair may leave it:
/// it would be leaked when the file grows.
#[test]
fn clusters_that_are_counted_past_the_end_of_the_file_are_free_after_a_repair() {
    let mut image = sound();
    let (_, _, block) = places(&image);
    let end = image.len() >> 12;
    for cluster in [end + 1, end + 3, 2047] {
        set(&mut image, block + 2 * cluster, &[0, 1]);
    }
    let grown = |image: &[u8]| {
        let mut grown = image.to_vec();
        grown.resize(2048 << 12, 0);
        checked(&grown).leaks
    };
    assert_eq!((checked(&image).leaks, grown(&image)), (0, 3));
    let mended = repaired(&image).bytes();
    assert_eq!((checked(&mended).corruptions, grown(&mended)), (0, 0));
    // Leaks alone, too.
    let base: Arc<dyn Storage> = Arc::new(MemoryStorage::new(image.clone()));
    let options = RepairOptions::new(Scope::Leaks);
    let (_, plan) = make_plan(&base, &options, &Silent, &CancelToken::new()).unwrap();
    assert_eq!(plan.steps.len(), 3);
    survives_crashes(&image);
}

#[test]
fn a_crash_while_refcounts_are_raised_makes_nothing_dangle() {
    let mut image = sound();
    let (l2, _, block) = places(&image);
    let first = offset(u64_at(&image, l2)) >> 12;
    for cluster in first..first + 5 {
        set(&mut image, block + 2 * cluster, &[0, 0]);
    }
    // Two entries for one cluster, which thus takes the place of another.
    let entry = u64_at(&image, l2 + 8 * 20).to_be_bytes();
    set(&mut image, l2 + 8 * 21, &entry);
    survives_crashes(&image);
}

#[test]
fn a_crash_while_refcounts_are_written_anew_leaves_the_old_or_the_new_ones() {
    for damage in [0x201, 0x7000_0000, 0] {
        let mut image = sound();
        let (l2, table, block) = places(&image);
        let entry = if damage == 0 { 0 } else { block as u64 + damage };
        set(&mut image, table, &entry.to_be_bytes());
        // And a cluster that is not there, past the end of the file that grows now.
        let end = image.len().next_multiple_of(4096) as u64;
        set(&mut image, l2 + 8 * 12, &(end | 1 << 63).to_be_bytes());
        survives_crashes(&image);
    }
}

#[test]
fn a_crash_while_data_is_moved_out_of_metadata_changes_no_content() {
    let image = sound();
    let (l2, ..) = places(&image);
    for metadata in [l2 as u64, u64_at(&image, 40)] {
        let mut image = image.clone();
        set(&mut image, l2 + 8 * 20, &(metadata | 1 << 63).to_be_bytes());
        assert!(checked(&image).corruptions > 0);
        survives_crashes(&image);
    }
}

/// An entry that leads to where the file ends reads as zeros, until something is put there.
#[test]
fn data_is_not_moved_to_where_an_entry_leads_past_the_end() {
    let mut image = sound();
    let ((l2, ..), end) = (places(&image), image.len() as u64);
    set(&mut image, l2 + 8 * 20, &(l2 as u64 | 1 << 63).to_be_bytes());
    set(&mut image, l2 + 8 * 21, &(end | 1 << 63).to_be_bytes());
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(image));
    let options =
        RepairOptions { scope: Scope::All, dry_run: false, check: CheckOptions::default() };
    let planned = make_plan(&storage, &options, &Silent, &CancelToken::new());
    let refused = planned.map(|(_, plan)| plan.steps).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("past the end"), "{refused}");
}

#[test]
fn a_snapshot_table_is_not_completed_where_an_entry_leads_past_the_end() {
    let mut image = with_an_incomplete_snapshot();
    let (l2, ..) = places(&image);
    let end = image.len() as u64;
    set(&mut image, l2, &end.to_be_bytes());
    let content = crc(&image);
    let whole = repaired(&image).bytes();
    assert_eq!(crc(&whole), content);
    assert_eq!(checked(&whole).corruptions, 0);
}

fn with_an_incomplete_snapshot() -> Vec<u8> {
    let mut image = kept("snapshots-v3.qcow2");
    let table = usize::try_from(u64_at(&image, 64)).unwrap();
    // The first entry loses its extra data, and the others go.
    let extra = u32_at(&image, table + 36) as usize;
    let names = image[table + 40 + extra..table + 40 + extra + 64].to_vec();
    set(&mut image, table + 36, &[0; 4]);
    set(&mut image, table + 40, &names);
    set(&mut image, 60, &1u32.to_be_bytes());
    assert_eq!(crc(&image).len(), 2);
    image
}

#[test]
fn a_crash_while_a_snapshot_table_is_completed_leaves_the_old_or_the_new_one() {
    survives_crashes(&with_an_incomplete_snapshot());
}

/// As `image`, where the first snapshot has 1500 bytes of extra data: a new table behind the end, counted as it should be.
fn with_too_much_extra_data(mut image: Vec<u8>) -> Vec<u8> {
    let (cluster, old) = (1usize << u32_at(&image, 20), u64_at(&image, 64) as usize);
    let extra = u32_at(&image, old + 36) as usize;
    let first = &image[old..old + 40 + extra];
    let (fixed, known) = first.split_at(40);
    let mut table = [&fixed[..36], &1500u32.to_be_bytes(), known].concat();
    table.resize(40 + 1500, b'x');
    // The names of the first, and all of the second.
    let rest = old + 40 + extra;
    let len = |at: usize| usize::from(u16::from_be_bytes([image[old + at], image[old + at + 1]]));
    let names = len(12) + len(14);
    table.extend(&image[rest..rest + names]);
    table.resize(table.len().next_multiple_of(8), 0);
    let second = old + (40 + extra + names).next_multiple_of(8);
    table.extend(&image[second..second + 100]);
    table.resize(table.len().next_multiple_of(cluster), 0);
    let (at, block) = (image.len(), places(&image).2);
    for number in (at..at + table.len()).step_by(cluster).map(|at| at / cluster) {
        set(&mut image, block + 2 * number, &[0, 1]);
    }
    set(&mut image, block + 2 * (old / cluster), &[0, 0]);
    set(&mut image, at, &table);
    set(&mut image, 64, &(at as u64).to_be_bytes());
    image
}

/// Repairs everything in `storage`, as a user asks for it, and says what was to be done.
fn repair_as_asked(storage: &SimStorage) -> Result<Vec<crate::check::Action>> {
    let base: Arc<dyn Storage> = Arc::new(MemoryStorage::new(storage.bytes()));
    let options = RepairOptions::new(Scope::All);
    let (_, plan) = make_plan_asked_for(&base, &options, &Silent, &CancelToken::new())?;
    plan.changes.apply(storage)?;
    Ok(plan.steps.iter().map(|step| step.action).collect())
}

#[test]
fn a_crash_while_extra_data_of_a_snapshot_is_left_out_leaves_the_old_or_the_new_table() {
    let sound = kept("snapshots-v3.qcow2");
    let content = crc(&sound);
    let image = with_too_much_extra_data(sound);
    assert_eq!(
        Image::open(Arc::new(MemoryStorage::new(image.clone()))).unwrap_err().kind(),
        ErrorKind::Limit
    );
    let storage = SimStorage::new(image.clone());
    let steps = repair_as_asked(&storage).unwrap();
    assert_eq!(steps.first(), Some(&crate::check::Action::CutExtraData));
    let (mut old, mut new) = (0, 0);
    for Crash { bytes: left, moment } in storage.crashes(0x5eed, DRAWN) {
        match Image::open(Arc::new(MemoryStorage::new(left.clone()))) {
            Ok(_) => {
                new += 1;
                assert!(dangling(&checked(&left)).is_empty(), "{moment}: {:#?}", checked(&left));
                assert_eq!(crc(&left), content, "{moment}");
            }
            Err(_) => old += 1,
        }
        let again = SimStorage::new(left);
        repair_as_asked(&again).unwrap();
        let whole = checked(&again.bytes());
        assert_eq!((whole.corruptions, whole.leaks, whole.check_errors), (0, 0, 0), "{moment}");
        assert_eq!(crc(&again.bytes()), content, "{moment}");
    }
    assert!(old > 0 && new > 0);
}

/// Who only opens an image for writing did not ask for anything to be left out.
#[test]
fn extra_data_is_left_out_only_where_a_repair_is_asked_for() {
    let mut image = with_too_much_extra_data(kept("snapshots-v3.qcow2"));
    set(&mut image, 72, &1u64.to_be_bytes());
    let base: Arc<dyn Storage> = Arc::new(MemoryStorage::new(image.clone()));
    let refused = crate::check::takeover::plan(&base, &Silent, &CancelToken::new());
    assert_eq!(refused.map(|_| ()).unwrap_err().kind(), ErrorKind::Limit);
    // A length that is wrong itself: what follows is no snapshot.
    let table = u64_at(&image, 64) as usize;
    set(&mut image, table + 36, &2500u32.to_be_bytes());
    let refused = repair_as_asked(&SimStorage::new(image)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
}

#[test]
fn a_crash_while_a_snapshots_entries_are_dropped_makes_nothing_dangle() {
    let mut image = kept("snapshots-v3.qcow2");
    let l1 = offset(u64_at(&image, usize::try_from(u64_at(&image, 64)).unwrap()));
    let end = image.len() as u64 + 0x10000;
    set(&mut image, l1, &end.to_be_bytes());
    survives_crashes(&image);
}

#[test]
fn a_crash_after_bitmaps_were_dropped_leaves_leaks_at_worst() {
    let mut image = kept("bitmaps.qcow2");
    let magic = 0x2385_2875u32.to_be_bytes();
    let extension = image.windows(4).position(|bytes| bytes == magic).unwrap();
    let directory = offset(u64_at(&image, extension + 24));
    let table = offset(u64_at(&image, directory));
    let l2 = places(&image).0 as u64;
    set(&mut image, table, &l2.to_be_bytes());
    let events = repaired(&image).events();
    let bits = u64_at(&image, 88) & !1;
    assert_eq!(events[..2], [Event::Write(bits.to_be_bytes().to_vec(), 88), Event::Sync]);
    survives_crashes(&image);
}

#[test]
fn the_dirty_and_corrupt_bits_go_last() {
    let mut image = sound();
    let (l2, ..) = places(&image);
    set(&mut image, l2, &[0; 8]);
    set(&mut image, 72, &3u64.to_be_bytes());
    let events = repaired(&image).events();
    let bits = Event::Write(0u64.to_be_bytes().to_vec(), 72);
    assert_eq!(events[events.len() - 2..], [bits, Event::Sync]);
    assert!(events[..events.len() - 2].ends_with(&[Event::Sync]));
    survives_crashes(&image);
}

#[test]
fn a_sound_image_is_not_written_to() {
    assert_eq!(repaired(&sound()).calls(), 0);
}
