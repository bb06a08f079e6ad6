//! Whatever happens while a guest is moved, and while that is put back: no byte of the source changes, the journal can
//! be read or is not there, and in the end all or nothing has moved.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use fixtures::needs_qemu;
use nix::sys::signal::Signal;

use super::inject::{fates, must_be_survived};
use super::place::{Place, Room, is_one_error, on_a_sample};
use super::stories::{
    DISK, End, Golden, STORIES, Story, begun, done_again, end_state, hosts, place, settle, traced,
    transactions, without_litter,
};
use super::tracer::{Call, Disturbance, Fate, Traced, can_trace};

/// What a run leaves and says that was disturbed but not killed.
fn judge(
    story: &Story,
    golden: &Golden,
    room: &Room,
    run: &Traced,
    (call, fate): (&Call, Fate),
    end: End,
) -> Result<(), String> {
    let code = run.ended.map_err(|signal| format!("ended by {signal}"))?;
    if code == 0 {
        let mut all = golden.all.clone();
        let survives = must_be_survived(fate);
        // What could not be put away or removed is said, and stays.
        let stays =
            run.stderr.contains("stays under its name") || run.stderr.contains("files stay");
        if stays && !survives {
            let disk = format!("a/{DISK}");
            all.remove(&format!("{disk}.migrated-ID"));
            all.insert(disk.clone(), golden.nothing[&disk].clone());
        }
        let kept = run.stderr.contains("kept: ")
            || String::from_utf8_lossy(&run.stdout).contains("unreadable");
        if story.aged && kept && !survives {
            return settle(story, golden, room, end).map(drop);
        }
        // A base that cannot be read is one that is gone: such a guest is copied whole.
        let other_plan = story.name == "prepare"
            && call.path.ends_with("a/var/lib/libvirt/images/template.qcow2");
        let now = without_litter(hosts(room));
        if now != all && (survives || !other_plan) {
            return Err(format!("done, and something else is there: {:?}", now.keys()));
        }
        if story.name != "prepare" {
            return Ok(());
        }
    } else if must_be_survived(fate) {
        return Err("was not survived".to_owned());
    } else if !FAILURES.contains(&code) || !is_told(run) {
        return Err("is not reported as one error".to_owned());
    }
    ends_well(story, golden, room, end)
}

/// Whether what was begun can be ended, and all of it can be done after all if nothing was.
fn ends_well(story: &Story, golden: &Golden, room: &Room, end: End) -> Result<(), String> {
    match settle(story, golden, room, end)? {
        true => Ok(()),
        false => done_again(story, golden, room),
    }
}

/// The codes with which a run may say that it failed: usage, refused, changed, the environment.
const FAILURES: [i32; 4] = [1, 2, 3, 6];

/// Whether it says in the end what went wrong: in one line, or as a plan that is refused.
fn is_told(run: &Traced) -> bool {
    let refusal = run.stdout.is_empty() && run.stderr.starts_with("refused (");
    let asides = |line: &&str| {
        ["note: ", "left: ", "kept: ", "removed: "].iter().any(|word| line.starts_with(word))
    };
    let rest: Vec<_> = run.stderr.lines().skip_while(asides).collect();
    refusal || is_one_error(&(rest.join("\n") + "\n"))
}

fn golden(place: &Place) -> Vec<(&'static Story, Golden)> {
    STORIES.iter().map(|story| (story, Golden::of(place, story))).collect()
}

/// Whether it is about the hosts or the journals, not about what is printed or about this machine's libraries.
fn on_disk(call: &&Call) -> bool {
    let printed = call.name == "write" && call.arguments[0] < 3;
    !printed && !call.path.as_os_str().is_empty()
}

#[test]
fn whatever_call_of_a_migration_fails_all_or_nothing_moves() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = place();
    let golden = golden(&place);
    let mut points = Vec::new();
    for (story, golden) in &golden {
        for call in golden.calls.iter().filter(on_disk) {
            // Calls that only look fail, or are interrupted, in turn.
            let changes = call.changes_files() || call.name.ends_with("sync");
            let one = |fate: &Fate| must_be_survived(*fate) == call.nth.is_multiple_of(2);
            let mut fates = fates(call);
            if !changes && !story.looks {
                continue;
            }
            if !changes {
                let some = fates.iter().copied().find(one).or(fates.first().copied());
                fates = some.into_iter().collect();
            }
            points.extend(fates.into_iter().map(|fate| (*story, golden, call, fate)));
        }
    }
    let codes = Mutex::new(BTreeMap::new());
    let turn = AtomicUsize::new(0);
    on_a_sample("faults of migrations", &points, |(story, golden, call, fate)| {
        let room = begun(&place, story);
        let disturbance = Disturbance::AtCall(call.name, call.nth, *fate);
        let run = traced(&room, story.line, disturbance);
        *codes.lock().unwrap().entry(run.ended).or_insert(0) += 1;
        let odd = turn.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        let end = if odd { End::Resume } else { End::Rollback };
        judge(story, golden, &room, &run, (call, *fate), end).map_err(|error| {
            let (nth, name, file) = (call.nth, call.name, call.path.strip_prefix(place.dir()));
            let file = file.unwrap_or(&call.path).display();
            format!(
                "{}: {nth} {name}({file}), {fate:?}, {end:?}: {error}: {:?} {}",
                story.name, run.ended, run.stderr
            )
        })
    });
    let codes = codes.into_inner().unwrap();
    println!("{} faults of {} commands that move a guest: {codes:?}", points.len(), golden.len());
}

