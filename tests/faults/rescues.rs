//! The power goes, or the process is killed, while a deleted base is being saved: a copy that has its name is
//! whole, and the next run makes it out of whatever is left.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use fixtures::{Holder, needs_qemu};
use nix::sys::signal::Signal;

use super::cases::{Case, case};
use super::crashes::{Disk, KEPT, after, events};
use super::inject::{fates, must_be_survived};
use super::place::{Golden, Place, Room, is_room, on_threads};
use super::tracer::{Call, Disturbance, Fate, Traced, can_trace};

const CASE: Case = case("rescue", "rescue --pid PID --to .");

/// A base that is deleted and held open, and its content.
fn place() -> (Place, Vec<u8>) {
    let mut place = Place::new();
    place.holder = Some(Holder::new(&["-f", "qcow2"], &place.source("top")));
    let base = fs::read(place.source("base")).unwrap();
    fs::remove_file(place.source("base")).unwrap();
    (place, base)
}

/// Whether there is a copy under its own name; if so it must be whole.
fn copied(disk: &Disk, base: &[u8]) -> Result<bool, String> {
    let named = |name: &str| name.starts_with("base.rescued-") && !name.contains(".part-");
    let mut copies = disk.iter().filter(|(name, _)| named(name));
    match copies.next() {
        Some((_, bytes)) if bytes != base => Err("half a copy has its name".to_owned()),
        copy => Ok(copy.is_some()),
    }
}

/// Saves the base in a room where something may be left, and asserts that it is whole then and alone.
fn saves(place: &Place, room: &Room, base: &[u8]) -> Result<(), String> {
    let output = place.run_after(&CASE, room, ":");
    let disk: Disk = room.files().into_iter().collect();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !copied(&disk, base)? || disk.len() != 1 {
        return Err(format!("the next run: {:?}, {:?}, {said}", output.status, room.names()));
    }
    Ok(())
}

#[test]
fn wherever_the_power_goes_a_saved_base_is_whole_or_saved_by_the_next_run() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let (place, base) = place();
    let room = place.room(&CASE);
    let Traced { ended, stdout, stderr, calls, all_calls } =
        place.run(&CASE, &room, Disturbance::None);
    assert_eq!(ended, Ok(0), "{stderr}");
    let (before, after_it) = (vec![], room.files());
    let golden = Golden { code: 0, stdout, stderr, before, after: after_it, calls, all_calls };
    assert!(copied(&golden.after.iter().cloned().collect(), &base).unwrap());

    let events = events(&golden);
    let (mut seen, mut moments) = (HashSet::new(), 0);
    for end in 0..=events.len() {
        for kept in KEPT {
            moments += 1;
            let disk = after(&[], &events[..end], kept);
            let here = || format!("after {end} of {}, {kept:?}", events.len());
            let copied = copied(&disk, &base).unwrap_or_else(|error| panic!("{}: {error}", here()));
            assert!(copied || end < events.len(), "{}: done, and not there", here());
            if seen.insert(disk.clone()) {
                let room = place.room(&CASE);
                for (name, bytes) in &disk {
                    let path = room.0.join(name);
                    fs::write(&path, bytes).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                }
                saves(&place, &room, &base).unwrap_or_else(|error| panic!("{}: {error}", here()));
            }
        }
    }
    let without: Vec<_> =
        events.iter().filter(|e| !matches!(e, super::crashes::Event::Sync(_))).cloned().collect();
    let half = |kept| {
        (0..=without.len()).any(|n| copied(&after(&[], &without[..n], kept), &base).is_err())
    };
    assert!(KEPT.into_iter().any(half), "it syncs in vain");
    println!("{moments} crashes of rescue, {} of them different", seen.len());
}

#[test]
fn killed_at_any_call_on_files_a_saved_base_is_whole_or_saved_by_the_next_run() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let (place, base) = place();
    let calls = place.run(&CASE, &place.room(&CASE), Disturbance::None).calls;
    let changing: Vec<_> = calls.iter().filter(|call| call.changes_files()).collect();
    for call in &changing {
        let room = place.room(&CASE);
        let when = Disturbance::AtCall(call.name, call.nth, Fate::Killed);
        let run = place.run(&CASE, &room, when);
        assert_eq!(run.ended, Err(Signal::SIGKILL), "{}", run.stderr);
        let whole = copied(&room.files().into_iter().collect(), &base);
        whole.map(drop).and_then(|()| saves(&place, &room, &base)).unwrap_or_else(|error| {
            panic!("killed at {} {}: {error}", call.nth, call.name);
        });
    }
    println!("killed at {} calls of rescue", changing.len());
}

#[test]
fn whatever_call_fails_a_saved_base_is_whole_or_saved_by_the_next_run() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let (place, base) = place();
    let calls = place.run(&CASE, &place.room(&CASE), Disturbance::None).calls;
    let here = |call: &&Call| is_room(&call.path) || call.path.parent().is_some_and(is_room);
    // A run looks at all processes of the machine, which takes its time: calls that only look fail in one way.
    let most = |call: &Call| if call.changes_files() || call.name == "fsync" { 9 } else { 1 };
    let points: Vec<_> = calls
        .iter()
        .filter(here)
        .flat_map(|call| fates(call).into_iter().take(most(call)).map(move |fate| (call, fate)))
        .collect();
    on_threads(&points, |(call, fate)| {
        let room = place.room(&CASE);
        let run = place.run(&CASE, &room, Disturbance::AtCall(call.name, call.nth, *fate));
        let said =
            || format!("{} {}, {fate:?}: {:?} {}", call.nth, call.name, run.ended, run.stderr);
        let failed = |error: &str| Err(format!("{}: {error}", said()));
        let copied = copied(&room.files().into_iter().collect(), &base);
        match (run.ended, copied) {
            (Ok(0), Ok(true)) => Ok(()),
            (_, Err(error)) => failed(&error),
            _ if must_be_survived(*fate) => failed("was not survived"),
            // 1: the directory for the copy could not be looked at.
            (Ok(1 | 2 | 3 | 4 | 6), _) => {
                saves(&place, &room, &base).or_else(|error| failed(&error))
            }
            _ => failed("another end than documented"),
        }
    });
    println!("{} faults of rescue", points.len());
}
