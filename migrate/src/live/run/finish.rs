//! The end of a run: what is on the disk is flushed, verified and defined; or what was made is taken away again.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Run, has_no_backing_file, is_at};
use crate::domain::{Change, DiskEdit, parse, persistent_xml};
use crate::facts::{DomainState, NamedLayer, Source};
use crate::live::allocation::AllocationSummary;
use crate::live::compare::same_content;
use crate::live::value::{Below, Flattened, Method};
use crate::store::{LocalStore, Store};
use crate::{Error, ErrorKind, Remedy, Result};

impl Run<'_> {
    /// The disk is as it shall be: flushes that to storage, verifies it, and updates the guest's definition.
    pub(super) fn finish(mut self, again: bool) -> Result<Flattened> {
        if self.plan().method == Method::Pull {
            self.flush()?;
        }
        self.prove()?;
        let compared = match self.plan().compare {
            true => self.compare(),
            false => Ok(false),
        };
        // It must not run on what is wrong; anything else is no reason to keep it from running.
        let wrong = compared.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unverified);
        if self.record.stopped && !wrong {
            self.let_go()?;
        }
        let compared = compared?;
        self.define()?;
        self.record.remove(self.context.state)?;
        let plan = self.plan();
        let old = plan.method.copies().then(|| plan.image.clone());
        let below: &[_] = if plan.keeps_below { &[] } else { &plan.below };
        let milliseconds =
            |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Ok(Flattened {
            domain: plan.domain.clone(),
            uuid: plan.uuid.clone(),
            disk: plan.disk.clone(),
            method: plan.method,
            image: plan.becomes.clone(),
            left: old.into_iter().chain(below.iter().map(|layer| layer.path.clone())).collect(),
            length_bytes: std::fs::metadata(&plan.becomes).map_or(0, |metadata| metadata.len()),
            elapsed_ms: milliseconds(self.start.elapsed()),
            paused_ms: milliseconds(self.paused),
            tables_compared: plan.tables_compared,
            compared,
            went_on: again,
        })
    }

    /// Stops the guest for a moment: QEMU writes all that it keeps in memory of its disks when a guest stops. A
    /// guest that has stopped already does not do it again.
    fn flush(&mut self) -> Result<()> {
        let uuid = self.plan().uuid.clone();
        let hypervisor = self.context.hypervisor;
        match self.patiently(|| hypervisor.state(&uuid))? {
            Some(DomainState::Running) => {}
            None | Some(DomainState::ShutOff) => return Ok(()),
            Some(DomainState::Paused | DomainState::Other) => {
                let message = format!(
                    "'{}' has no backing file any more, but the guest has stopped, and the pulled data may not all be on disk",
                    self.plan().becomes.display()
                );
                return Err(Error::environment(message).hint(
                    "do not stop the guest: resume it (virsh resume), and run the same command again",
                ));
            }
        }
        self.record.stopped = true;
        self.record.write(self.context.state)?;
        let stopped = Instant::now();
        let suspended = self.patiently(|| hypervisor.suspend(&uuid));
        self.let_go()?;
        self.paused = stopped.elapsed();
        suspended
    }

    /// Stops the guest until the copy was compared with what it was copied from, unless it stands still already.
    pub(super) fn stand_still(&mut self) -> Result<()> {
        let uuid = self.plan().uuid.clone();
        let hypervisor = self.context.hypervisor;
        if self.patiently(|| hypervisor.state(&uuid))? != Some(DomainState::Running) {
            return Ok(());
        }
        self.record.stopped = true;
        self.record.write(self.context.state)?;
        self.stood = Some(Instant::now());
        self.patiently(|| hypervisor.suspend(&uuid))
    }

    /// Compares all of the disk with what it was. `false`: the guest has run since, or has ended, so that a difference
    /// would be its own.
    fn compare(&self) -> Result<bool> {
        let plan = self.plan();
        let still = || self.patiently(|| self.context.hypervisor.state(&plan.uuid));
        if still()? != Some(DomainState::Paused) {
            return Ok(false);
        }
        same_content(plan, self.context)?;
        Ok(still()? == Some(DomainState::Paused))
    }

    /// Lets the guest go on that we stopped.
    pub(super) fn let_go(&mut self) -> Result<()> {
        let uuid = self.plan().uuid.clone();
        let hypervisor = self.context.hypervisor;
        let gone_on = self.patiently(|| match hypervisor.state(&uuid)? {
            Some(DomainState::Paused) => hypervisor.resume(&uuid),
            _ => Ok(()),
        });
        gone_on.map_err(|error| {
            error.and_also("the guest may be paused").hint("virsh resume resumes it")
        })?;
        if let Some(stood) = self.stood.take() {
            self.paused = stood.elapsed();
        }
        self.record.stopped = false;
        self.record.write(self.context.state)
    }

    /// Verifies what is on storage: the image has no backing file, and its tables lead to all data of the layers.
    fn prove(&self) -> Result<()> {
        let plan = self.plan();
        let chain = self.on_disk()?;
        let wrong = |what: String| {
            let error = Error::new(ErrorKind::Unverified, what);
            let Some(base) = plan.below.first() else { return error };
            error.hint(Remedy::KeepRunning(
                base.path.display().to_string(),
                base.format.clone(),
                plan.becomes.display().to_string(),
            ))
        };
        let name = plan.becomes.display();
        let top = chain.layers().first();
        if plan.method == Method::Move {
            let below = plan.below.first().filter(|_| plan.keeps_below);
            let wanted = below.map(|base| base.path.as_os_str().as_encoded_bytes());
            let image = top.and_then(|layer| layer.image());
            let found = image.and_then(|image| image.area().backing_name.as_deref());
            return match found == wanted {
                true => Ok(()),
                false => Err(Error::new(
                    ErrorKind::Unverified,
                    format!(
                        "the header of '{name}' does not name the backing file that it was made with"
                    ),
                )),
            };
        }
        if !top.is_some_and(has_no_backing_file) {
            return Err(wrong(format!("the header of '{name}' still names a layer below")));
        }
        if plan.tables_compared {
            let lacking = self.record.allocation.lacking_in(&AllocationSummary::of(&chain)?);
            if let Some((offset, bytes)) = lacking {
                return Err(wrong(format!(
                    "'{name}' lacks {bytes} bytes that it and the layers below had, from about guest offset \
                     {offset} on"
                )));
            }
        }
        Ok(())
    }

    /// Has the guest's definition say the same as what runs. libvirt usually has seen to that.
    fn define(&self) -> Result<()> {
        let plan = self.plan();
        let Some((domain, _)) = self.look()? else { return Ok(()) };
        let Some(inactive) = domain.inactive_xml.filter(|_| domain.persistent) else {
            return Ok(());
        };
        let disks = parse(&inactive)?.disks;
        // The disk of the next start may be another one on purpose.
        let old = disks.iter().find(|disk| disk.target == plan.disk && is_at(disk, &plan.image));
        let stale = old.is_some_and(|disk| match plan.method {
            Method::Pull => disk.chain.layers.len() > 1,
            Method::Copy | Method::Move => true,
        });
        if !stale {
            return Ok(());
        }
        let block = matches!(old.map(|disk| &disk.source), Some(Source::Block { .. }));
        let below: &[_] = if plan.keeps_below { &plan.below } else { &[] };
        let change = Change::Move {
            path: plan.becomes.clone(),
            block: block && plan.method == Method::Pull,
            format: plan.format,
            below: below.iter().map(named).collect(),
            slice: None,
        };
        let edit = DiskEdit { target: plan.disk.clone(), change };
        let xml = persistent_xml(&inactive, &[edit])?;
        self.patiently(|| self.context.hypervisor.define(&xml))
    }

    /// Takes away what was made, and the mark. The error says what could not be.
    pub(super) fn roll_back_after(&self, error: Error) -> Error {
        let error = match self.look() {
            Ok(Some((domain, _))) if self.plan().running && domain.state == DomainState::Paused => {
                error
                    .and_also("the guest is paused, as when its disk is full")
                    .hint("make room, then resume it: virsh resume")
            }
            _ => error,
        };
        match self.forget() {
            Ok(()) => error,
            Err(left) => error.and_also(format!("the roll back is incomplete: {left}")),
        }
    }

    /// Removes the new image, if it is not in use, and the mark.
    pub(super) fn forget(&self) -> Result<()> {
        if let Some(made) = &self.record.made {
            let path = &self.plan().becomes;
            // Where the guest has ended it is not known whether its last writes are in it.
            let runs = matches!(
                self.look()?,
                Some((domain, Some(_))) if domain.state != DomainState::ShutOff
            );
            let used = self.patiently(|| self.context.hypervisor.paths_in_use())?.contains(path);
            if runs && !used {
                LocalStore::new(Path::new("/"))?.remove(path, made)?;
            } else {
                self.record.remove(self.context.state)?;
                let message = format!("the new image '{}' is left", path.display());
                return Err(Error::environment(message).hint(
                    "the guest may have written to it: look at its definition before it is removed",
                ));
            }
        }
        self.record.remove(self.context.state)
    }
}

fn named(layer: &Below) -> NamedLayer {
    NamedLayer { path: layer.path.clone(), format: Some(layer.format.clone()) }
}
