//! Facts and wishes become a plan, or refusals. Pure.

use super::value::{Below, Facts, LivePlan, Method, Options};
use crate::Remedy;
use crate::facts::{Device, DomainState, LayerFacts, Source};
use crate::plan::Refusal;
use qcow::chain::Format;

/// Bytes that are left free for what the guest writes meanwhile.
const RESERVE: u64 = 64 << 20;

/// What would be done.
///
/// # Errors
/// Everything that is in the way, and the ways out.
pub fn plan(facts: &Facts, options: &Options) -> Result<LivePlan, Vec<Refusal>> {
    let mut refusals = Refusals { disk: &facts.disk.target, all: Vec::new() };
    guest(facts, options, &mut refusals);
    disk(facts, &mut refusals);
    let made = image(facts, options, &mut refusals);
    match made {
        Some(plan) if refusals.all.is_empty() => Ok(plan),
        _ => Err(refusals.all),
    }
}

struct Refusals<'a> {
    disk: &'a str,
    all: Vec<Refusal>,
}

impl Refusals<'_> {
    fn add(&mut self, code: &str, message: impl Into<String>, way_out: impl Into<Remedy>) {
        self.all.push(Refusal {
            code: code.to_owned(),
            disk: Some(self.disk.to_owned()),
            message: message.into(),
            way_out: way_out.into(),
        });
    }
}

fn guest(facts: &Facts, options: &Options, refusals: &mut Refusals<'_>) {
    let name = &facts.domain.name;
    match (facts.domain.state, options.method) {
        (DomainState::Running, _) | (DomainState::Paused, Method::Copy | Method::Move) => {}
        (DomainState::Paused, Method::Pull) => refusals.add(
            "paused",
            format!(
                "{name} is paused, and what is pulled reaches the disk for certain only when a \
                     running guest is stopped for a moment"
            ),
            Remedy::ResumeOrCopy,
        ),
        (DomainState::ShutOff, Method::Move) => refusals.add(
            "not-running",
            format!("{name} does not run"),
            "copy the image as it is to its new place, and write that into the guest's definition (virsh edit)",
        ),
        (DomainState::ShutOff, _) => {
            refusals.add("not-running", format!("{name} does not run"), Remedy::FlattenOffline)
        }
        (DomainState::Other, _) => refusals.add(
            "not-running",
            format!("{name} neither runs nor is paused"),
            "wait until it does, or has ended",
        ),
    }
    if let Some(job) = &facts.domain.job {
        let way_out = "wait for it (virsh domjobinfo), or abort it";
        refusals.add("busy", format!("{name} has a job: {job}"), way_out);
    }
}

fn disk(facts: &Facts, refusals: &mut Refusals<'_>) {
    let disk = &facts.disk;
    if let Some(job) = &disk.block_job {
        let way_out = "wait for it, or abort it (virsh blockjob GUEST DISK --abort)";
        refusals.add("busy", format!("a job runs on the disk: {job}"), way_out);
    }
    let said = |path: &Option<_>| path.is_some();
    match &disk.source {
        Source::File { .. } | Source::Block { .. } => {}
        Source::Volume { path, .. } if said(path) => {}
        Source::None => refusals.add("no-image", "the drive is empty", "name another disk"),
        _ => refusals.add(
            "no-image",
            "the disk is not on a file or device of this host",
            "only what its host can read can be planned for",
        ),
    }
    if disk.readonly || disk.device == Device::Cdrom {
        let message = "the guest cannot write to the disk, so libvirt does not either";
        refusals.add("read-only", message, "flatten its image when no guest uses it");
    }
    if disk.shareable {
        let message = "other guests may write to the disk";
        refusals.add("shared", message, "stop them all and flatten its image");
    }
    if disk.transient {
        let message = "what the guest writes to the disk is thrown away when it stops";
        refusals.add("transient", message, "flatten its image when no guest uses it");
    }
}

fn image(facts: &Facts, options: &Options, refusals: &mut Refusals<'_>) -> Option<LivePlan> {
    let chain = facts.disk.chain.as_ref()?;
    if let Some(missing) = &chain.missing {
        refusals.add(
            "unreadable",
            format!("'{}' cannot be read: {}", missing.path.display(), missing.why),
            "run as root, to inspect the open files of the guest's process",
        );
    }
    let (top, below) = chain.layers.split_first()?;
    if chain.missing.is_none() && !agrees(facts, &chain.layers) {
        refusals.add(
            "chains-differ",
            "the running guest's chain differs from the headers of its images",
            Remedy::MigrateOrCompare,
        );
    } else if chain.missing.is_none() && below.is_empty() && options.method != Method::Move {
        refusals.add("stands-alone", "the disk has no backing file", "there is nothing to do");
    }
    header(top, facts, options, refusals);
    let needs = facts.needs.unwrap_or_default();
    let pull = options.method == Method::Pull;
    // What was deleted cannot be below a new image.
    let keeps_below = options.method == Method::Move
        && !options.standalone
        && !below.is_empty()
        && !below.iter().any(|layer| layer.deleted);
    let grows = match options.method {
        Method::Pull => needs.pull,
        _ if keeps_below => needs.whole.saturating_sub(needs.below),
        _ => needs.whole,
    };
    let compare = options.compare && !below.iter().any(|layer| layer.deleted);
    // A device is as long as it is: all must fit into it.
    let device = pull && top.block_device;
    let wanted = if device { needs.whole } else { grows };
    if chain.missing.is_none() && (!below.is_empty() || options.method == Method::Move) {
        if !pull {
            name(facts, refusals);
        }
        room(facts, wanted, refusals);
    }
    let length = if pull && !device { top.identity.size.saturating_add(grows) } else { wanted };
    Some(LivePlan {
        domain: facts.domain.name.clone(),
        uuid: facts.domain.uuid.clone(),
        disk: facts.disk.target.clone(),
        method: options.method,
        image: top.path.clone(),
        becomes: facts.place.path.clone(),
        format: if options.method == Method::Move { top.format } else { Format::Qcow2 },
        keeps_below,
        compare,
        virtual_size: top.virtual_size,
        below: below.iter().map(summary).collect(),
        copied_bytes: match options.method {
            Method::Pull => needs.below,
            _ if keeps_below => grows,
            _ => chain.guest_bytes.unwrap_or(needs.whole),
        },
        grows_bytes: grows,
        length_bytes: length,
        available_bytes: facts.place.available,
        bandwidth: options.bandwidth,
        timeout: options.timeout,
        tables_compared: pull
            && !facts.discard
            && top.qcow2.as_ref().is_some_and(|qcow2| qcow2.version >= 3),
        running: facts.domain.state == DomainState::Running,
        notes: notes(facts, options, top, if keeps_below { &[] } else { below }, needs.below),
    })
}