#[test]
fn killed_at_any_call_of_a_migration_all_or_nothing_moves() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = place();
    let golden = golden(&place);
    let mut points = Vec::new();
    for (story, golden) in &golden {
        let changing = |call: &&Call| call.changes_files() || call.name.ends_with("sync");
        for call in golden.calls.iter().filter(on_disk).filter(changing) {
            let end = if points.len().is_multiple_of(2) { End::Rollback } else { End::Resume };
            points.push((*story, golden, call, end));
        }
    }
    on_a_sample("kills of migrations", &points, |(story, golden, call, end)| {
        let room = begun(&place, story);
        let killed = Disturbance::AtCall(call.name, call.nth, Fate::Killed);
        let run = traced(&room, story.line, killed);
        let result = match run.ended {
            Err(Signal::SIGKILL) => ends_well(story, golden, &room, *end),
            other => Err(format!("was not killed: {other:?}, {}", run.stderr)),
        };
        result.map_err(|error| {
            format!("{}: {} {}, {end:?}: {error}", story.name, call.nth, call.name)
        })
    });
    println!("killed at {} calls of {} commands that move a guest", points.len(), golden.len());
}

#[test]
fn whenever_the_disk_goes_away_during_a_migration_all_or_nothing_moves() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = place();
    let golden = golden(&place);
    let mut points = Vec::new();
    for (story, golden) in &golden {
        let changing = |call: &&Call| call.changes_files() || call.name.ends_with("sync");
        points.extend(
            golden.calls.iter().filter(on_disk).filter(changing).map(|call| (*story, golden, call)),
        );
    }
    on_a_sample("migrations, disk gone", &points, |(story, golden, call)| {
        let room = begun(&place, story);
        let run = traced(&room, story.line, Disturbance::GoneFrom(call.name, call.nth));
        let known = run.ended.is_ok_and(|code| code == 0 || FAILURES.contains(&code));
        let result = match known && (run.ended == Ok(0) || is_told(&run)) {
            false => Err("is not reported as one error".to_owned()),
            true => ends_well(story, golden, &room, End::Rollback),
        };
        result.map_err(|error| {
            let (nth, name) = (call.nth, call.name);
            format!("{}: {nth} {name}: {error}: {:?} {}", story.name, run.ended, run.stderr)
        })
    });
    println!(
        "the disk goes away at {} calls of {} commands that move a guest",
        points.len(),
        golden.len()
    );
}

/// What a run that was asked to stop leaves: all, or nothing, and nothing that is still to be ended if it began it.
fn stopped(
    story: &Story,
    golden: &Golden,
    room: &Room,
    run: &Traced,
    end: End,
) -> Result<(), String> {
    let said = |words: &&str| run.stderr.contains(words);
    match run.ended {
        Ok(0) => return end_state(story, golden, room),
        Ok(143) if is_told(run) && ["interrupted", "stopped as asked"].iter().any(said) => {}
        // Nothing was begun; or what is old enough is removed, one after the other, each as the journal has it.
        Err(Signal::SIGTERM) if run.stderr.is_empty() || story.aged => {}
        _ => return Err("did not say that it was stopped".to_owned()),
    }
    let begins = story.line.starts_with("migrate") || story.line.starts_with("prepare");
    if begins && transactions(room)?.iter().any(|one| one["state"] == "open") {
        return Err("was not rolled back".to_owned());
    }
    ends_well(story, golden, room, end)
}

#[test]
fn stopped_at_any_call_of_a_migration_it_is_rolled_back_or_done() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = place();
    let golden = golden(&place);
    let mut points = Vec::new();
    for (story, golden) in &golden {
        // Between two calls that change something a few moments stand for all.
        let wanted = |call: &&Call| {
            call.changes_files() || call.name.ends_with("sync") || call.nth.is_multiple_of(8)
        };
        for call in golden.calls.iter().filter(on_disk).filter(wanted) {
            let end = if points.len().is_multiple_of(2) { End::Rollback } else { End::Resume };
            points.push((*story, golden, call, end));
        }
    }
    let codes = Mutex::new(BTreeMap::new());
    on_a_sample("signals to migrations", &points, |(story, golden, call, end)| {
        let room = begun(&place, story);
        let when = Disturbance::AtCall(call.name, call.nth, Fate::Signalled(Signal::SIGTERM));
        let run = traced(&room, story.line, when);
        *codes.lock().unwrap().entry(run.ended).or_insert(0) += 1;
        stopped(story, golden, &room, &run, *end).map_err(|error| {
            let (nth, name) = (call.nth, call.name);
            format!(
                "{}: {nth} {name}, {end:?}: {error}: {:?} {}",
                story.name, run.ended, run.stderr
            )
        })
    });
    let codes = codes.into_inner().unwrap();
    println!("asked to stop at {} calls of {} commands: {codes:?}", points.len(), golden.len());
}
