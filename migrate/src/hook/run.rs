//! The calls of libvirt, carried out.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use qcow::{CancelToken, Silent};

use super::annotation::{Annotation, Below};
use super::begin::{self, Arriving, Decision, NewTarget, Place, not_ours, path_of};
use super::config::{Config, FILE};
use super::facts::{Files, below_root};
use super::gate::{self, Target};
use super::record::{Made, Record};
use super::status::{self, Copying, Status};
use crate::domain::{XmlDomain, destination_xml, parse};
use crate::fs::fd_path;
use crate::prepare::image;
use crate::store::{Mode, Store as _};
use crate::{Error, ErrorKind, Remedy, Result};

/// No XML of libvirt's is longer, in bytes.
const LONGEST_XML: u64 = 4 << 20;

/// Where the hook remembers what it created, and where libvirt has its status XML.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Directory of the hook's records; what is there must not outlive a boot.
    pub state: PathBuf,
    /// libvirt's directory of status XML.
    pub status: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { state: "/run/qcowtool/hook".into(), status: "/run/libvirt/qemu".into() }
    }
}

/// What libvirt calls the hook for.
#[derive(Debug, Clone)]
pub struct Call {
    /// The guest's name.
    pub guest: String,
    /// The operation, such as `migrate`.
    pub operation: String,
    /// Its part: `begin` or `end`.
    pub sub_operation: String,
    /// Why, for some; `-` otherwise.
    pub extra: String,
}

/// Asks the source's libvirt about a guest: its UUID and the names of its disks.
pub type AskSource<'a> = dyn Fn(&str, &[String]) -> Result<Annotation> + 'a;

/// A hook that was called.
pub struct Hook<'a> {
    config: Result<Config>,
    paths: Paths,
    log: &'a dyn Fn(&str),
    ask: Option<&'a AskSource<'a>>,
    cancel: CancelToken,
}

impl std::fmt::Debug for Hook<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<'a> Hook<'a> {
    /// A hook with this configuration, or with why there is none; `log` takes the lines of its log, and `cancel` is set
    /// when there is no more time.
    pub fn new(
        config: Result<Config>,
        paths: Paths,
        log: &'a dyn Fn(&str),
        cancel: CancelToken,
    ) -> Self {
        Self { config, paths, log, ask: None, cancel }
    }

    /// Asks the source about the guest, too.
    #[must_use]
    pub fn asking(self, ask: &'a AskSource<'a>) -> Self {
        Self { ask: Some(ask), ..self }
    }

    /// Does what a call is for, with the XML that came with it, and returns the XML for libvirt where it is another one.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) if the migration must not go on, and whatever kept the hook from its work:
    /// libvirt then ends what it was about to do, if that was a migration to this host.
    pub fn call(&self, call: &Call, xml: &str) -> Result<Option<String>> {
        match (call.operation.as_str(), call.sub_operation.as_str()) {
            ("migrate", "begin") => return self.migrate_begin(xml),
            ("started", "begin") => self.started(&call.guest, xml)?,
            ("stopped", "end") => self.stopped(&call.guest, xml)?,
            ("release", "end") => self.release(&call.extra, xml)?,
            _ => {}
        }
        Ok(None)
    }

    fn config(&self) -> Result<&Config> {
        self.config.as_ref().map_err(|error| {
            Error::new(error.kind(), error.message()).hint("correct the configuration of the hook")
        })
    }

    fn log(&self, line: impl AsRef<str>) {
        (self.log)(line.as_ref());
    }

    fn migrate_begin(&self, xml: &str) -> Result<Option<String>> {
        let config = self.config()?;
        let (domain, uuid) = read(xml)?;
        let told = self.told(&domain, &uuid);
        let annotation = self.annotation(xml, &told);
        let files = Files::new(config, &self.cancel)?;
        let disks: Vec<_> =
            domain.disks.iter().map(|disk| arriving(&files, disk, &annotation)).collect();
        let decision = begin::decide(&disks, config);
        decision.notes.iter().for_each(|note| self.log(note));
        if !decision.refusals.is_empty() {
            return Err(Error::refused(decision.refusals.join("; ")).hint(Remedy::Annotate));
        }
        if self.cancel.is_cancelled() {
            return Err(Error::environment(format!(
                "there was not enough time to examine the disks: {} seconds (deadline in {FILE})",
                config.deadline.as_secs()
            )));
        }
        let edited = match decision.edits.as_slice() {
            [] => None,
            edits => Some(destination_xml(xml, edits)?),
        };
        self.make(&decision, &uuid, told)?;
        Ok(edited)
    }

    /// What the source says, if it may be asked. That it does not answer decides nothing by itself.
    fn told(&self, domain: &XmlDomain, uuid: &str) -> Annotation {
        let Some(ask) = self.ask else { return Annotation::default() };
        let disks = domain.disks.iter().filter(|disk| not_ours(disk).is_none());
        let targets: Vec<_> = disks.map(|disk| disk.target.clone()).collect();
        ask(uuid, &targets).unwrap_or_else(|error| {
            self.log(format!("the source could not be asked: {}", error.message()));
            Annotation::default()
        })
    }

