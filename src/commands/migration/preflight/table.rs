//! The report as a table.

use std::fmt::Write;

use migrate::Remedy;
use migrate::facts::{DomainState, Storage};
use migrate::plan::{CopyMode, Mode};
use migrate::preflight::{Check, GuestReport, Is, Place, Report};
use qcow::Escaped;

use crate::output::shown;
use crate::size::human;

/// The whole report; every line says its colour in words as well.
pub(super) fn text(report: &Report, colours: bool) -> String {
    let mut table = Table { text: String::new(), colours };
    let host = |name: &str| Escaped(name).to_string();
    let (from, to) = (host(&report.source.hostname), host(&report.destination.hostname));
    table.heading(&format!("{from} to {to}"));
    let width = report.checks.iter().map(|check| check.check.len()).max().unwrap_or(0);
    for check in &report.checks {
        table.check(check, &format!("{:width$}  ", check.check));
    }
    if !report.places.is_empty() {
        table.heading("where disks go");
    }
    report.places.iter().for_each(|place| table.place(place));
    if !report.guests.is_empty() {
        table.heading("guests, in the order in which they would best go");
    }
    let width = report.guests.iter().map(|guest| guest.name.chars().count()).max().unwrap_or(0);
    report.guests.iter().for_each(|guest| table.guest(guest, width.min(40)));
    table.total(report);
    table.text
}

struct Table {
    text: String,
    colours: bool,
}

impl Table {
    fn heading(&mut self, heading: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        let _ = writeln!(self.text, "{gap}{heading}");
    }

    fn line(&mut self, is: Is, line: &str) {
        let word = word(is);
        let (on, off) = if self.colours { (colour(is), "\x1b[0m") } else { ("", "") };
        let _ = writeln!(self.text, "  {on}{word:6}{off}  {}", Escaped(line));
    }

    fn more(&mut self, line: &str) {
        let _ = writeln!(self.text, "          {}", Escaped(line));
    }

    fn check(&mut self, check: &Check, before: &str) {
        self.line(check.is, &format!("{before}{}", check.message));
        self.way_out(check.way_out.as_ref());
    }

    fn way_out(&mut self, way_out: Option<&Remedy>) {
        if let Some(way_out) = way_out {
            self.more(&format!("  -> {way_out}"));
        }
    }

    fn place(&mut self, place: &Place) {
        let mut words = vec![match &place.storage {
            Storage::Shared => "shared by both hosts".to_owned(),
            Storage::Distinct => "storage of its own".to_owned(),
            Storage::Unknown { .. } => "shared or not is not known".to_owned(),
        }];
        words.extend(place.pool.as_ref().map(|pool| format!("pool '{pool}'")));
        words.extend(
            place.available_bytes.map(|free| {
                format!("{} needed of {} free", human(place.needed_bytes), human(free))
            }),
        );
        self.line(place.is, &format!("{}: {}", shown(&place.directory), words.join(", ")));
        for check in place.checks.iter().filter(|check| check.is != Is::Green) {
            self.more(&format!("{}: {}", check.check, check.message));
            self.way_out(check.way_out.as_ref());
        }
    }

    fn guest(&mut self, guest: &GuestReport, width: usize) {
        let order = guest.order.map_or_else(|| "-".to_owned(), |order| order.to_string());
        let mut line = format!("{order:>3}  {:width$}  {:8}", guest.name, state(guest.state));
        if let (Some(mode), Some(copy)) = (guest.mode, guest.copy) {
            let rows: Vec<_> =
                guest.disks.iter().map(|disk| format!("{} {}", disk.target, disk.row)).collect();
            let _ = write!(line, "  {:12}  {}", how(mode, copy), rows.join(", "));
            if let Some(bytes) = guest.transfer_bytes {
                let _ = write!(line, "  {}", human(bytes));
            }
        }
        self.line(guest.is, line.trim_end());
        for refusal in &guest.refusals {
            let disk = refusal.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
            self.more(&format!("refused ({}): {disk}{}", refusal.code, refusal.message));
            self.way_out(Some(&refusal.way_out));
        }
        for check in guest.checks.iter().filter(|check| check.is != Is::Green) {
            self.more(&format!("{}: {}", check.check, check.message));
            self.way_out(check.way_out.as_ref());
        }
        for warning in &guest.warnings {
            let disk = warning.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
            self.more(&format!("note: {disk}{}", warning.message));
        }
    }

    fn total(&mut self, report: &Report) {
        let total = &report.total;
        let _ = writeln!(self.text);
        let line = format!(
            "{} of {} guests can move: {} over the network without their memory, {} at the destination",
            total.ready,
            total.guests,
            human(total.transfer_bytes),
            human(total.space_bytes)
        );
        let between = (report.checks.iter().map(|check| check.is))
            .chain(report.places.iter().map(|place| place.is))
            .any(|is| is == Is::Red);
        let first = if between { "; first, what is red of hosts and places" } else { "" };
        self.line(report.is, &format!("{line}{first}"));
    }
}

fn word(is: Is) -> &'static str {
    match is {
        Is::Green => "green",
        Is::Note => "note",
        Is::Unseen => "unseen",
        Is::Failed => "failed",
        Is::Red => "red",
    }
}

fn colour(is: Is) -> &'static str {
    match is {
        Is::Green => "\x1b[32m",
        Is::Note => "\x1b[33m",
        Is::Unseen => "\x1b[2m",
        Is::Failed | Is::Red => "\x1b[31m",
    }
}

fn state(state: Option<DomainState>) -> &'static str {
    match state {
        Some(DomainState::Running) => "running",
        Some(DomainState::Paused) => "paused",
        Some(DomainState::ShutOff) => "shut off",
        Some(DomainState::Other) | None => "?",
    }
}

fn how(mode: Mode, copy: CopyMode) -> &'static str {
    match (mode, copy) {
        (Mode::Offline, _) => "as files",
        (Mode::Live, CopyMode::None) => "no copy",
        (Mode::Live, CopyMode::Full) => "full",
        (Mode::Live, CopyMode::Incremental) => "incremental",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(colours: bool, lines: &[(Is, &str)]) -> String {
        let mut table = Table { text: String::new(), colours };
        lines.iter().for_each(|(is, line)| table.line(*is, line));
        table.text
    }

    #[test]
    fn colours_are_added_to_words_and_never_replace_them() {
        let lines = [(Is::Green, "a"), (Is::Red, "b")];
        assert_eq!(table(false, &lines), "  green   a\n  red     b\n");
        assert_eq!(table(true, &lines), "  \x1b[32mgreen \x1b[0m  a\n  \x1b[31mred   \x1b[0m  b\n");
    }

    #[test]
    fn what_a_host_says_cannot_reach_the_terminal() {
        let text = table(false, &[(Is::Red, "a\x1b[2Jb\nc")]);
        assert!(!text.contains('\x1b') && text.lines().count() == 1, "{text:?}");
    }
}
