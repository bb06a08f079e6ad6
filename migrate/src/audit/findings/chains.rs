//! Findings about an image and its backing file.

use super::{Code, Context, Finding, Report, Severity, depending, quoted};
use crate::Remedy;
use crate::audit::value::{Content, Header, Image, Link, Need, Presence, Proof};

/// An external snapshot is made before its base is written for the last time: so long that may take.
const SNAPSHOT_NS: i64 = 10_000_000_000;

pub(super) fn look(context: &Context<'_>, at: usize, report: &mut Report<'_>) {
    let image = report.image;
    let Some(header) = &image.header else {
        of_proof(context, at, report);
        return;
    };
    let gone = |link: &&Link| -> bool {
        context.image(&link.to).is_some_and(|base| base.presence == Presence::Missing)
    };
    for need in [Need::Backing, Need::Data] {
        let links: Vec<&Link> = image.links.iter().filter(|link| link.need == need).collect();
        let Some(first) = links.first() else { continue };
        if links.iter().all(gone) {
            missing(context, first, report);
        } else if let Some(other) = links.iter().find(|link| link.to != first.to) {
            report.add(
                Severity::Warning,
                Code::BaseByName,
                format!(
                    "it needs {} when it is opened in {}, and {} when it is opened in {}: its \
                     header has a relative name",
                    quoted(&first.name),
                    quoted(&first.through),
                    quoted(&other.name),
                    quoted(&other.through)
                ),
                Remedy::AbsoluteName,
            );
        }
    }
    extents(context, report);
    let mut compared = Vec::new();
    for link in &image.links {
        let Some(base) = context.image(&link.to) else { continue };
        if compared.contains(&&link.to) {
            continue;
        }
        compared.push(&link.to);
        if let Presence::Unusable { why, sure: true } = &base.presence {
            report.add(
                Severity::Error,
                Code::BaseUnusable,
                format!("what it needs, {}, cannot be used: {why}", quoted(&link.name)),
                "restore the right file under this name",
            );
        }
        if link.need == Need::Backing {
            format(header, base, report);
            times(image, base, report);
        }
    }
    let stands = header.backing.is_some();
    let named_by_json = header
        .backing
        .as_ref()
        .is_some_and(|name| name.as_os_str().as_encoded_bytes().starts_with(b"json:"));
    if stands && header.backing_format.is_none() && !named_by_json {
        report.add(
            Severity::Warning,
            Code::FormatUnrecorded,
            "the format of its backing file is not recorded: a program that opens it has to guess, and a guest can \
             make the guess go wrong",
            Remedy::RecordFormat,
        );
    }
    of_proof(context, at, report);
}

/// Files of a VMDK descriptor that are not there, as its first name has them.
fn extents(context: &Context<'_>, report: &mut Report<'_>) {
    let image = report.image;
    let directory = image.path().parent();
    let links = image
        .links
        .iter()
        .filter(|link| link.need == Need::Extent && Some(link.through.as_path()) == directory);
    for link in links {
        let there = context.image(&link.to);
        if there.is_some_and(|extent| extent.presence == Presence::Missing) {
            missing(context, link, report);
        }
    }
}

fn missing(context: &Context<'_>, link: &Link, report: &mut Report<'_>) {
    let what = match link.need {
        Need::Backing => "its base",
        Need::Data => "its data file",
        Need::Extent => "its extent",
        Need::LoopDevice => "its file",
    };
    let name = quoted(&link.name);
    let held = context.deleted.get(link.name.as_path()).and_then(|images| images.first());
    match held.and_then(|image| match &image.presence {
        Presence::Deleted { through } => Some((image, through)),
        _ => None,
    }) {
        Some((image, through)) => {
            let who = context.held(&image.key).unwrap_or_else(|| "a process".into());
            report.add(
                Severity::Error,
                Code::BaseMissing,
                format!("{what} {name} was deleted; {who} still has it open"),
                Remedy::RestoreDeleted(through.display().to_string()),
            );
        }
        None => report.add(
            Severity::Error,
            Code::BaseMissing,
            format!("{what} {name} does not exist"),
            "restore the file under this name; without it the image cannot be read",
        ),
    }
}

