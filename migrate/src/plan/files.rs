//! What is done to the files that a guest has or needs besides its disks. Their paths stay the same.

use super::directories::obstacle;
use super::domain_rules;
use super::policy::Policy;
use super::value::{FileAction, FilePlan, FileRow, Mode, Refusal, Warning};
use super::words::{refuse, warn};
use crate::Remedy;
use crate::facts::{Content, Facts, FileFacts, FileRole};

/// Where a host's own packages have their files: firmware there is the host's, as QEMU is.
const OF_PACKAGES: &str = "/usr";

/// What else a row looks at.
struct Context<'a> {
    facts: &'a Facts,
    policy: &'a Policy,
    mode: Mode,
}

/// The row that fits a file, and what follows from it.
enum Verdict {
    Skip(String),
    /// It is not needed, but the operator should know something.
    Warn(&'static str, String),
    Copy(String),
    Refuse(String, Remedy),
}

/// What is done to every file, and what the operator should know; or why there is no plan.
pub(super) fn judge(
    facts: &Facts,
    policy: &Policy,
) -> Result<(Vec<FilePlan>, Vec<Warning>), Vec<Refusal>> {
    let context = Context { facts, policy, mode: domain_rules::mode(facts.domain.state) };
    let (mut plans, mut warnings, mut refusals) = (Vec::new(), Vec::new(), Vec::new());
    // From a template NVRAM is made only where there is none.
    let has_nvram = facts
        .files
        .iter()
        .any(|file| file.role == FileRole::Nvram && file.destination.content.is_some());
    for file in &facts.files {
        if file.role == FileRole::NvramTemplate && has_nvram {
            continue;
        }
        let (row, verdict) = row(file, &context);
        let (why, action) = match verdict {
            Verdict::Refuse(message, way_out) => {
                refusals.push(refuse(row.code(), None, message, way_out));
                continue;
            }
            Verdict::Skip(why) => (why, FileAction::Skip),
            Verdict::Warn(code, why) => {
                warnings.push(warn(code, None, &why));
                (why, FileAction::Skip)
            }
            Verdict::Copy(why) => (why, FileAction::Copy),
        };
        let bytes = match (&action, &file.file) {
            (FileAction::Copy, Some(file)) => file.identity.size,
            _ => 0,
        };
        plans.push(FilePlan {
            path: file.path.clone(),
            role: file.role,
            row,
            why,
            action,
            transfer_bytes: bytes,
            space_bytes: bytes,
        });
    }
    if refusals.is_empty() { Ok((plans, warnings)) } else { Err(refusals) }
}

/// A row's answer to a file; `None` if it does not fit.
type Judge = fn(&FileFacts, &Context<'_>) -> Option<Verdict>;

/// The table: the first row that fits decides.
const TABLE: [(FileRow, Judge); 9] = [
    (FileRow::ByLibvirt, by_libvirt),
    (FileRow::Unreadable, unreadable),
    (FileRow::NotMade, not_made),
    (FileRow::EqualThere, equal_there),
    (FileRow::FirmwareOfHost, firmware_of_host),
    (FileRow::TpmState, tpm_state),
    (FileRow::InTheWay, in_the_way),
    (FileRow::PlaceUnusable, place_unusable),
    (FileRow::Copied, copied),
];

fn row(file: &FileFacts, context: &Context<'_>) -> (FileRow, Verdict) {
    let fitting = TABLE.into_iter().find_map(|(row, judge)| Some((row, judge(file, context)?)));
    // `copied` fits everything.
    fitting.unwrap_or((FileRow::Copied, Verdict::Skip(String::new())))
}

/// The file and its path, for messages.
fn named(file: &FileFacts) -> String {
    format!("{} '{}'", file.role.describe(), file.path.display())
}

/// libvirt and QEMU carry the state of a running guest; an NVDIMM needs a file of its size to arrive in.
fn by_libvirt(file: &FileFacts, context: &Context<'_>) -> Option<Verdict> {
    if context.mode != Mode::Live || !file.role.is_state() {
        return None;
    }
    let arrives = || Some(Verdict::Skip("QEMU carries its content with the guest".into()));
    if file.role != FileRole::Nvdimm {
        return arrives();
    }
    let size = file.file.as_ref().map(|file| file.identity.size);
    let there = file.destination.object.as_ref().map(|object| object.identity.size);
    if size.is_some() && size == there {
        return arrives();
    }
    let size = size.map_or_else(String::new, |size| format!(" of {size} bytes"));
    Some(Verdict::Refuse(
        format!("the destination has no file{size} for {}", named(file)),
        Remedy::MakeFile,
    ))
}

fn unreadable(file: &FileFacts, _: &Context<'_>) -> Option<Verdict> {
    let device = file.file.as_ref().is_some_and(|file| file.block_device);
    let why = match &file.unreadable {
        Some(why) => why.as_str(),
        None if device => "it is a device",
        None => return None,
    };
    Some(Verdict::Refuse(format!("{} cannot be copied: {why}", named(file)), Remedy::ReadAsRoot))
}

/// The source does not have it: libvirt makes NVRAM at the first start, and the rest is missed at the start.
fn not_made(file: &FileFacts, context: &Context<'_>) -> Option<Verdict> {
    if file.file.is_some() {
        return None;
    }
    if file.role.is_state() || context.mode == Mode::Offline {
        return Some(Verdict::Skip("the source has no such file".into()));
    }
    if file.destination.content.is_some() {
        return Some(Verdict::Skip("only the destination has it".into()));
    }
    Some(Verdict::Refuse(
        format!("neither host has {}, and QEMU needs it at the destination", named(file)),
        "put the file that the guest was started with there".into(),
    ))
}

fn equal_there(file: &FileFacts, _: &Context<'_>) -> Option<Verdict> {
    let equal = matches!(file.destination.content, Some(Content::Equal { .. }));
    equal.then(|| Verdict::Skip("the destination has a file of equal content at its path".into()))
}

/// Firmware that a package installed is updated on each host for itself; a running guest needs its size.
fn firmware_of_host(file: &FileFacts, context: &Context<'_>) -> Option<Verdict> {
    let firmware = matches!(file.role, FileRole::Loader | FileRole::NvramTemplate | FileRole::Rom);
    if !firmware || !file.path.starts_with(OF_PACKAGES) {
        return None;
    }
    let install = "install the package with the same firmware there";
    let refused = |message: String| Some(Verdict::Refuse(message, install.into()));
    match (&file.destination.content, &file.destination.object) {
        (None, _) => refused(format!("the destination does not have {}", named(file))),
        (Some(Content::Different), Some(object))
            if context.mode == Mode::Live
                && file.role != FileRole::NvramTemplate
                && file
                    .file
                    .as_ref()
                    .is_some_and(|own| own.identity.size != object.identity.size) =>
        {
            refused(format!("{} has another size at the destination", named(file)))
        }
        (Some(Content::Different), _) if file.role != FileRole::NvramTemplate => {
            Some(Verdict::Warn(
                "firmware-differs",
                format!(
                    "{} is another version at the destination; the guest has that one after its \
                     next start",
                    named(file)
                ),
            ))
        }
        (Some(_), _) => Some(Verdict::Skip("the destination has its own".into())),
    }
}

/// The state of a TPM belongs to another user, in directories of that user's; libvirt makes those.
fn tpm_state(file: &FileFacts, _: &Context<'_>) -> Option<Verdict> {
    (file.role == FileRole::TpmState).then(|| {
        let directory = file.path.parent().unwrap_or(&file.path).display();
        Verdict::Refuse(
            format!("the destination does not have {} as it is here", named(file)),
            Remedy::CopyDirectory(directory.to_string()),
        )
    })
}

fn in_the_way(file: &FileFacts, _: &Context<'_>) -> Option<Verdict> {
    let what = match file.destination.content.as_ref()? {
        Content::Unknown { why } => format!("something that could not be compared ({why})"),
        _ => "another file".to_owned(),
    };
    let way_out = match file.role.is_state() {
        true => "move it away there if it is a left-over; nothing that exists is overwritten",
        false => "make both files the same, or give the guest's a path of its own",
    };
    Some(Verdict::Refuse(
        format!("at the path of {} the destination has {what}", named(file)),
        way_out.into(),
    ))
}

fn place_unusable(file: &FileFacts, context: &Context<'_>) -> Option<Verdict> {
    let Context { facts, policy, .. } = context;
    let unusable = file.destination.unusable.as_ref();
    let (why, way_out) = obstacle(facts, policy, &file.path, unusable)?;
    let message = format!("{} cannot be copied to the destination: {why}", named(file));
    // It has its path on both hosts.
    let way_out = match way_out {
        Remedy::AllowDirectory => Remedy::AllowDirectoryOfFile,
        _ => "make its directory there".into(),
    };
    Some(Verdict::Refuse(message, way_out))
}

fn copied(file: &FileFacts, _: &Context<'_>) -> Option<Verdict> {
    Some(Verdict::Copy(format!("{} is not at the destination", file.role.describe())))
}
