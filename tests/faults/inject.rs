//! Every call of every command fails in turn.

use std::collections::BTreeMap;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::cases::{CHANGES, Case, IN_PLACE, MAKERS, READERS, REPAIRS, SHARERS, SPARSIFIERS};
use super::place::{
    Golden, Place, Room, is_one_error, is_room, judged, on_a_sample, without_temporary,
};
use super::repairs;
use super::tracer::{Call, Disturbance, Fate, Traced, can_trace};
use fixtures::{Mounted, Scratch, needs_qemu};

/// What can go wrong with a call.
pub(crate) fn fates(call: &Call) -> Vec<Fate> {
    use Errno::{EAGAIN, EINTR, EINVAL, EIO, EMFILE, ENOLCK, ENOMEM, ENOSPC, EOPNOTSUPP, EXDEV};
    let moves = call.moves_bytes() && call.arguments[2] > 1;
    let errors: &[Errno] = match call.name {
        "openat" if call.arguments[2] as i32 & nix::libc::O_CREAT != 0 => &[EIO, EINTR, ENOSPC],
        "openat" if call.nth.is_multiple_of(2) => &[EIO, EMFILE],
        "open" | "openat" | "openat2" => &[EIO, EINTR],
        // Interrupted or short: one of the two, in turn.
        "read" | "pread64" if moves && call.nth.is_multiple_of(2) => &[EIO],
        "read" | "pread64" => &[EIO, EINTR],
        "write" | "pwrite64" if moves && call.nth.is_multiple_of(2) => &[EIO, ENOSPC],
        "write" | "pwrite64" | "ftruncate" | "fallocate" => &[EIO, EINTR, ENOSPC],
        // Asks whether a stream is a terminal.
        "ioctl" if call.arguments[1] == nix::libc::TCGETS => &[EIO],
        "copy_file_range" | "ioctl" => &[EIO, EINTR, ENOSPC, EINVAL, EXDEV, EOPNOTSUPP],
        "fsync" | "fdatasync" => &[EIO, EINTR],
        "rename" | "renameat" | "renameat2" | "linkat" | "mkdir" => &[EIO, ENOSPC],
        "flock" => &[ENOLCK],
        "poll" => &[EINTR],
        // Locks, several for each file.
        "fcntl" if !call.nth.is_multiple_of(4) => &[],
        "fcntl" => &[ENOLCK, EAGAIN],
        "mmap" | "mremap" => &[ENOMEM],
        // Its failure is told in another way than by an error.
        "brk" => &[],
        "clone3" => &[EAGAIN],
        _ => &[EIO],
    };
    let mut fates: Vec<_> = errors.iter().map(|errno| Fate::Fails(*errno)).collect();
    if moves && call.nth.is_multiple_of(2) {
        fates.push(Fate::Short);
    }
    fates
}

/// Whether nobody may notice.
pub(crate) fn must_be_survived(fate: Fate) -> bool {
    matches!(fate, Fate::Short | Fate::Fails(Errno::EINTR))
}

/// Fails every call of each case in turn, and says how many that were.
fn every_call_fails(place: &Place, cases: &[Case], wanted: fn(&Call) -> bool) {
    let golden: Vec<_> = cases.iter().map(|case| (case, Golden::of(place, case))).collect();
    let mut points = Vec::new();
    let mut counts = BTreeMap::new();
    for (case, golden) in &golden {
        for call in golden.calls.iter().filter(|call| wanted(call)) {
            for fate in fates(call) {
                points.push((*case, golden, call, fate));
                *counts.entry(call.name).or_insert(0) += 1;
            }
        }
    }
    let survived = Mutex::new(0);
    let what = format!("faults of {} and others", cases[0].name);
    on_a_sample(&what, &points, |(case, golden, call, fate)| {
        let room = place.room(case);
        let run = place.run(case, &room, Disturbance::AtCall(call.name, call.nth, *fate));
        *survived.lock().unwrap() += usize::from(run.ended == Ok(golden.code));
        judge(place, case, golden, &room, &run, (call, *fate)).map_err(|error| {
            let file = call.path.file_name().unwrap_or_default().to_string_lossy();
            format!("{}: {} {}({file}), {fate:?}: {error}", case.name, call.nth, call.name)
        })
    });
    let (all, survived) = (points.len(), survived.into_inner().unwrap());
    println!("{all} faults in {} commands, {survived} survived: {counts:?}", cases.len());
}