/// Whether the running guest has the chain that the headers tell.
fn agrees(facts: &Facts, layers: &[LayerFacts]) -> bool {
    let named = &facts.disk.live_chain.layers;
    let same = |(named, layer): (&crate::facts::NamedLayer, &LayerFacts)| {
        // Names of volumes and such are not comparable, and links may lead to one file.
        !named.path.is_absolute() || named.path.file_name() == layer.path.file_name()
    };
    named.is_empty() || (named.len() == layers.len() && named.iter().zip(layers).skip(1).all(same))
}

fn header(top: &LayerFacts, facts: &Facts, options: &Options, refusals: &mut Refusals<'_>) {
    let image = top.path.display();
    if let Some(capacity) = facts.disk.live_capacity
        && options.method.copies()
        && capacity != top.virtual_size
    {
        let size = top.virtual_size;
        let message = format!("the guest's disk has {capacity} bytes, and '{image}' says {size}");
        refusals.add("size", message, "look whether the disk is being resized");
    }
    let Some(qcow2) = &top.qcow2 else { return };
    if !qcow2.snapshots.is_empty() {
        refusals.add(
            "snapshots",
            format!(
                "'{image}' has internal snapshots ({}), which use the same layers and would be lost",
                qcow2.snapshots.join(", ")
            ),
            Remedy::ExtractSnapshots,
        );
    }
    if let Some(encryption) = &qcow2.encryption {
        let message = format!("'{image}' is encrypted ({encryption})");
        refusals.add("encrypted", message, Remedy::FlattenEncrypted);
    }
    if let Some(file) = &qcow2.data_file {
        let message = format!("'{image}' has an external data file, '{file}'");
        refusals.add("data-file", message, "flatten it when no guest uses it");
    }
    if qcow2.corrupt {
        let message = format!("'{image}' is marked as corrupt");
        refusals.add("corrupt", message, Remedy::Check);
    }
}

/// Whether the new image of a copy can have its name.
fn name(facts: &Facts, refusals: &mut Refusals<'_>) {
    let place = &facts.place;
    let path = place.path.display();
    if !place.path.is_absolute() || place.path.file_name().is_none() {
        refusals.add("target", format!("'{path}' is no absolute path of a file"), "give one");
    } else if place.path.starts_with("/dev") && !place.path.starts_with("/dev/shm") {
        refusals.add("target", format!("'{path}' is among devices"), "a copy goes to a new file");
    } else if place.taken {
        let message = format!("'{path}' exists already");
        refusals.add("name-taken", message, Remedy::OtherTarget);
    }
}

fn room(facts: &Facts, wanted: u64, refusals: &mut Refusals<'_>) {
    let place = &facts.place;
    if let Some(why) = &place.unusable {
        refusals.add("target", why.clone(), Remedy::OtherDirectory);
        return;
    }
    let Some(available) = place.available else { return };
    let wanted = wanted.saturating_add(RESERVE);
    if available < wanted {
        refusals.add(
            "no-room",
            format!(
                "'{}' may take {wanted} bytes more, {RESERVE} for what the guest writes meanwhile included, and {available} are free",
                place.path.display()
            ),
            Remedy::RoomOrCopy,
        );
    }
}

fn summary(layer: &LayerFacts) -> Below {
    Below {
        path: layer.path.clone(),
        format: layer.format.as_str().to_owned(),
        deleted: layer.deleted,
    }
}

fn notes(
    facts: &Facts,
    options: &Options,
    top: &LayerFacts,
    below: &[LayerFacts],
    shared: u64,
) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(layer) = below.iter().find(|layer| !layer.deleted) {
        notes.push(format!(
            "{shared} bytes that '{}' shares with other guests become this guest's own",
            layer.path.display()
        ));
    }
    if below.iter().any(|layer| layer.deleted) {
        notes.push("what was deleted is lost with the guest's process until this is done".into());
    }
    if options.method.copies() {
        notes.push(format!(
            "'{}' stays as it is then, and the guest no longer uses it",
            top.path.display()
        ));
        if top.qcow2.as_ref().is_some_and(|qcow2| !qcow2.bitmaps.is_empty()) {
            notes.push("the image's bitmaps do not come along".into());
        }
    }
    if options.compare && below.iter().any(|layer| layer.deleted) {
        notes.push("a layer was deleted, so the content cannot be compared".into());
    }
    if !facts.domain.snapshots.is_empty() {
        notes.push("libvirt can no longer revert to its external snapshots of this disk".into());
    }
    if !facts.domain.persistent {
        notes.push("the guest is not defined: only what runs changes".into());
    }
    notes
}
