//! How far an evacuation is, as metrics in Prometheus' text format.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use migrate::evacuate::Ending;

use super::seen::{Guest, Seen};

/// All that is told; `docs/evacuate.md` lists it.
const ENDINGS: [Ending; 7] = [
    Ending::Moved,
    Ending::Waiting,
    Ending::Refused,
    Ending::Failed,
    Ending::Stopped,
    Ending::Unverified,
    Ending::InDoubt,
];

/// A figure of a guest: its name, what it is, and where it comes from.
type OfGuest = (&'static str, &'static str, fn(&Guest) -> u64);

/// The metrics.
pub(super) fn metrics(seen: &Seen) -> String {
    let mut text = String::new();
    head(&mut text, "guests", "Guests by how they ended so far; running are those under way.");
    let count = |ending: Ending| match ending {
        Ending::Refused => seen.ended(ending).saturating_add(seen.refused),
        ending => seen.ended(ending),
    };
    for ending in ENDINGS {
        let _ = writeln!(
            text,
            "qcowtool_evacuation_guests{{state=\"{}\"}} {}",
            ending.as_str(),
            count(ending)
        );
    }
    let running = seen.guests.values().filter(|guest| guest.under_way).count();
    let _ = writeln!(text, "qcowtool_evacuation_guests{{state=\"running\"}} {running}");
    let gauges = [
        ("transfer_bytes", "Bytes that the plan sends, without memory.", seen.transfer_bytes),
        ("start_time_seconds", "When this run began, since 1970.", seen.begun),
        ("end_time_seconds", "When it ended; 0 while it runs.", seen.over),
    ];
    for (name, help, value) in gauges {
        head(&mut text, name, help);
        let _ = writeln!(text, "qcowtool_evacuation_{name} {value}");
    }
    let of_guest: [OfGuest; 4] = [
        ("guest_disk_bytes", "Bytes of a guest's disks that libvirt copies.", |it| {
            it.job.disk_total
        }),
        ("guest_disk_done_bytes", "Those that are copied.", |it| it.job.disk_processed),
        ("guest_memory_bytes", "Bytes of a guest's memory that libvirt copies.", |it| {
            it.job.memory_total
        }),
        ("guest_memory_done_bytes", "Those that are copied.", |it| it.job.memory_processed),
    ];
    for (name, help, value) in of_guest {
        head(&mut text, name, help);
        for (guest, it) in seen.guests.iter().filter(|(_, it)| it.under_way) {
            let (guest, to) = (label(guest), label(&it.to));
            let _ = writeln!(
                text,
                "qcowtool_evacuation_{name}{{guest=\"{guest}\",to=\"{to}\"}} {}",
                value(it)
            );
        }
    }
    text
}

fn head(text: &mut String, name: &str, help: &str) {
    let name = format!("qcowtool_evacuation_{name}");
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
}

fn label(value: &str) -> String {
    qcow::Escaped(value).to_string().replace('\\', "\\\\").replace('"', "\\\"")
}

/// Puts the metrics in the place of those before, whole.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".qcowtool-").tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    // The collector is another user.
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
