//! A signal asks the process to stop, at each call that it makes on files: it does, with the code of the signal and one
//! error, or has come to its end; what it makes is as it was or whole, and an image that it changes is sound.

use fixtures::needs_qemu;
use nix::sys::signal::Signal;

use super::cases::{CHANGES, Case, IN_PLACE, MAKERS, READERS, REPAIRS, SPARSIFIERS};
use super::place::{Golden, Place, is_one_error, on_a_sample, without_temporary};
use super::repairs;
use super::tracer::{Call, Disturbance, Fate, can_trace};

/// Asks a run to stop just before `call`, and judges how it ended and what is left.
fn stopped(place: &Place, case: &Case, golden: &Golden, call: &Call) -> Result<(), String> {
    let room = place.room(case);
    let when = Disturbance::AtCall(call.name, call.nth, Fate::Signalled(Signal::SIGTERM));
    let run = place.run(case, &room, when);
    let left = room.files();
    let wrong =
        |what: &str| Err(format!("{what}; {:?}, {:?}, {:?}", run.ended, run.stderr, room.names()));
    match run.ended {
        // It came too late. A change that is done is judged by what it left: a snapshot has a time, and what is given back
        // to the file system need not be the same.
        Ok(code) if code == golden.code && case.changes.is_none() => {
            let same = left == golden.after && run.stdout == golden.stdout;
            return if same { Ok(()) } else { wrong("made something else") };
        }
        Ok(code) if code == golden.code => {}
        Ok(143) if is_one_error(&run.stderr) && run.stderr.contains("interrupted") => {}
        // The program was not ready for signals yet, and there is nothing to clean up.
        Err(Signal::SIGTERM) if run.stderr.is_empty() => {}
        _ => return wrong("did not say that it was stopped"),
    }
    if case.changes.is_some() {
        return repairs::at_worst_leaks(place, case, &room.0.join("image"));
    }
    match without_temporary(left.clone()) == left {
        true if left == golden.before => Ok(()),
        true => wrong("something else than before is left"),
        false => wrong("a temporary file is left"),
    }
}

#[test]
fn stopped_at_any_call_on_files_a_command_says_so_and_leaves_nothing_half_done() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = Place::new();
    let changing = REPAIRS.iter().chain(&CHANGES).chain(&SPARSIFIERS).chain(&IN_PLACE);
    let cases: Vec<_> = MAKERS.iter().chain(&READERS).chain(changing).collect();
    let golden: Vec<_> = cases.iter().map(|case| (*case, Golden::of(&place, case))).collect();
    let mut points = Vec::new();
    for (case, golden) in &golden {
        let on_files = |call: &&Call| !call.path.as_os_str().is_empty();
        points.extend(golden.calls.iter().filter(on_files).map(|call| (*case, golden, call)));
    }
    on_a_sample("signals", &points, |(case, golden, call)| {
        stopped(&place, case, golden, call)
            .map_err(|error| format!("{}: {} {}: {error}", case.name, call.nth, call.name))
    });
    println!("asked to stop at {} calls of {} commands", points.len(), cases.len());
}
