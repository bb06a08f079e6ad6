//! The power goes. What a run wrote, in its order and with its syncs, is laid on a model of a disk that keeps
//! what was synced and may lose, tear and reorder everything else.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use fixtures::needs_qemu;
use fixtures::pattern::Random;
use nix::libc;

use super::cases::{Case, MAKERS, REPAIRS, SCATTERED, SPARSIFIERS};
use super::place::{Golden, Place, is_room, on_a_sample};
use super::repairs;
use super::tracer::{Call, can_trace};

/// What a disk writes whole.
const SECTOR: usize = 512;

/// What became of a file or of the directory, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Create(String),
    Rename(String, String),
    Remove(String),
    /// The number of the file, where, and what.
    Write(usize, u64, Vec<u8>),
    SetLen(usize, u64),
    /// So much space from the start on.
    Reserve(usize, u64),
    /// Zeros: where, and how many.
    Zero(usize, u64, u64),
    Sync(usize),
    MakeDirectory(String),
    RemoveDirectory(String),
    SyncDirectory(String),
}

/// What there is: by name in the directory of the run, or by its own if it is a device.
pub(crate) type Before = [(String, Vec<u8>)];

/// Reads the events out of a run's calls.
pub(crate) fn events(golden: &Golden) -> Vec<Event> {
    events_of(&golden.before, &golden.calls).into_iter().map(|(_, event)| event).collect()
}

/// As [`events`], each with the place of its call.
pub(crate) fn events_of(before: &Before, calls: &[Call]) -> Vec<(usize, Event)> {
    let mut files: BTreeMap<String, usize> =
        before.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect();
    let mut lengths: Vec<u64> = before.iter().map(|(_, bytes)| bytes.len() as u64).collect();
    let mut events = Vec::new();
    let mut directories = HashSet::new();
    let name = |path: &Path| {
        let room = path.ancestors().find(|path| is_room(path));
        let name = room.map_or(path, |room| path.strip_prefix(room).unwrap());
        name.to_str().unwrap().to_owned()
    };
    // A device is a file that has been there before.
    let matters = |path: &Path| {
        let name = name(path);
        // What is there for as long as the run.
        let passing = name.starts_with("tmp/") || name.contains("/.qcowtool-");
        !passing && path.ancestors().any(is_room) || before.iter().any(|(known, _)| name == *known)
    };
    for (at, call) in calls.iter().enumerate().filter(|(_, call)| call.result >= 0) {
        if matches!(call.name, "mkdir" | "mkdirat") {
            directories.insert(name(&call.path));
        }
        // A directory that was made under a passing name is there when it gets its own.
        if call.name.starts_with("rename") && directories.contains(&name(&call.path)) {
            directories.insert(name(&call.to));
            events.push((at, Event::MakeDirectory(name(&call.to))));
            continue;
        }
        if !matters(&call.path) || call.is_on_a_stream() {
            continue;
        }
        let (of, [_, one, two, three, ..]) = (name(&call.path), call.arguments);
        let file = files.get(&of).copied();
        let event = match (call.name, file) {
            ("openat", None) if two as i32 & libc::O_CREAT != 0 => {
                files.insert(of.clone(), lengths.len());
                lengths.push(0);
                Event::Create(of)
            }
            ("renameat" | "renameat2" | "rename", Some(file)) => {
                files.remove(&of);
                files.insert(name(&call.to), file);
                Event::Rename(of, name(&call.to))
            }
            ("unlink" | "unlinkat", Some(_)) => {
                files.remove(&of);
                Event::Remove(of)
            }
            ("pwrite64", Some(file)) => {
                lengths[file] = lengths[file].max(three + call.result as u64);
                Event::Write(file, three, call.data[..call.result as usize].to_vec())
            }
            // What is written this way is written from the beginning to the end.
            ("write", Some(file)) => {
                let end = lengths[file];
                lengths[file] = end + call.result as u64;
                Event::Write(file, end, call.data[..call.result as usize].to_vec())
            }
            ("ftruncate", Some(file)) => {
                lengths[file] = one;
                Event::SetLen(file, one)
            }
            ("fallocate", Some(file)) if one == 0 => Event::Reserve(file, two + three),
            ("fallocate", Some(file)) => Event::Zero(file, two, three),
            ("fsync" | "fdatasync", Some(file)) => Event::Sync(file),
            ("fsync", None) => Event::SyncDirectory(of),
            ("mkdir" | "mkdirat", None) => Event::MakeDirectory(of),
            ("rmdir" | "unlinkat", None) => Event::RemoveDirectory(of),
            // It was there, and is opened as it is.
            ("openat", Some(_)) if two as i32 & libc::O_TRUNC == 0 => continue,
            _ => {
                assert!(!call.changes_files(), "not understood: {call:?}");
                continue;
            }
        };
        events.push((at, event));
    }
    events
}