/// The recorded format beside the first bytes.
fn format(header: &Header, base: &Image, report: &mut Report<'_>) {
    let Some(recorded) = header.backing_format.as_deref() else { return };
    let found = match (&base.content, recorded) {
        (Content::Unknown, _) | (Content::Qcow2, "qcow2") | (Content::Raw, "raw") => return,
        // Other formats are not judged.
        (_, other) if !matches!(other, "qcow2" | "raw") => return,
        (Content::Qcow2, _) => "qcow2",
        (Content::Raw, _) => "raw",
        (Content::Vmdk, _) => "vmdk",
        (Content::Other(name), _) => name,
    };
    report.add(
        Severity::Error,
        Code::FormatWrong,
        format!(
            "its base {} is recorded as {recorded}, and its first bytes are those of: {found}",
            quoted(base.path())
        ),
        Remedy::CorrectFormat((*found).to_owned(), base.path().display().to_string()),
    );
}

/// What the times of an overlay and its base prove.
///
/// A base that was written after its overlay was made is not what the overlay was made on. When the
/// overlay was made is when its file was, or, where the file system does not tell, surely not after it was
/// last written. The time of the last change of a base's inode (ctime) proves nothing: it changes with
/// its owner, its labels and its names.
fn times(overlay: &Image, base: &Image, report: &mut Report<'_>) {
    let known = overlay.presence == Presence::Here && base.presence == Presence::Here;
    if !known || base.proof.is_some() || base.status.block_device {
        return;
    }
    let name = quoted(base.path());
    if let (Some(made), Some(base_made)) = (overlay.status.birth_ns, base.status.birth_ns)
        && base_made > made
    {
        report.add(
            Severity::Warning,
            Code::BaseReplaced,
            format!(
                "the file of its base {name} was made {} after its own: it is not the file that \
                 it was made on, though it may be a copy",
                seconds(base_made.saturating_sub(made))
            ),
            Remedy::CompareManifest,
        );
        return;
    }
    let made = overlay.status.birth_ns.or(overlay.status.mtime_ns);
    if let (Some(made), Some(changed)) = (made, base.status.mtime_ns)
        && changed > made.saturating_add(SNAPSHOT_NS)
    {
        report.add(
            Severity::Warning,
            Code::BaseModified,
            format!(
                "base modified after its overlay: {name} was last written {} after this image was \
                 made",
                seconds(changed.saturating_sub(made))
            ),
            Remedy::CompareManifest,
        );
    }
}

fn seconds(ns: i64) -> String {
    match ns.checked_div(1_000_000_000).unwrap_or(0) {
        0 => "less than a second".into(),
        seconds => format!("{seconds} s"),
    }
}

fn of_proof(context: &Context<'_>, at: usize, report: &mut Report<'_>) {
    if report.image.proof == Some(Proof::Different) {
        let users = context.graph.dependents(&[at]).len();
        report.add(
            Severity::Error,
            Code::BaseDifferent,
            format!(
                "its content differs from its manifest, and {} on it: wherever it differs, their guests \
                 see wrong data",
                depending(users)
            ),
            "restore the content that the manifest describes",
        );
    }
}

/// Loops of backing files, each once.
pub(super) fn circles(context: &Context<'_>, found: &mut Vec<Finding>) {
    for circle in context.graph.circles() {
        let mut names: Vec<_> = circle
            .iter()
            .filter_map(|at| context.graph.image(*at))
            .map(|image| quoted(image.path()))
            .collect();
        let Some(image) = circle
            .iter()
            .filter_map(|at| context.graph.image(*at))
            .min_by_key(|image| image.path())
        else {
            continue;
        };
        let count = names.len();
        names.truncate(4);
        let more = if count > names.len() { " and more" } else { "" };
        Report { found, image }.add(
            Severity::Error,
            Code::Loop,
            match count {
                1 => "it is its own backing file".to_owned(),
                _ => format!("{count} images form a backing-file loop: {}{more}", names.join(", ")),
            },
            Remedy::BreakLoop,
        );
    }
}
