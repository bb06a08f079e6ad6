//! A block device is overwritten where it is. It is no image until the new one is whole: neither the old one,
//! half overwritten, nor the new one, half written.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use fixtures::{Loop, Scratch, args, needs_qemu, qemu_img};

use super::cases::{Case, case};
use super::crashes::{Event, KEPT, after, events};
use super::inject::{fates, must_be_survived};
use super::place::{Golden, Place, is_one_error};
use super::tracer::{Disturbance, Traced, can_trace};

const CASE: Case = case("flatten --device", "flatten --threads 1 --device SRC/top DEVICE");
const MAGIC: &[u8] = b"QFI\xfb";
/// More than the image needs, so that its length need not be found first.
const LENGTH: usize = 66 << 20;
/// What a run writes is in front of this.
const USED: usize = 1 << 20;

/// A device with an image on it, which is overwritten in each run.
fn place(scratch: &Scratch) -> Option<Place> {
    let volume = scratch.path("volume");
    fs::File::create(&volume).and_then(|file| file.set_len(LENGTH as u64)).unwrap();
    let device = Loop::over(&volume)?;
    let mut place = Place::new();
    place.device = Some(device);
    Some(place)
}

fn device(place: &Place) -> &Path {
    &place.device.as_ref().unwrap().0
}

/// What is on the device before a run: an image, and behind it something else.
fn old(place: &Place) -> Vec<u8> {
    let mut old = fs::read(place.source("sound")).unwrap();
    old.resize(USED, 0xa5);
    old
}

fn there(place: &Place) -> Vec<u8> {
    let mut bytes = vec![0; USED];
    fs::File::open(device(place)).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn run(place: &Place, disturbance: Disturbance) -> Traced {
    let file = fs::File::options().write(true).open(device(place)).unwrap();
    file.write_all_at(&old(place), 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    place.run(&CASE, &place.room(&CASE), disturbance)
}

/// An undisturbed run, and what it left.
fn golden(place: &Place) -> (Golden, Vec<u8>) {
    let run = run(place, Disturbance::None);
    assert_eq!(run.ended, Ok(0), "{}", run.stderr);
    let (same, device) = (place.source("same.raw"), device(place));
    qemu_img(&args!["compare", "-q", "-f", "raw", "-F", "qcow2", same, device]);
    let name = device.to_str().unwrap().to_owned();
    let Traced { stdout, stderr, calls, all_calls, .. } = run;
    let before = vec![(name, old(place))];
    let golden = Golden { code: 0, stdout, stderr, before, after: vec![], calls, all_calls };
    (golden, there(place))
}

#[test]
fn wherever_the_power_goes_a_device_is_the_old_image_none_or_the_new_one() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(place) = place(&scratch).filter(|_| can_trace()) else { return };
    let (golden, new) = golden(&place);
    let events = events(&golden);
    let (found, moments) = broken(&golden, &new, &events);
    assert!(found.is_empty(), "{}", found.join("\n"));
    // The model can find something.
    let without: Vec<_> =
        events.iter().filter(|event| !matches!(event, Event::Sync(_))).cloned().collect();
    assert!(!broken(&golden, &new, &without).0.is_empty(), "it syncs in vain");
    println!("{moments} crashes while a device is overwritten");
}

/// The moments after which the device has half an image, or not the new one though the command was done;
/// and how many moments there were.
fn broken(golden: &Golden, new: &[u8], events: &[Event]) -> (Vec<String>, usize) {
    let (name, old) = &golden.before[0];
    let mut broken = Vec::new();
    for end in 0..=events.len() {
        for kept in KEPT {
            let mut left = after(&golden.before, &events[..end], kept).remove(name).unwrap();
            left.truncate(USED);
            let half = left.starts_with(MAGIC) && left != new && left != *old;
            if half || end == events.len() && left != new {
                broken.push(format!("after {end} of {}, {kept:?}", events.len()));
            }
        }
    }
    (broken, (events.len() + 1) * KEPT.len())
}

#[test]
fn whatever_call_fails_a_device_is_no_image_unless_it_is_whole() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(place) = place(&scratch).filter(|_| can_trace()) else { return };
    let (golden, new) = golden(&place);
    let on_device = |call: &&_| super::tracer::Call::is_on(call, device(&place));
    let mut points = 0;
    for call in golden.calls.iter().filter(on_device) {
        for fate in fates(call) {
            points += 1;
            let run = run(&place, Disturbance::AtCall(call.name, call.nth, fate));
            let left = there(&place);
            let said = format!("{} {}, {fate:?}: {run:?}", call.nth, call.name);
            if run.ended == Ok(0) {
                assert!(left == new, "{said}");
                continue;
            }
            assert!(!must_be_survived(fate), "{said}");
            assert!(run.ended == Ok(1) && is_one_error(&run.stderr), "{said}");
            let untouched = left == golden.before[0].1;
            // The last sync may fail after the header is written: then the image is whole, as far as can be seen.
            assert!(untouched || !left.starts_with(MAGIC) || left == new, "half an image: {said}");
        }
    }
    println!("{points} faults while a device is overwritten");
}