/// Holds a disturbed run against the undisturbed one.
fn judge(
    place: &Place,
    case: &Case,
    golden: &Golden,
    room: &Room,
    run: &Traced,
    (call, fate): (&Call, Fate),
) -> Result<(), String> {
    let said = || format!("{:?}, {:?}, {:?}", run.ended, run.stderr, room.names());
    let wrong = |what: &str| Err(format!("{what}; {}", said()));
    let after = room.files();
    let printing = |descriptor| call.name == "write" && call.arguments[0] == descriptor;
    // The language's runtime does not go on without memory, nor does it clean up.
    let memory = ["mmap", "mremap"].contains(&call.name);
    if memory && run.ended == Err(Signal::SIGABRT) {
        if case.changes.is_some() {
            return repairs::at_worst_leaks(place, case, &room.0.join("image"));
        }
        let left = without_temporary(after);
        let whole = left == golden.before || left == golden.after;
        return if whole { Ok(()) } else { wrong("gave up, and left half of a target") };
    }
    let code = run.ended.map_err(|signal| format!("ended by {signal}; {}", said()))?;
    if code == golden.code {
        if run.stdout != golden.stdout || run.stderr != golden.stderr && !printing(2) && !memory {
            return wrong("printed something else");
        }
        if after == golden.after {
            return Ok(());
        }
        // A snapshot has the time at which it was made.
        if case.line.starts_with("snapshot -c") {
            return repairs::at_worst_leaks(place, case, &room.0.join("image"));
        }
        // Where less could be cloned, clusters lie in another order; where the file system could not take back the space of old
        // tables, their bytes are still there: qemu-img judges such an image by itself.
        let kept = call.name == "fallocate" && case.line.contains("-B ");
        let names =
            |files: &[(String, _)]| files.iter().map(|file| file.0.clone()).collect::<Vec<_>>();
        let other = kept || golden.calls.iter().any(clones);
        if other && names(&after) == names(&golden.after) {
            judged(place, case, room);
            return Ok(());
        }
        return wrong("done, and made something else");
    }
    if call.name.ends_with("sync") && run.calls.iter().skip(place_of(run, call)).any(on_image) {
        return wrong("wrote on after a sync that failed");
    }
    if must_be_survived(fate) {
        return wrong("was not survived");
    }
    if !case.failures.contains(&code) {
        return wrong("another exit code than documented");
    }
    if !is_one_error(&run.stderr) && !printing(2) && !memory {
        return wrong("is not reported as one error");
    }
    if case.changes.is_some() {
        return repairs::at_worst_leaks(place, case, &room.0.join("image"));
    }
    // What is whole and cannot have its name is kept under its temporary one.
    if is_kept(&run.stderr, &after, golden) {
        return Ok(());
    }
    // What is printed comes after what is done; and what has its name keeps it when its directory cannot
    // be synced.
    let too_late = printing(1) || is_room(&call.path);
    if after != golden.before && !(too_late && after == golden.after) {
        return wrong("left something else than was there before");
    }
    Ok(())
}

/// Whether the error says what is kept, and only that, whole, is there besides what was, or will be.
pub(crate) fn is_kept(stderr: &str, after: &[(String, Vec<u8>)], golden: &Golden) -> bool {
    let known = |file: &(String, Vec<u8>)| match file.0.ends_with(".tmp") {
        true => stderr.contains(&file.0) && golden.after.iter().any(|whole| whole.1 == file.1),
        false => golden.before.contains(file) || golden.after.contains(file),
    };
    stderr.contains("the finished file is kept as") && after.iter().all(known)
}

/// What comes after a call of this run.
fn place_of(run: &Traced, call: &Call) -> usize {
    let same = |other: &Call| (other.name, other.nth) == (call.name, call.nth);
    run.calls.iter().position(same).map_or(0, |at| at + 1)
}

/// Whether it changes what is under the name of an image.
fn on_image(call: &Call) -> bool {
    call.changes_files() && call.path.file_name().is_some_and(|name| name == "image")
}

#[test]
fn whatever_call_fails_a_target_is_whole_or_as_it_was() {
    needs_qemu!();
    if can_trace() {
        every_call_fails(&Place::new(), &MAKERS, |_| true);
    }
}

#[test]
fn whatever_call_fails_a_reading_command_says_so_or_is_right() {
    needs_qemu!();
    if can_trace() {
        every_call_fails(&Place::new(), &READERS, |_| true);
    }
}

