//! The power goes while a guest is moved, or while that is put back: what both hosts and the journal have lost
//! then stands in nobody's way, and in the end all or nothing has moved.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use fixtures::needs_qemu;
use nix::sys::signal::Signal;

use super::crashes::{Event, Kept, Left, events_of, left_after};
use super::place::{Place, Room, on_a_sample};
use super::stories::{
    End, Golden, STORIES, Story, begun, done_again, end_state, place, settle, traced,
};
use super::tracer::{Call, Disturbance, Fate, Traced, can_trace};

/// The power goes after so many events of a story, and this is kept of what was not synced.
struct Cut<'g> {
    story: &'static Story,
    golden: &'g Golden,
    events: usize,
    /// The call at which the process ends; `None` if it has ended by itself.
    call: Option<Call>,
    kept: Kept,
}

const KEPT: [Kept; 3] = [Kept::Nothing, Kept::Some(1), Kept::Some(2)];

/// The moments of a story, each that leaves something else.
fn cuts<'g>(place: &Place, story: &'static Story, golden: &'g Golden) -> Vec<Cut<'g>> {
    let room = begun(place, story);
    let before = room.files();
    let Traced { calls, .. } = traced(&room, story.line, Disturbance::None);
    let events = events_of(&before, &calls);
    let (mut seen, mut cuts) = (HashSet::new(), Vec::new());
    for end in 0..=events.len() {
        let some: Vec<_> = events[..end].iter().map(|(_, event)| event.clone()).collect();
        let done = end == events.len();
        let next = end.checked_sub(1).map_or(0, |last| events[last].0 + 1);
        // What is not looked at cannot end it: what comes next on a disk does.
        let next = calls[next..].iter().find(|call| !call.path.as_os_str().is_empty());
        let there = left_after(&before, &some, Kept::All);
        for kept in KEPT {
            let left = left_after(&before, &some, kept);
            // A file or directory whose removal is lost cannot be made the same object again here; what the disk has then
            // is what it had before the removal.
            let back = left.names.values().any(|left| there.names.values().all(|has| has != left))
                || !left.back.is_empty();
            if !back && seen.insert(left) || done {
                let call = next.filter(|_| !done).cloned();
                cuts.push(Cut { story, golden, events: end, call, kept });
            }
        }
    }
    cuts
}

/// Puts into a room what a disk would have kept. Files stay the objects that they are, by whatever name.
fn lose(room: &Room, before: &[(String, Vec<u8>)], events: &[Event], kept: Kept) {
    let all = left_after(before, events, Kept::All);
    let Left { names, files, lost, .. } = left_after(before, events, kept);
    let held = room.0.join("held");
    fs::create_dir(&held).unwrap();
    for (name, number) in &all.names {
        let bytes = fs::read(room.0.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(bytes == all.files[*number], "{name} is not what was written to it");
        fs::rename(room.0.join(name), held.join(number.to_string())).unwrap();
    }
    for directory in lost {
        let _ = fs::remove_dir_all(room.0.join(directory));
    }
    for (name, number) in names {
        let (path, held) = (room.0.join(&name), held.join(number.to_string()));
        if fs::read(&held).ok().as_ref() != Some(&files[number]) {
            fs::write(&held, &files[number]).unwrap();
        }
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::rename(held, path).unwrap();
    }
    fs::remove_dir_all(held).unwrap();
}

/// Lets it happen, and ends what is left as an operator would.
fn happens(place: &Place, cut: &Cut<'_>, counts: fn(&Event) -> bool) -> Result<(), String> {
    let room = begun(place, cut.story);
    let before = room.files();
    let when = cut
        .call
        .as_ref()
        .map_or(Disturbance::None, |call| Disturbance::AtCall(call.name, call.nth, Fate::Killed));
    let run = traced(&room, cut.story.line, when);
    let expected = if cut.call.is_some() { Err(Signal::SIGKILL) } else { Ok(0) };
    assert_eq!(run.ended, expected, "{}: {}", cut.story.name, run.stderr);
    // The call that was not made has no result.
    let made = run.calls.len() - usize::from(cut.call.is_some());
    let events = events_of(&before, &run.calls[..made]).into_iter().map(|(_, event)| event);
    let events: Vec<_> = events.collect();
    assert_eq!(events.len(), cut.events, "{}: {when:?}", cut.story.name);
    let events: Vec<_> = events.into_iter().filter(counts).collect();
    lose(&room, &before, &events, cut.kept);
    if cut.call.is_none() {
        end_state(cut.story, cut.golden, &room)?;
    }
    let end = if cut.events.is_multiple_of(2) { End::Rollback } else { End::Resume };
    match settle(cut.story, cut.golden, &room, end)? {
        true => Ok(()),
        false => done_again(cut.story, cut.golden, &room),
    }
    .map_err(|error| format!("{end:?}: {error}"))
}

#[test]
fn wherever_the_power_goes_during_a_migration_all_or_nothing_moves() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = place();
    let golden: Vec<_> = STORIES.iter().map(|story| (story, Golden::of(&place, story))).collect();
    let all: Vec<_> =
        golden.iter().flat_map(|(story, golden)| cuts(&place, story, golden)).collect();
    on_a_sample("crashes of migrations", &all, |cut| {
        happens(&place, cut, |_| true).map_err(|error| {
            let (name, events, kept) = (cut.story.name, cut.events, cut.kept);
            format!("{name}: after {events}, {kept:?}: {error}")
        })
    });
    println!("{} crashes of {} commands that move a guest", all.len(), golden.len());
}

#[test]
fn without_its_syncs_a_migration_that_is_done_is_lost() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = place();
    // Only where something is made, which must be there once that is said.
    let golden: Vec<_> =
        STORIES[..4].iter().map(|story| (story, Golden::of(&place, story))).collect();
    for syncs in [
        |event: &Event| !matches!(event, Event::Sync(_)),
        |event: &Event| !matches!(event, Event::SyncDirectory(_)),
    ] {
        let found = Mutex::new(0);
        for (story, golden) in &golden {
            let done = cuts(&place, story, golden).into_iter().filter(|cut| cut.call.is_none());
            let broken = done.filter(|cut| {
                let happens = || happens(&place, cut, syncs);
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(happens));
                result.is_ok_and(|result| result.is_err())
            });
            *found.lock().unwrap() += usize::from(broken.count() > 0);
        }
        assert_eq!(found.into_inner().unwrap(), golden.len(), "they sync in vain");
    }
}
