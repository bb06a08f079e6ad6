//! What is said of an evacuation, as text.

use std::fmt::Write;

use migrate::evacuate::{Ending, Evacuated, Outcome};
use qcow::Escaped;

/// The end of one guest, in one line.
pub(super) fn outcome(outcome: &Outcome) -> String {
    let Outcome { name, to, ending, elapsed_ms, error, way_out, unfinished, after, .. } = outcome;
    let mut line = match ending {
        Ending::Moved => match elapsed_ms {
            Some(ms) if *ms > 0 => {
                format!("{name} is at {to} after {}.{} s", ms / 1000, ms % 1000 / 100)
            }
            _ => format!("{name} is at {to}"),
        },
        Ending::Waiting => format!("{name} was not begun"),
        Ending::Refused => format!("{name} stays"),
        Ending::Failed | Ending::Stopped if *unfinished => {
            format!("{name} {}, and something is left to do", ending.as_str())
        }
        Ending::Failed => format!("{name} failed, and was rolled back"),
        Ending::Stopped => format!("{name} was stopped, and rolled back"),
        Ending::Unverified => format!("{name} is at {to}, and its content is not what it must be"),
        Ending::InDoubt => format!("{name}: it is not known where it runs"),
    };
    if let Some(error) = error {
        let _ = write!(line, ": {error}");
    }
    if let Some(way_out) = way_out {
        let _ = write!(line, " ({way_out})");
    }
    if let Some(after) = after {
        let _ = write!(line, "; the program after it failed: {after}");
    }
    line
}

/// The whole report.
pub(super) fn ended(report: &Evacuated) -> String {
    let mut text = String::new();
    for guest in &report.guests {
        let _ = writeln!(text, "{}", Escaped(&outcome(guest)));
    }
    for left in &report.refused {
        let _ = writeln!(text, "{} stays", Escaped(&left.name));
        for at in &left.reasons {
            for refusal in &at.refusals {
                let disk = refusal.disk.as_ref().map(|disk| format!("{disk}: "));
                let (disk, code) = (disk.unwrap_or_default(), &refusal.code);
                let line = format!("{}: refused ({code}): {disk}{}", at.to, refusal.message);
                let _ = writeln!(text, "    {}", Escaped(&line));
                let _ = writeln!(text, "      -> {}", Escaped(&refusal.way_out.to_string()));
            }
        }
    }
    let all = report.guests.len().saturating_add(report.refused.len());
    let moved = report.count(Ending::Moved);
    let _ = write!(
        text,
        "{moved} of {all} guests moved in {}.{} s",
        report.elapsed_ms / 1000,
        report.elapsed_ms % 1000 / 100
    );
    if let Some(stopped) = &report.stopped {
        let _ = write!(text, "; {}", Escaped(stopped));
    }
    let _ = writeln!(text, "\nevacuation {}", report.id);
    if moved < all {
        let _ = writeln!(text, "'qcowtool evacuate --resume {}' tries the others again", report.id);
    }
    text
}
