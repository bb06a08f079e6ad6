//! Plans and outcomes of `rescue` in words.

use std::fmt::Write;

use migrate::rescue::{Action, Holder, Item, Lost, Outcome, Plan, Restore, Search, State, Verdict};
use qcow::Escaped;

use crate::output::shown;
use crate::size::human;

/// What can be saved, and what cannot.
pub(super) fn plan(plan: &Plan) -> String {
    let mut text = String::new();
    for item in &plan.items {
        let _ = writeln!(text, "{} ({})", shown(&item.name), about(item));
        let _ = writeln!(text, "    open in {}", holders(&item.holders));
        for above in &item.needed_by {
            let _ = writeln!(text, "    needed by {}", shown(above));
        }
        for note in &item.notes {
            let _ = writeln!(text, "    note: {}", Escaped(note));
        }
        match &item.action {
            Action::Save { copy, restore } => {
                let _ = writeln!(text, "    can be saved as {}", shown(copy));
                match restore {
                    Restore::NotAsked => {}
                    Restore::Planned { .. } => {
                        let _ = writeln!(text, "    can be restored: its name is free");
                    }
                    Restore::No { why } => {
                        let _ = writeln!(text, "    cannot be restored: {}", Escaped(why));
                    }
                }
            }
            Action::Nothing { .. } => {
                text.push_str("    is back: what has its name is equal to it\n");
            }
            Action::Refuse { why, way_out, .. } => {
                let _ = writeln!(text, "    cannot be saved: {}", Escaped(why));
                let _ = writeln!(text, "    {}", Escaped(&way_out.to_string()));
            }
        }
    }
    for lost in &plan.lost {
        let _ = writeln!(text, "{}", gone(lost));
    }
    for unseen in &plan.unseen {
        let (program, why) = (Escaped(&unseen.program), Escaped(&unseen.why));
        let _ = writeln!(
            text,
            "process {} ({program}) could not be looked into: {why}",
            unseen.process
        );
    }
    if text.is_empty() {
        text.push_str("nothing that is open is gone\n");
    }
    text
}

/// What became of it: a line for each file that was to be saved.
pub(super) fn outcome(outcome: &Outcome) -> String {
    let mut text = String::new();
    for rescue in &outcome.items {
        let name = shown(&rescue.item.name);
        match &rescue.state {
            State::Refused | State::Nothing => {}
            State::Saved(saved) => {
                let what = match (saved.found, &saved.restored) {
                    (_, Some(_)) => "is back",
                    (true, None) => "was saved before",
                    (false, None) => "is saved",
                };
                let _ = writeln!(text, "{name} {what}: {}", shown(&saved.path));
                if let Some(hash) = &saved.tree_hash {
                    let _ = writeln!(text, "    tree hash {hash}");
                }
                if let Some(why) = &saved.unreadable {
                    let _ = writeln!(text, "    its disk cannot be read: {}", Escaped(why));
                }
                if let Some(unrestored) = &saved.unrestored {
                    let _ = writeln!(text, "    it was not restored: {}", Escaped(&unrestored.why));
                }
            }
            State::Failed { message, hint, .. } => {
                let hint = hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
                let _ =
                    writeln!(text, "{name} is not saved: {}", Escaped(&(message.clone() + &hint)));
            }
        }
    }
    text
}

/// What a disk lacks, and what was found of it.
pub(super) fn search(search: &Search) -> String {
    let Some(base) = &search.base else {
        return format!("no backing file of {} is missing\n", shown(&search.image));
    };
    let mut text = String::new();
    let _ =
        writeln!(text, "{} is gone\n    needed by {}", shown(&base.name), shown(&base.needed_by));
    match (&base.tree_hash, &base.manifest_of) {
        (Some(hash), Some(of)) => {
            let _ = writeln!(text, "    tree hash {hash}, of the manifest of {}", Escaped(of));
        }
        _ => text.push_str(
            "    there is no manifest of its content, so no file can be identified as it\n",
        ),
    }
    for candidate in &base.candidates {
        let verdict = match candidate.verdict {
            Verdict::Equal => "is it: its content is that of the manifest",
            Verdict::Different => "is not it",
            Verdict::Unproven => "is refused",
            Verdict::Unreadable => "could not be read",
        };
        let why = candidate.why.as_ref().map(|why| format!(": {}", Escaped(why)));
        let _ = writeln!(text, "{} {verdict}{}", shown(&candidate.path), why.unwrap_or_default());
    }
    if base.restored {
        let _ = writeln!(text, "{} is back", shown(&base.name));
    } else if let Some(why) = &base.unrestored {
        let _ = writeln!(text, "it was not restored: {}", Escaped(why));
    }
    if !base.is_found() {
        let _ = writeln!(
            text,
            "{} files were looked at, and none is proven to be it; {} of the disk are lost ({} bytes):",
            base.looked_at,
            human(base.lost_bytes),
            base.lost_bytes
        );
        for range in &base.lost {
            let _ = writeln!(text, "    {:#x} + {:#x}", range.start, range.length);
        }
        if base.more {
            text.push_str("    and more\n");
        }
    }
    text
}

fn about(item: &Item) -> String {
    let format = item.format.map(|format| format!("{format}, ")).unwrap_or_default();
    let disk = item.virtual_size.map(|size| format!("disk of {}, ", human(size)));
    format!("{format}{}{} allocated", disk.unwrap_or_default(), human(item.allocated))
}

fn holders(holders: &[Holder]) -> String {
    let one =
        |holder: &Holder| format!("process {} ({})", holder.process, Escaped(&holder.program));
    holders.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn gone(lost: &Lost) -> String {
    format!(
        "{} is gone, and process {} ({}) has no deleted file open that could be it\n    needed by {}",
        shown(&lost.name),
        lost.holder.process,
        Escaped(&lost.holder.program),
        shown(&lost.needed_by)
    )
}