/// Files by name, after a crash.
pub(crate) type Disk = BTreeMap<String, Vec<u8>>;

/// How much of what was not synced is there after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    All,
    Nothing,
    /// Of each write some sectors, of the rest some, by this seed.
    Some(u64),
}

pub(crate) const KEPT: [Kept; 6] =
    [Kept::All, Kept::Nothing, Kept::Some(1), Kept::Some(2), Kept::Some(3), Kept::Some(4)];

/// What is on the disk if the power goes after these events.
pub(crate) fn after(before: &Before, events: &[Event], kept: Kept) -> Disk {
    let Left { names, files, .. } = left_after(before, events, kept);
    names.into_iter().map(|(name, file)| (name, files[file].clone())).collect()
}

/// What is on the disk, and which file is which: by numbers, in the order in which they came to be.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Left {
    pub(crate) names: BTreeMap<String, usize>,
    pub(crate) files: Vec<Vec<u8>>,
    /// Directories that were made, and are not there.
    pub(crate) lost: Vec<String>,
    /// Directories that were removed, and are there.
    pub(crate) back: Vec<String>,
}

/// As [`after`].
pub(crate) fn left_after(before: &Before, events: &[Event], kept: Kept) -> Left {
    let mut random = Random::new(match kept {
        Kept::Some(seed) => seed * 1000 + events.len() as u64,
        _ => 0,
    });
    let mut lucky = || match kept {
        Kept::All => true,
        Kept::Nothing => false,
        Kept::Some(_) => random.below(2) == 0,
    };
    let last_sync = |of: usize| {
        events.iter().rposition(|event| matches!(event, Event::Sync(file) if *file == of))
    };
    let durable = |file, at| last_sync(file).is_some_and(|sync| at < sync);
    let mut files: Vec<Vec<u8>> = before.iter().map(|(_, bytes)| bytes.clone()).collect();
    files.resize(files.len() + events.len(), Vec::new());
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Write(file, offset, bytes) => {
                for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                    if durable(*file, at) || lucky() {
                        let start = usize::try_from(*offset).unwrap() + index * SECTOR;
                        let file = &mut files[*file];
                        file.resize(file.len().max(start + sector.len()), 0);
                        file[start..start + sector.len()].copy_from_slice(sector);
                    }
                }
            }
            Event::Zero(file, offset, len) => {
                let start = usize::try_from(*offset).unwrap();
                let end = start + usize::try_from(*len).unwrap();
                // No file becomes longer by it, and what it had may be lost.
                let there = files[*file].len();
                let (start, end) = (start.min(there), end.min(there));
                for sector in files[*file][start..end].chunks_mut(SECTOR) {
                    if durable(*file, at) || lucky() {
                        sector.fill(0);
                    }
                }
            }
            Event::SetLen(file, len) if durable(*file, at) || lucky() => {
                files[*file].resize(usize::try_from(*len).unwrap(), 0);
            }
            Event::Reserve(file, end) if durable(*file, at) || lucky() => {
                let end = files[*file].len().max(usize::try_from(*end).unwrap());
                files[*file].resize(end, 0);
            }
            _ => {}
        }
    }
    // A directory's changes may be lost from some moment on after its last sync.
    let synced = |directory: &str| {
        events
            .iter()
            .rposition(|event| matches!(event, Event::SyncDirectory(of) if of == directory))
    };
    let (mut names, mut losing) = (BTreeMap::new(), HashSet::new());
    let (mut gone, mut back) = (Vec::new(), Vec::new());
    names.extend(before.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)));
    let mut next = before.len();
    for (at, event) in events.iter().enumerate() {
        let changed = match event {
            Event::Create(name)
            | Event::Rename(_, name)
            | Event::Remove(name)
            | Event::MakeDirectory(name)
            | Event::RemoveDirectory(name) => name.rsplit_once('/').map_or("", |(above, _)| above),
            _ => continue,
        };
        let durable = synced(changed).is_some_and(|sync| at < sync);
        if !losing.contains(changed) && !durable && !lucky() {
            losing.insert(changed);
        }
        let lost = losing.contains(changed);
        match event {
            Event::Create(name) => {
                if !lost {
                    names.insert(name.clone(), next);
                }
                next += 1;
            }
            Event::Rename(from, to) if !lost => {
                let file = names.remove(from).expect("a file to rename");
                names.insert(to.clone(), file);
            }
            Event::Remove(name) if !lost => drop(names.remove(name)),
            Event::MakeDirectory(name) if lost => gone.push(name.clone()),
            Event::RemoveDirectory(name) if lost => back.push(name.clone()),
            _ => {}
        }
    }
    let below = |name: &str, above: &str| {
        name.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
    };
    names.retain(|name, _| !gone.iter().any(|gone| below(name, gone)));
    Left { names, files, lost: gone, back }
}

