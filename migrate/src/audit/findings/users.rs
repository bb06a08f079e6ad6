//! What can be said of images and the domains that use them.

use super::{Code, Context, Finding, Report, Severity, Used, depending, quoted};
use crate::Remedy;
use crate::audit::value::{Content, Disk, Domain, Form, Image, Key, Presence};

/// The longest chain that is followed by names.
const DEEPEST: usize = 1000;

/// An image and the domains whose disk it is.
pub(super) fn look(context: &Context<'_>, at: usize, report: &mut Report<'_>) {
    let image = report.image;
    let writers: Vec<Used<'_>> =
        context.disks(&image.key).iter().copied().filter(|used| used.disk.writes).collect();
    let Some(first) = writers.first() else { return };
    let users = context.graph.above(at).len();
    if users > 0 {
        report.add(
            Severity::Error,
            Code::BaseWritten,
            format!(
                "{} writes to it as its disk {}{}, and {} on it: wherever it writes, their guests see \
                 wrong data",
                said(first.domain),
                first.disk.target,
                later(first.disk),
                depending(users)
            ),
            "give that domain an overlay of its own, or make the disk read-only in its XML",
        );
    }
    // The same domain may be on two hosts while it moves.
    let exclusive = |used: &&Used<'_>| !used.disk.shareable;
    let mut domains: Vec<_> = writers.iter().filter(exclusive).map(|used| used.domain).collect();
    domains.sort_by(|a, b| (!a.runs, &a.uuid, &a.host).cmp(&(!b.runs, &b.uuid, &b.host)));
    domains.dedup_by(|a, b| a.uuid == b.uuid);
    if let [one, two, ..] = domains.as_slice() {
        let (severity, when) = match one.runs && two.runs {
            true => (Severity::Error, "both run"),
            false => (Severity::Warning, "not both run now"),
        };
        report.add(
            severity,
            Code::TwoWriters,
            format!("{} and {} name it as a disk to write to; {when}", said(one), said(two)),
            "take the disk out of one of them, or mark it <shareable/> if their guests agree",
        );
    }
}

/// A domain's disks beside the headers.
pub(super) fn domain(context: &Context<'_>, domain: &Domain, found: &mut Vec<Finding>) {
    for disk in &domain.disks {
        let Some(own) = disk.layers.first() else { continue };
        let Some(image) = context.image(&own.key) else { continue };
        let mut report = Report { found: &mut *found, image };
        let whose = format!("{}, disk {}{}", said(domain), disk.target, later(disk));
        if image.presence == Presence::Missing && !context.deleted.contains_key(image.path()) {
            report.add(
                Severity::Error,
                Code::DiskMissing,
                format!("{whose}: the image does not exist"),
                "restore the file under this name, or remove the disk from the domain",
            );
            continue;
        }
        let format = own.format.as_deref().unwrap_or("raw");
        if let (Content::Qcow2, "raw") | (Content::Raw, "qcow2") = (&image.content, format) {
            report.add(
                Severity::Error,
                Code::FormatWrong,
                format!("{whose}: the XML calls it {format}, and its first bytes are not that"),
                "correct <driver type=...> in the domain's XML",
            );
            continue;
        }
        if let Some(difference) = disagreement(context, disk) {
            report.add(
                Severity::Error,
                Code::ChainsDisagree,
                format!("{whose}: {difference}; it works until the guest is restarted"),
                Remedy::RebaseAsUsed,
            );
        }
    }
}

/// The first difference between the chain in the XML and that in the headers.
fn disagreement(context: &Context<'_>, disk: &Disk) -> Option<String> {
    let own = disk.layers.first()?;
    // Where the XML just stops, libvirt follows the headers.
    if disk.layers.len() == 1 && !disk.terminated {
        return None;
    }
    let mut name = own.name.clone();
    let mut image = context.image(&own.key)?;
    let mut depth = 0_usize;
    loop {
        // What has no header that could be read, or names something remote, says nothing.
        if image.header.is_none() && image.content != Content::Raw
            || !image.not_followed.is_empty()
            || depth > DEEPEST
        {
            return None;
        }
        depth = depth.saturating_add(1);
        let in_xml = disk.layers.get(depth);
        let link = image.below(&name);
        match (in_xml, link) {
            (None, Some(link)) if disk.terminated => {
                return Some(format!(
                    "its chain in the XML ends, and the header of {} names {}",
                    quoted(image.path()),
                    quoted(&link.name)
                ));
            }
            (None, _) => return None,
            (Some(layer), None) => {
                return Some(format!(
                    "its XML names {} below {}, whose header names nothing",
                    quoted(&layer.name),
                    quoted(image.path())
                ));
            }
            (Some(layer), Some(link)) => {
                let same = layer.key == link.to || layer.name == link.name;
                let gone = deleted_name(context, &layer.key, &link.name);
                if !same && !gone {
                    return Some(format!(
                        "its XML names {} below {}, whose header names {}",
                        quoted(&layer.name),
                        quoted(image.path()),
                        quoted(&link.name)
                    ));
                }
                image = context.image(&link.to)?;
                name.clone_from(&link.name);
            }
        }
    }
}

/// Whether an image that was deleted once had this name.
fn deleted_name(context: &Context<'_>, key: &Key, name: &std::path::Path) -> bool {
    context.deleted.get(name).into_iter().flatten().any(|image: &&Image| image.key == *key)
}

fn said(domain: &Domain) -> String {
    let state = if domain.runs { "running" } else { "shut-off" };
    match &domain.host {
        Some(host) => format!("the {state} domain '{}' on {host}", domain.name),
        None => format!("the {state} domain '{}'", domain.name),
    }
}

fn later(disk: &Disk) -> &'static str {
    match disk.form {
        Form::Now => "",
        Form::NextStart => " of its next start",
    }
}
