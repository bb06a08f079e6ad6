//! What can be said of an image by itself and of the processes that have it open.

use super::{Code, Context, Report, Severity, depending, quoted};
use crate::Remedy;
use crate::audit::value::{Need, Presence, Truncated};

pub(super) fn look(context: &Context<'_>, at: usize, report: &mut Report<'_>) {
    let image = report.image;
    if let Presence::Deleted { through } = &image.presence {
        let held = context.held(&image.key).unwrap_or_else(|| "a process".into());
        report.add(
            Severity::Error,
            Code::DeletedOpen,
            format!(
                "it was deleted, and {held} still has it open: when that ends, its content is lost"
            ),
            Remedy::SaveDeleted(through.display().to_string()),
        );
    }
    if let Presence::Unusable { why, sure: false } = &image.presence {
        let way_out = "run as a user who can read it; its backing file is not known";
        report.add(Severity::Warning, Code::Unreadable, why, way_out);
    }
    if let Some((why, broken)) = &image.problem {
        // A header that another program may have written in a way that we do not read is no error.
        let (severity, code) = match broken {
            true => (Severity::Error, Code::HeaderBroken),
            false => (Severity::Warning, Code::Unreadable),
        };
        report.add(severity, code, why, Remedy::CheckHeader);
    }
    if let Some(header) = &image.header {
        let open_for_writing = image.locks.contains(&"write");
        if header.corrupt {
            report.add(
                Severity::Error,
                Code::Corrupt,
                "it is marked as corrupt: QEMU found damage and opens it for reading only",
                Remedy::Repair,
            );
        }
        if header.dirty {
            // So is every image with lazy refcounts while a guest writes to it.
            let severity = if open_for_writing { Severity::Info } else { Severity::Warning };
            report.add(
                severity,
                Code::Dirty,
                "it is marked as dirty: it was not closed, or a guest with lazy refcounts runs",
                Remedy::RepairLeaks,
            );
        }
    }
    // While a guest writes, its refcounts may be ahead of its data.
    if let Some(Truncated { used, file_length }) = image.header.as_ref().and_then(|h| h.truncated)
        && !image.locks.contains(&"write")
    {
        report.add(
            Severity::Warning,
            Code::Truncated,
            format!(
                "the file ends at {file_length} bytes, but its refcounts count clusters up to {used} as \
                 used: it was cut short (a copy or download that ended early), or QEMU was killed"
            ),
            Remedy::CheckTruncated,
        );
    }
    if !image.locks.is_empty() && image.locks.contains(&"write") {
        let held = context.held(&image.key).unwrap_or_else(|| "a process".into());
        report.add(
            Severity::Info,
            Code::Locked,
            format!("{held} has it open for writing, according to QEMU's image locks"),
            "nothing needs to be done",
        );
    }
    for (name, why) in &image.not_followed {
        report.add(
            Severity::Info,
            Code::BaseNotFollowed,
            format!("it is backed by {}, which was not examined: {why}", quoted(name)),
            "look at that storage with its own tools",
        );
    }
    bases(context, at, report);
}

/// Findings about backing files, and about images that could be one and are none.
fn bases(context: &Context<'_>, at: usize, report: &mut Report<'_>) {
    let image = report.image;
    let users = context.graph.above(at).len();
    if users == 0 {
        let alone = image.links.is_empty() && image.not_followed.is_empty();
        let used = !context.disks(&image.key).is_empty() || context.held(&image.key).is_some();
        let named_below = context.named_below.contains(&image.key);
        // Without a list of domains, whatever can be written to may be a guest's disk.
        let sure = context.survey.domains_known || image.status.mode & 0o222 == 0;
        let here = image.presence == Presence::Here && !image.status.block_device;
        if here && alone && !used && !named_below && sure {
            let whom = if context.survey.domains_known { " and no domain names it" } else { "" };
            report.add(
                Severity::Info,
                Code::BaseUnused,
                format!("nothing depends on it{whom}; it takes {} bytes", image.status.allocated),
                "if it is not needed otherwise, it can be removed",
            );
        }
        return;
    }
    // What holds another's data, and not its past, is there to be written to.
    let backs = |user: &&usize| {
        let links = context.graph.image(**user).map(|user| user.links.as_slice());
        let mut links = links.unwrap_or_default().iter();
        links.any(|link| link.to == image.key && link.need == Need::Backing)
    };
    let users = context.graph.above(at).iter().filter(backs).count();
    let others = image.status.mode & 0o022 != 0;
    if users > 0
        && image.presence == Presence::Here
        && !image.status.block_device
        && image.status.mode & 0o222 != 0
    {
        let (severity, whom) = match others {
            true => (Severity::Warning, "its group or others"),
            false => (Severity::Info, "its owner"),
        };
        report.add(
            severity,
            Code::BaseWritable,
            format!("{} on it, and its mode lets {whom} write to it", depending(users)),
            "chmod a-w: writing to a backing file corrupts every overlay of it",
        );
    }
}
