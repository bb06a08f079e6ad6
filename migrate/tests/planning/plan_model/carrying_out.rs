//! Carries plans out on the model, as simply as can be: it makes what the plan says, checks what the plan
//! says must still be proven and nothing else, and migrates.

use std::collections::BTreeSet;

use migrate::domain::{Change, DiskEdit};
use migrate::driver::model::*;
use migrate::facts::NamedLayer;
use migrate::plan::*;
use qcow::chain::Format;

/// How it ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The guest is at the destination.
    Moved,
    /// Before anything was moved: the facts have changed, or a proof could not be given.
    Stopped(String),
    /// The migration failed, and the guest is where it was.
    Failed(String),
}

type Step = Result<(), String>;

pub(crate) fn carry_out(
    model: &mut Model,
    plan: &Plan,
    edits: &[DiskEdit],
    policy: &Policy,
    scenario: &Scenario,
    damage: bool,
) -> Ended {
    if model.facts(policy).fingerprint() != plan.facts {
        return Ended::Stopped("the facts have changed".into());
    }
    if let Err(why) = prepare(model, plan, edits, damage) {
        return Ended::Stopped(why);
    }
    others_write(model);
    let said = match plan.mode {
        Mode::Offline => {
            fill(model, plan);
            model.disks = model.disks.iter().map(|disk| edited(disk, edits)).collect();
            model.on = Side::Destination;
            Ok(())
        }
        Mode::Live => {
            let request = MigrationRequest {
                flags: plan.flags.clone(),
                migrate_disks: plan.migrate_disks.clone(),
                edits: edits.to_vec(),
            };
            model.migrate(&request, scenario)
        }
    };
    // What it said is not the outcome.
    match (model.on, said) {
        (Side::Destination, _) => Ended::Moved,
        (Side::Source, said) => Ended::Failed(format!("{said:?}")),
    }
}

fn prepare(model: &mut Model, plan: &Plan, edits: &[DiskEdit], damage: bool) -> Step {
    let mut brought = BTreeSet::new();
    for disk in &plan.disks {
        match &disk.action {
            Action::Skip | Action::Eject => {}
            Action::CopyMedium { from, to } => {
                let image = model.readable(from).ok_or("no medium")?.1.clone();
                model.put(Side::Destination, to, image).map_err(|error| error.to_string())?;
            }
            Action::Create { image, base } => {
                if let Some(BasePlan::BaseCopy { path, how, digest, .. }) = base
                    && brought.insert(path.clone())
                {
                    let mut seed = seed(model, how)?;
                    if let Some(cluster) = seed.clusters.first_mut().filter(|_| damage) {
                        *cluster = Some(66);
                    }
                    model.put(Side::Destination, path, seed).map_err(|error| error.to_string())?;
                    let found = model.digest(Side::Destination, path);
                    if disk.proofs.contains(&Proof::ContentBelowEqual)
                        && found.as_ref() != Some(digest)
                    {
                        return Err("P3: the base that was brought is another".into());
                    }
                }
                let clusters = (image.virtual_size / CLUSTER) as usize;
                let backing = below(edits, &disk.target).first().cloned();
                let top = Image::empty(image.format, clusters, backing);
                model.put(Side::Destination, &image.path, top).map_err(|it| it.to_string())?;
            }
            Action::Adopt { path, .. } => {
                let (_, image) = model.look(Side::Destination, path).ok_or("it is gone")?;
                if disk.proofs.contains(&Proof::ChainsAgree) && image.backing.is_some() {
                    return Err("P7: what is adopted stands on something".into());
                }
            }
        }
    }
    Ok(())
}

fn below<'a>(edits: &'a [DiskEdit], target: &str) -> &'a [NamedLayer] {
    edits.iter().find(|edit| edit.target == target).map_or(&[], |edit| match &edit.change {
        Change::Move { below, .. } => below,
        _ => &[],
    })
}

fn seed(model: &Model, how: &BaseCopyMethod) -> Result<Image, String> {
    match how {
        BaseCopyMethod::CopyFile { from } => {
            let (_, image) = model.readable(from).ok_or("the base cannot be read")?;
            Ok(Image { in_use: false, ..image.clone() })
        }
        BaseCopyMethod::Flatten { from, format } => {
            let content =
                model.show(Side::Source, from, *format).map_err(|error| error.to_string())?;
            Ok(Image::new(Format::Qcow2, content.into_iter().map(Some).collect(), None))
        }
    }
}

/// Guests of the destination go on writing to what is theirs.
fn others_write(model: &mut Model) {
    let used: Vec<_> = ["vda", "vdb", "vda-1", "vdb-1"]
        .into_iter()
        .flat_map(|name| [format!("/new/{name}"), format!("/old/{name}")])
        .collect();
    for path in used {
        model.change(Side::Destination, path.as_ref(), |image| {
            if image.in_use {
                image.clusters.fill(Some(99));
            }
        });
    }
}

/// Offline: new images get what the old ones hold.
fn fill(model: &mut Model, plan: &Plan) {
    for (disk, planned) in model.disks.clone().iter().zip(&plan.disks) {
        let Action::Create { image, base } = &planned.action else { continue };
        let top = &disk.named[0];
        let held = match base {
            Some(_) => model.look(Side::Source, &top.path).unwrap().1.clusters.clone(),
            None => model.read(disk).unwrap().into_iter().map(Some).collect(),
        };
        model.change(Side::Destination, &image.path, |image| image.clusters = held);
    }
}