    /// What is known of the disks: the guest's metadata, unless the source said something else just now.
    fn annotation(&self, xml: &str, told: &Annotation) -> Annotation {
        let written = Annotation::in_domain(xml).unwrap_or_else(|error| {
            self.log(format!("{}: it is ignored", error.message()));
            None
        });
        let written = written.unwrap_or_default();
        let (disks, outdated) = written.corrected_by(told);
        for target in outdated {
            self.log(format!(
                "disk '{target}': the metadata is outdated, the source says otherwise"
            ));
        }
        disks
    }

    /// Creates the targets, and remembers each before the next.
    fn make(&self, decision: &Decision, uuid: &str, told: Annotation) -> Result<()> {
        let earlier = Record::read(&self.paths.state, uuid).unwrap_or_else(|error| {
            self.log(format!("{}: it is ignored", error.message()));
            None
        });
        let mut record = Record::new();
        // What an earlier attempt created and nothing removed is still the hook's own.
        let kept = earlier.into_iter().filter(|earlier| !earlier.started || earlier.failed);
        record.made.extend(kept.flat_map(|earlier| earlier.made).filter(is_there));
        record.told = told;
        let before = record.made.len();
        for target in &decision.targets {
            let made = self.create(target).and_then(|made| {
                record.made.push(made);
                record.write(&self.paths.state, uuid)
            });
            if let Err(error) = made {
                for made in record.made.drain(before..) {
                    self.remove(&made);
                }
                let _ = Record::remove(&self.paths.state, uuid);
                return Err(error);
            }
        }
        if record.made.is_empty() && record.told.disks.is_empty() {
            return Record::remove(&self.paths.state, uuid);
        }
        record.write(&self.paths.state, uuid)
    }

    /// Creates one target and proves it, as `prepare` does.
    fn create(&self, target: &NewTarget) -> Result<Made> {
        self.cancel.check()?;
        let (image, base) = (&target.image, target.base.as_ref());
        let (store, inner) = below_root(&target.root, &image.path)?;
        let content = image::make(image, base)?;
        let identity = store.put(&inner, &content, Mode::Private, &Silent, &self.cancel)?;
        let made = Made { root: target.root.clone(), path: image.path.clone(), identity };
        let proven = store
            .open(&inner, &identity)
            .and_then(|file| image::prove(&fd_path(&file), image, base))
            .and_then(|()| match is_there(&made) {
                true => Ok(()),
                false => Err(Error::refused(format!(
                    "'{}' leads out of '{}'",
                    image.path.display(),
                    target.root.display()
                ))),
            });
        if let Err(error) = proven {
            self.remove(&made);
            return Err(error);
        }
        Ok(made)
    }

    fn started(&self, guest: &str, xml: &str) -> Result<()> {
        let status = self.status(guest);
        if let Status::Unknown(why) = &status {
            self.log(format!(
                "libvirt's status XML is not understood, so nothing is refused: {why}"
            ));
        }
        let Status::Arriving { copying, .. } = status else {
            // A guest that is started here, or that may be, must not fail for want of a record.
            if let Err(error) = read(xml).and_then(|(_, uuid)| self.mark_started(&uuid)) {
                self.log(error.message());
            }
            return Ok(());
        };
        let (domain, uuid) = read(xml)?;
        let told = self.mark_started(&uuid)?;
        if copying != Copying::Incremental {
            self.log(format!("arriving, {copying}: nothing to refuse"));
            return Ok(());
        }
        let config = self.config()?;
        let annotation = self.annotation(xml, &told);
        let files = Files::new(config, &self.cancel)?;
        let targets: Vec<_> = domain
            .disks
            .iter()
            .map(|disk| {
                let known = annotation.disk(&disk.target).cloned();
                let image = match path_of(disk).filter(|_| not_ours(disk).is_none()) {
                    Some(path) => files.target(disk, path, known.as_ref()),
                    None => Err(Error::usage("it is not a file")),
                };
                let image = image.map_err(|error| error.message().to_owned());
                Target { disk: disk.clone(), known, image }
            })
            .collect();
        let judgement = gate::judge(&targets, config.unproven_base);
        judgement.notes.iter().for_each(|note| self.log(note));
        let refused = || Error::refused(judgement.refusals.join("; "));
        match judgement.remedy.clone() {
            None => Ok(()),
            Some(remedy) => Err(refused().hint(remedy)),
        }
    }

    /// Remembers that QEMU was started, and returns what the source said before.
    fn mark_started(&self, uuid: &str) -> Result<Annotation> {
        let Some(mut record) = Record::read(&self.paths.state, uuid)? else {
            return Ok(Annotation::default());
        };
        record.started = true;
        record.write(&self.paths.state, uuid)?;
        Ok(record.told)
    }

