//! An image's facts as `qemu-img info` words them.

use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qcow::Escaped;
use qcow::ops::info::{Child, FormatSpecific, ImageInfo, SnapshotInfo};
use serde_json::Value;

use crate::size::human;

/// The image as lines of text. Names from the image cannot do anything to a terminal (trap 139).
pub(crate) fn text(image: &ImageInfo) -> String {
    let mut lines = Vec::new();
    head(&mut lines, image);
    backing(&mut lines, image);
    snapshots(&mut lines, &image.snapshots);
    specifics(&mut lines, image.format_specific.as_ref());
    image.children.iter().for_each(|child| self::child(&mut lines, child));
    lines.iter().map(|line| format!("{}\n", Escaped(line))).collect()
}

fn head(lines: &mut Vec<String>, image: &ImageInfo) {
    lines.push(format!("image: {}", name(&image.filename)));
    lines.push(format!("file format: {}", image.format));
    lines.push(format!("virtual size: {}", size(image.virtual_size)));
    lines.push(format!("disk size: {}", human(image.actual_size)));
    if image.encrypted == Some(true) {
        lines.push("encrypted: yes".to_owned());
    }
    if let Some(bytes) = image.cluster_size {
        lines.push(format!("cluster_size: {bytes}"));
    }
    if image.dirty_flag {
        lines.push("cleanly shut down: no".to_owned());
    }
}

fn backing(lines: &mut Vec<String>, image: &ImageInfo) {
    let Some(recorded) = &image.backing_filename else { return };
    let actual = match &image.full_backing_filename {
        None => " (cannot determine actual path)".to_owned(),
        Some(full) if full == recorded => String::new(),
        Some(full) => format!(" (actual path: {})", name(full)),
    };
    lines.push(format!("backing file: {}{actual}", name(recorded)));
    if let Some(format) = &image.backing_filename_format {
        lines.push(format!("backing file format: {format}"));
    }
}

/// The snapshots alone; nothing where there are none.
pub(crate) fn snapshot_list(list: &[SnapshotInfo]) -> String {
    let mut lines = Vec::new();
    snapshots(&mut lines, list);
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn snapshots(lines: &mut Vec<String>, snapshots: &[SnapshotInfo]) {
    if snapshots.is_empty() {
        return;
    }
    lines.push("Snapshot list:".to_owned());
    lines.push(row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"));
    let zone = TimeZone::system();
    for snapshot in snapshots {
        lines.push(row(
            &Escaped(&snapshot.id).to_string(),
            &Escaped(&snapshot.name).to_string(),
            &human(snapshot.vm_state_size),
            &date(snapshot.date_sec, &zone),
            &clock(snapshot.vm_clock_sec, snapshot.vm_clock_nsec),
            &snapshot.icount.map_or_else(|| "--".to_owned(), |count| count.to_string()),
        ));
    }
}

/// A row of the snapshot list. Like QEMU's it is padded by bytes, not by characters (trap 138).
fn row(id: &str, tag: &str, vm_size: &str, date: &str, clock: &str, icount: &str) -> String {
    let pad = |text: &str, width: usize| " ".repeat(width.saturating_sub(text.len()));
    let (id_pad, tag_pad) = (pad(id, 7), pad(tag, 16));
    format!("{id}{id_pad} {tag}{tag_pad} {vm_size:>8} {date:>19} {clock:>15} {icount:>10}")
}

/// Local time.
fn date(seconds: u64, zone: &TimeZone) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map(|time| time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string())
        .unwrap_or_default()
}

fn clock(seconds: u64, nanoseconds: u64) -> String {
    let (minutes, second) = (seconds / 60, seconds % 60);
    let (hours, minute) = (minutes / 60, minutes % 60);
    format!("{hours:04}:{minute:02}:{second:02}.{:03}", nanoseconds / 1_000_000)
}

fn specifics(lines: &mut Vec<String>, specific: Option<&FormatSpecific>) {
    let Some(Ok(value)) = specific.map(serde_json::to_value) else { return };
    match value.get("data") {
        Some(Value::Object(data)) if !data.is_empty() => {
            lines.push("Format specific information:".to_owned());
            data.iter().for_each(|(key, value)| entry(lines, &key.replace('-', " "), value, 1));
        }
        _ => {}
    }
}

/// A key and its value; lists and objects go below it, one level deeper.
fn entry(lines: &mut Vec<String>, key: &str, value: &Value, depth: usize) {
    let indent = "    ".repeat(depth);
    let below = depth.saturating_add(1);
    match value {
        Value::Object(object) => {
            lines.push(format!("{indent}{key}:"));
            object.iter().for_each(|(key, value)| {
                entry(lines, &key.replace('-', " "), value, below);
            });
        }
        Value::Array(array) => {
            lines.push(format!("{indent}{key}:"));
            array.iter().enumerate().for_each(|(index, value)| {
                entry(lines, &format!("[{index}]"), value, below);
            });
        }
        Value::String(text) => lines.push(format!("{indent}{key}: {text}")),
        scalar => lines.push(format!("{indent}{key}: {scalar}")),
    }
}

fn child(lines: &mut Vec<String>, child: &Child) {
    let info = &child.info;
    lines.push(format!("Child node '/{}':", child.name));
    lines.push(format!("    filename: {}", name(&info.filename)));
    lines.push(format!("    protocol type: {}", info.format));
    lines.push(format!("    file length: {}", size(info.virtual_size)));
    lines.push(format!("    disk size: {}", human(info.actual_size)));
}

fn name(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn size(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", human(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_list_has_qemus_columns() {
        assert_eq!(
            row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"),
            "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT"
        );
        let row = row("1", "first snap", "0 B", "2026-11-22 14:50:02", &clock(7, 89_000_000), "--");
        assert_eq!(
            row,
            "1       first snap            0 B 2026-11-22 14:50:02  0000:00:07.089         --"
        );
    }

    #[test]
    fn trap_138_snapshot_names_are_padded_by_bytes() {
        let row = row("1", "sécond", "0 B", "", "", "");
        assert!(row.starts_with("1       sécond               0 B "), "{row}");
    }

    #[test]
    fn trap_138_dates_are_shown_in_the_zone_given() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(date(1_795_359_002, &zone), "2026-11-22 16:50:02");
    }

    #[test]
    fn a_guest_clock_may_have_many_hours() {
        assert_eq!(clock(123_456 * 3600 + 59 * 60 + 7, 89_999_999), "123456:59:07.089");
    }

    #[test]
    fn nested_values_are_indented_under_their_key() {
        let value = serde_json::json!([{"flags": ["auto"], "name": "b"}, {"flags": []}]);
        let mut lines = Vec::new();
        entry(&mut lines, "bitmaps", &value, 1);
        let expected = [
            "    bitmaps:",
            "        [0]:",
            "            flags:",
            "                [0]: auto",
            "            name: b",
            "        [1]:",
            "            flags:",
        ];
        assert_eq!(lines, expected);
    }
}