/// Whether what is left of a target is what was there before, or what was to be there.
fn whole(case: &Case, golden: &Golden, disk: &Disk, done: bool) -> bool {
    let of = |files: &[(String, Vec<u8>)], name: &str| {
        files.iter().find(|(file, _)| file == name).map(|(_, bytes)| bytes.clone())
    };
    let is = |files: &[(String, Vec<u8>)], name: &&str| disk.get(*name).cloned() == of(files, name);
    let new = case.makes.iter().filter(|name| is(&golden.after, name)).count();
    let old = case.makes.iter().all(|name| is(&golden.before, name) || is(&golden.after, name));
    // The image, which is named first, is nothing without its data file.
    let complete = new == case.makes.len() || is(&golden.before, &case.makes[0]);
    old && complete && (!done || new == case.makes.len())
}

/// The moments after which a target is half, or is not there though the command was done; and how many
/// moments there were.
fn broken(case: &Case, golden: &Golden, events: &[Event]) -> (Vec<String>, usize) {
    let mut broken = Vec::new();
    for end in 0..=events.len() {
        for kept in KEPT {
            let disk = after(&golden.before, &events[..end], kept);
            if !whole(case, golden, &disk, end == events.len()) {
                let last = end.checked_sub(1).map(|last| &events[last]);
                let last = format!("{last:?}").chars().take(80).collect::<String>();
                broken.push(format!("{}: after {end} ({last}), {kept:?}", case.name));
            }
        }
    }
    (broken, (events.len() + 1) * KEPT.len())
}

#[test]
fn wherever_the_power_goes_a_target_is_whole_or_as_it_was() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = Place::new();
    let mut moments = 0;
    for case in &MAKERS {
        let golden = Golden::of(&place, case);
        let all = events(&golden);
        let (found, of) = broken(case, &golden, &all);
        moments += of;
        assert!(found.is_empty(), "{}", found.join("\n"));
        // The model can find something: without its syncs no command is safe.
        for sync in [
            |event: &Event| matches!(event, Event::Sync(_)),
            |event: &Event| matches!(event, Event::SyncDirectory(_)),
        ] {
            let without: Vec<_> = all.iter().filter(|event| !sync(event)).cloned().collect();
            assert!(without.len() < all.len(), "{}: syncs nothing", case.name);
            assert!(!broken(case, &golden, &without).0.is_empty(), "{}: syncs in vain", case.name);
        }
    }
    println!("{moments} crashes of {} commands", MAKERS.len());
}

/// The images that a repair may leave, each once, with when; and how many moments there are.
fn left(golden: &Golden, events: &[Event]) -> (Vec<(String, Vec<u8>)>, usize) {
    let (mut seen, mut images) = (HashSet::new(), Vec::new());
    for end in 0..=events.len() {
        for kept in KEPT {
            let image = after(&golden.before, &events[..end], kept).remove("image").unwrap();
            if seen.insert(image.clone()) {
                images.push((format!("after {end}, {kept:?}"), image));
            }
        }
    }
    (images, (events.len() + 1) * KEPT.len())
}

/// What is wrong with an image that a repair left.
fn verdict(place: &Place, case: &Case, image: &[u8]) -> Result<(), String> {
    let room = place.room(case);
    let path = room.0.join("image");
    std::fs::write(&path, image).unwrap();
    repairs::at_worst_leaks(place, case, &path)
}

#[test]
fn wherever_the_power_goes_a_repair_leaves_leaks_at_worst() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = Place::new();
    let (mut moments, mut images, mut found) = (0, Vec::new(), 0);
    let cases = REPAIRS.iter().chain([&SCATTERED]).chain(&SPARSIFIERS);
    for case in cases.clone() {
        let golden = Golden::of(&place, case);
        let events = events(&golden);
        let done = after(&golden.before, &events, Kept::Nothing);
        assert!(done["image"] == golden.after[0].1, "{}: done, and not on the disk", case.name);
        let (more, of) = left(&golden, &events);
        moments += of;
        images.extend(more.into_iter().map(|(when, image)| (case, when, image)));
        // The model can find something.
        let is_sync = |event: &&Event| matches!(event, Event::Sync(_));
        let without: Vec<_> = events.iter().filter(|event| !is_sync(event)).cloned().collect();
        let broken = |(_, image): &(String, Vec<u8>)| verdict(&place, case, image).is_err();
        found += usize::from(left(&golden, &without).0.iter().any(broken));
    }
    on_a_sample("crashes", &images, |(case, when, image)| {
        verdict(&place, case, image).map_err(|error| format!("{}: {when}: {error}", case.name))
    });
    assert!(found > 0, "they sync in vain");
    println!("{moments} crashes of {} repairs, {} images", cases.count(), images.len());
    println!("without syncs {found} of the repairs are not safe");
}
