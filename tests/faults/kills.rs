//! The process is killed, where nothing of it can clean up: at each call that it makes on files, and at any
//! call whatever.

use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};

use fixtures::needs_qemu;
use fixtures::pattern::Random;

use super::cases::{CHANGES, Case, IN_PLACE, MAKERS, MANY_THREADS, REPAIRS, SPARSIFIERS};
use super::place::{Golden, Place, Room, on_a_sample, on_threads, without_temporary};
use super::repairs;
use super::tracer::{Disturbance, Fate, can_trace};
use nix::sys::signal::Signal;

/// So many moments at random, if this variable of the environment does not say another number.
const MOMENTS: (&str, usize) = ("QCOWTOOL_KILLS", 120);

/// Kills a run, and looks at what is left, and at whether another run does what this one should have.
fn killed(place: &Place, case: &Case, golden: &Golden, when: Disturbance) -> Result<bool, String> {
    let room = place.room(case);
    let run = place.run(case, &room, when);
    match run.ended {
        Err(Signal::SIGKILL) => {}
        // It came to its end before.
        Ok(code) if code == golden.code && room.files() == golden.after => return Ok(false),
        other => return Err(format!("was not killed: {other:?}, {}", run.stderr)),
    }
    if case.changes.is_some() {
        return repairs::at_worst_leaks(place, case, &room.0.join("image")).map(|()| true);
    }
    let left = without_temporary(room.files());
    // An image and its data file are two: the data file comes first.
    let known = |file| golden.before.contains(file) || golden.after.contains(file);
    if !left.iter().all(known)
        || left.iter().any(|(name, _)| name == "new")
            && left != golden.after
            && left != golden.before
    {
        return Err(format!("half a target is left: {:?}", room.names()));
    }
    again(place, case, golden, &room).map(|()| true)
}

/// What a killed run left does not stand in the way of the next.
fn again(place: &Place, case: &Case, golden: &Golden, room: &Room) -> Result<(), String> {
    let left = without_temporary(room.files());
    if golden.before.is_empty() {
        // As a person would who was told that it exists already.
        left.iter().for_each(|(name, _)| std::fs::remove_file(room.0.join(name)).unwrap());
    }
    let Output { status, stderr, .. } = place.run_after(case, room, ":");
    if status.code() == Some(golden.code) && without_temporary(room.files()) == golden.after {
        return Ok(());
    }
    Err(format!("the next run: {status}, {}", String::from_utf8_lossy(&stderr)))
}

#[test]
fn killed_at_any_call_on_files_a_target_is_whole_or_as_it_was() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = Place::new();
    let changing = REPAIRS.iter().chain(&CHANGES).chain(&SPARSIFIERS).chain(&IN_PLACE);
    let cases: Vec<_> = MAKERS.iter().chain(changing).collect();
    let golden: Vec<_> = cases.iter().map(|case| (*case, Golden::of(&place, case))).collect();
    let mut points = Vec::new();
    for (case, golden) in &golden {
        // What only reads changes nothing: one kill before the first write stands for all of them.
        let first = golden.calls.iter().position(|call| call.changes_files()).unwrap_or(0);
        let calls = golden.calls[first.saturating_sub(1)..].iter();
        points.extend(
            calls.filter(|call| !call.path.as_os_str().is_empty()).map(|c| (*case, golden, c)),
        );
    }
    on_a_sample("kills", &points, |(case, golden, call)| {
        let when = Disturbance::AtCall(call.name, call.nth, Fate::Killed);
        killed(&place, case, golden, when)
            .map(drop)
            .map_err(|error| format!("{}: {} {}: {error}", case.name, call.nth, call.name))
    });
    println!("killed at {} calls of {} commands", points.len(), cases.len());
}

#[test]
fn killed_at_any_moment_a_target_is_whole_or_as_it_was() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let (variable, usual) = MOMENTS;
    let wanted = std::env::var(variable).map_or(usual, |number| number.parse().expect("a number"));
    let place = Place::new();
    let cases: Vec<_> = MANY_THREADS.iter().chain(&REPAIRS).chain(&IN_PLACE).collect();
    let golden: Vec<_> = cases.iter().map(|case| (*case, Golden::of(&place, case))).collect();
    let mut random = Random::new(0xdead);
    let mut below = |limit: usize| usize::try_from(random.below(limit as u64)).unwrap();
    let points: Vec<_> = (0..wanted)
        .map(|_| {
            let (case, golden) = &golden[below(golden.len())];
            (*case, golden, 1 + below(golden.all_calls))
        })
        .collect();
    let came_in_time = AtomicUsize::new(0);
    on_threads(&points, |(case, golden, at)| {
        let killed = killed(&place, case, golden, Disturbance::KilledAtAny(*at))
            .map_err(|error| format!("{}: killed at call {at}: {error}", case.name))?;
        came_in_time.fetch_add(usize::from(killed), Ordering::Relaxed);
        Ok(())
    });
    let came_in_time = came_in_time.into_inner();
    println!("killed at {wanted} random calls, {came_in_time} of them before the end");
    assert!(came_in_time > wanted / 2, "only {came_in_time} of {wanted} came in time");
}