#[test]
fn whatever_call_fails_a_repair_leaves_leaks_at_worst() {
    needs_qemu!();
    if can_trace() {
        every_call_fails(&Place::new(), &REPAIRS, |_| true);
        // Space that is not given back at the end is no failure, and makes another file.
        let others = |call: &Call| !["fallocate", "ftruncate"].contains(&call.name);
        every_call_fails(&Place::new(), &CHANGES, others);
        every_call_fails(&Place::new(), &IN_PLACE, others);
    }
}

#[test]
fn whatever_call_fails_while_space_is_given_back_the_disk_is_as_it_was() {
    needs_qemu!();
    if can_trace() {
        // As above; where holes are not found, none are made; and how much space it takes is only told. What is proven is
        // read again and again, so that one read in three stands for its neighbours.
        every_call_fails(&Place::new(), &SPARSIFIERS, |call| {
            let one_of_many = call.name != "pread64" || call.nth.is_multiple_of(3);
            one_of_many && !["fallocate", "ftruncate", "lseek", "statx"].contains(&call.name)
        });
    }
}

/// What differs where space is shared or bytes are copied elsewhere; the rest fails in the other tests.
fn moves_or_writes(call: &Call) -> bool {
    let found_out = ["ioctl", "fstatfs", "statx", "lseek"];
    call.changes_files() || found_out.contains(&call.name)
}

fn clones(call: &Call) -> bool {
    call.name == "ioctl" && call.result == 0
}

#[test]
fn whatever_call_fails_where_files_share_space_a_target_is_whole_or_absent() {
    needs_qemu!();
    let scratch = Scratch::new();
    let Some(xfs) = Mounted::xfs(scratch.subdir("xfs")) else { return };
    if !can_trace() {
        return;
    }
    let place = Place::at(&xfs.0);
    let flattened = Golden::of(&place, &SHARERS[0]);
    assert!(flattened.calls.iter().filter(|call| clones(call)).count() > 2, "nothing is cloned");
    every_call_fails(&place, &SHARERS, moves_or_writes);
}

#[test]
fn whatever_call_fails_where_another_machine_copies_a_target_is_whole_or_absent() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let mut place = Place::new();
    place.remote = true;
    let flattened = Golden::of(&place, &SHARERS[0]);
    let copies = |call: &Call| call.name == "copy_file_range" && call.result > 0;
    assert!(flattened.calls.iter().any(copies), "nothing is copied");
    every_call_fails(&place, &SHARERS, moves_or_writes);
}

#[test]
fn whenever_the_disk_goes_away_no_target_is_half() {
    needs_qemu!();
    if !can_trace() {
        return;
    }
    let place = Place::new();
    let cases: Vec<_> = MAKERS.iter().chain(&REPAIRS).chain(&SPARSIFIERS).collect();
    let golden: Vec<_> = cases.iter().map(|case| (*case, Golden::of(&place, case))).collect();
    let mut points = Vec::new();
    for (case, golden) in &golden {
        let on_disk = |call: &&Call| call.changes_files() || call.name.ends_with("sync");
        points.extend(golden.calls.iter().filter(on_disk).map(|call| (*case, golden, call)));
    }
    on_a_sample("disk gone", &points, |(case, golden, call)| {
        let room = place.room(case);
        let run = place.run(case, &room, Disturbance::GoneFrom(call.name, call.nth));
        let left = without_temporary(room.files());
        let reported = run.ended == Ok(golden.code) || is_one_error(&run.stderr);
        let known =
            run.ended.is_ok_and(|code| code == golden.code || case.failures.contains(&code));
        let verdict = match case.changes {
            _ if !known || !reported => Err("is not reported as one error".to_owned()),
            Some(_) => repairs::at_worst_leaks(&place, case, &room.0.join("image")),
            None if run.ended == Ok(golden.code) && left != golden.after => {
                Err("is not reported".to_owned())
            }
            // The file that others need may be there without them.
            None if left
                .iter()
                .all(|file| golden.before.contains(file) || golden.after.contains(file)) =>
            {
                Ok(())
            }
            None => Err("left half a target".to_owned()),
        };
        verdict.map_err(|error| {
            let (nth, name) = (call.nth, call.name);
            format!("{}: {nth} {name}: {error}: {:?} {}", case.name, run.ended, run.stderr)
        })
    });
    println!("the disk goes away at {} calls of {} commands", points.len(), cases.len());
}