    /// QEMU has ended: whether the guest was still arriving is known only now.
    fn stopped(&self, guest: &str, xml: &str) -> Result<()> {
        let (_, uuid) = read(xml)?;
        let Some(mut record) = Record::read(&self.paths.state, &uuid)? else { return Ok(()) };
        record.failed = matches!(self.status(guest), Status::Arriving { ran: false, .. });
        record.write(&self.paths.state, &uuid)
    }

    fn release(&self, reason: &str, xml: &str) -> Result<()> {
        let (_, uuid) = read(xml)?;
        let Some(mut record) = Record::read(&self.paths.state, &uuid)? else { return Ok(()) };
        // Before 10.5 libvirt gives no reason.
        let unstarted = !record.started && matches!(reason, "failed" | "-" | "");
        if !record.failed && !unstarted {
            if !record.made.is_empty() {
                self.log("the guest has run here: its disks stay");
            }
            return Record::remove(&self.paths.state, &uuid);
        }
        record.made.retain(|made| !self.remove(made));
        match record.made.is_empty() {
            true => Record::remove(&self.paths.state, &uuid),
            false => record.write(&self.paths.state, &uuid),
        }
    }

    /// Removes a file that the hook created, if it is still that file; whether it is gone, or another one.
    fn remove(&self, made: &Made) -> bool {
        let shown = made.path.display();
        let removed = below_root(&made.root, &made.path)
            .and_then(|(store, inner)| store.remove(&inner, &made.identity));
        match removed {
            Ok(true) => self.log(format!("'{shown}' is removed")),
            Ok(false) => {}
            Err(error) => {
                self.log(format!("'{shown}' is not removed: {}", error.message()));
                return is_there(made).then_some(()).is_none();
            }
        }
        true
    }

    fn status(&self, guest: &str) -> Status {
        let plain = !guest.is_empty() && !guest.contains('/') && !guest.starts_with('.');
        if !plain {
            return Status::Unknown(format!("'{guest}' is no name of a file"));
        }
        let path = self.paths.status.join(format!("{guest}.xml"));
        match text_of(&path, LONGEST_XML) {
            Ok(xml) => status::read(&xml, guest),
            Err(error) => Status::Unknown(error.message().to_owned()),
        }
    }
}

impl Annotation {
    /// What is known of the disks once the source was asked, and the disks about which it says otherwise.
    fn corrected_by(&self, told: &Self) -> (Self, Vec<String>) {
        let mut known = self.clone();
        let mut outdated = Vec::new();
        for fresh in &told.disks {
            let written = known.disks.iter_mut().find(|disk| disk.target == fresh.target);
            let Some(written) = written else {
                known.disks.push(fresh.clone());
                continue;
            };
            let agree = match (&written.below, &fresh.below) {
                (Below::Nothing, Below::Nothing) => true,
                (Below::Nothing, _) | (_, Below::Nothing) => false,
                _ => true,
            };
            if !agree || written.virtual_size != fresh.virtual_size {
                outdated.push(fresh.target.clone());
                *written = fresh.clone();
            }
        }
        (known, outdated)
    }
}

fn arriving(files: &Files<'_>, disk: &crate::domain::XmlDisk, annotation: &Annotation) -> Arriving {
    let known = annotation.disk(&disk.target).cloned();
    let place = match path_of(disk).filter(|_| not_ours(disk).is_none()) {
        Some(path) => files.place(disk, path),
        None => Place::Unreadable("it is not a file".to_owned()),
    };
    let bases = match place {
        Place::Free => files.bases(disk, known.as_ref()),
        _ => Vec::new(),
    };
    Arriving { disk: disk.clone(), known, place, bases }
}

/// A domain and its UUID.
fn read(xml: &str) -> Result<(XmlDomain, String)> {
    let domain = parse(xml)?;
    let uuid = domain.uuid.clone().ok_or_else(|| Error::usage("the domain's XML has no UUID"))?;
    Ok((domain, uuid))
}

/// Whether a file that was created is still at its path.
fn is_there(made: &Made) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(&made.path).is_ok_and(|now| {
        made.identity.device == Some(now.dev()) && made.identity.inode == Some(now.ino())
    })
}

/// The text of a file of at most `limit` bytes.
pub(super) fn text_of(path: &Path, limit: u64) -> Result<String> {
    let wrong = |error: std::io::Error| Error::io(format!("'{}'", path.display()), error);
    let file = File::open(path).map_err(wrong)?;
    let mut text = String::new();
    let read = file.take(limit.saturating_add(1)).read_to_string(&mut text).map_err(wrong)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > limit {
        return Err(Error::new(ErrorKind::Limit, format!("'{}' is too long", path.display())));
    }
    Ok(text)
}
