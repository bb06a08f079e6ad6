//! From facts to a plan. Pure: the rules of what may be saved live here only.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use qcow::chain::Format;

use super::facts::{
    Content, DirectoryFacts, Facts, Gone, Need, OpenImage, ProcessFacts, Reference,
};
use super::look::object;
use super::refer::{all_meant, is_lost};
use super::value::{Action, Code, Holder, Item, Lost, Plan, Restore};
use crate::Remedy;
use crate::setters::setters;

/// What the operator wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Restore what is saved under its own name.
    pub restore: bool,
}

setters!(Options { restore: bool } into {});

/// Says of everything that is gone whether it can be saved.
///
/// ```
/// use migrate::rescue::{Facts, Options, plan};
/// let plan = plan(&Facts::default(), &Options::default());
/// assert!(plan.items.is_empty() && plan.is_whole());
/// ```
pub fn plan(facts: &Facts, options: &Options) -> Plan {
    let mut found: BTreeMap<(u64, u64), Found<'_>> = BTreeMap::new();
    let mut lost: Vec<Lost> = Vec::new();
    for process in &facts.processes {
        for image in process.images.iter().filter(|image| image.gone != Gone::No) {
            let Some(object) = object(image) else { continue };
            found.entry(object).or_default().seen.push((process, image));
        }
        for (reference, meant) in all_meant(process) {
            if meant.is_empty() && is_lost(process, reference) {
                lost.push(Lost {
                    name: reference.name.clone(),
                    needed_by: reference.by.clone(),
                    holder: holder(process),
                });
            }
            for image in &meant {
                let entry = object(image).map(|object| found.entry(object).or_default());
                if let Some(entry) = entry {
                    entry.references.push((reference, meant.len()));
                }
            }
        }
    }
    lost.sort_by(|a, b| (&a.name, &a.needed_by).cmp(&(&b.name, &b.needed_by)));
    lost.dedup_by(|a, b| (&a.name, &a.needed_by) == (&b.name, &b.needed_by));
    let mut items: Vec<Item> =
        found.values().filter_map(|found| found.item(facts, options)).collect();
    items.sort_by(|a, b| (&a.name, a.device, a.inode).cmp(&(&b.name, b.device, b.inode)));
    one_for_each_name(&mut items);
    enough_space(facts, &mut items);
    Plan { items, lost, unseen: facts.unseen.clone() }
}

fn holder(process: &ProcessFacts) -> Holder {
    Holder { process: process.process, program: process.program.clone() }
}

/// One file that is gone, and all that is known of it.
#[derive(Default)]
struct Found<'a> {
    /// Who has it open; never empty.
    seen: Vec<(&'a ProcessFacts, &'a OpenImage)>,
    /// Who names it, and how many files that may mean.
    references: Vec<(&'a Reference, usize)>,
}

type Refusal = (Code, String, Remedy);

impl Found<'_> {
    /// `None` for what is no image.
    fn item(&self, facts: &Facts, options: &Options) -> Option<Item> {
        let (_, image) = self.seen.first()?;
        let (device, inode) = object(image)?;
        let is_image = image.content != Content::Raw || image.locked || !self.references.is_empty();
        if !is_image || (image.gone == Gone::LeftOver && self.references.is_empty()) {
            return None;
        }
        let name = self.name(image);
        let mut needed_by: Vec<_> =
            self.references.iter().map(|(reference, _)| reference.by.clone()).collect();
        needed_by.sort();
        needed_by.dedup();
        let back = image.place.as_ref().is_ok_and(|place| {
            place.taken.as_ref().is_some_and(|taken| taken.equal) && !place.own_view
        });
        let action = match self.refusal(image).map_or_else(|| target(facts, image), Err) {
            Ok(_) if back => Action::Nothing { path: name.clone() },
            Ok(directory) => Action::Save {
                copy: directory.path.join(copy_name(&name, image)),
                restore: if options.restore {
                    self.restore(image, &name)
                } else {
                    Restore::NotAsked
                },
            },
            Err((code, why, way_out)) => Action::Refuse { code, why, way_out },
        };
        let mut holders: Vec<_> = self.seen.iter().map(|(process, _)| holder(process)).collect();
        holders.dedup();
        Some(Item {
            device,
            inode,
            size: image.identity.size,
            allocated: image.allocated,
            format: self.format(image),
            virtual_size: match image.content {
                Content::Qcow2 { virtual_size } => Some(virtual_size),
                Content::Broken { .. } | Content::Raw => None,
            },
            holders,
            needed_by,
            notes: self.notes(image),
            action,
            name,
        })
    }

    /// The name that it had.
    fn name(&self, image: &OpenImage) -> PathBuf {
        let told = self.references.iter().find(|(_, meant)| *meant == 1);
        match (image.gone, told) {
            (Gone::LeftOver, Some((reference, _))) => reference.name.clone(),
            _ => image.name.clone(),
        }
    }

    fn format(&self, image: &OpenImage) -> Option<Format> {
        let recorded = self.references.iter().find_map(|(reference, _)| reference.format);
        let by_magic = (image.content != Content::Raw).then_some(Format::Qcow2);
        recorded.or(by_magic)
    }

    /// Why it cannot be saved, wherever to.
    fn refusal(&self, image: &OpenImage) -> Option<Refusal> {
        let written: Vec<_> = self.seen.iter().filter(|(_, image)| image.written).collect();
        if let Some((process, _)) = written.first() {
            let who = format!("process {} ({})", process.process, process.program);
            if self.references.is_empty() {
                return Some((
                    Code::ActiveLayer,
                    format!("it is the disk that {who} writes to: a copy would not be consistent"),
                    "copy or flatten the disk through QEMU while the guest runs (block copy), or \
                     migrate the guest; do not stop it before"
                        .into(),
                ));
            }
            return Some(written_to(&who));
        }
        if self.references.is_empty() {
            return Some((
                Code::NoBase,
                "no open image has it as its backing file, so it is the active layer of a disk"
                    .into(),
                "copy the disk through QEMU while the process runs".into(),
            ));
        }
        match &image.writers {
            Some(writers) if writers.is_empty() => {}
            Some(writers) => return Some(written_to(&writers.join(", "))),
            None => {
                return Some((
                    Code::WritersUnknown,
                    "it could not be determined whether a process writes to it".into(),
                    "run it as root".into(),
                ));
            }
        }
        let other = |what: &str| {
            Some((
                Code::OtherFormat,
                format!("the image on it says that it is qcow2, and it {what}"),
                "it is not what the guest was made on; look for another copy".into(),
            ))
        };
        match (self.format(image), &image.content) {
            (Some(Format::Qcow2), Content::Raw) => other("is not"),
            (Some(Format::Qcow2), Content::Broken { why }) => {
                other(&format!("has a header that cannot be read: {why}"))
            }
            _ => None,
        }
    }

    fn restore(&self, image: &OpenImage, name: &Path) -> Restore {
        let no = |why: &str| Restore::No { why: why.into() };
        let place = match &image.place {
            Ok(place) => place,
            Err(why) => return no(why),
        };
        if self.references.iter().all(|(_, meant)| *meant != 1) {
            return no("several deleted files may have had this name");
        }
        if name.parent() != image.name.parent() {
            return no("it is not known in which directory it was");
        }
        if !place.same_mount {
            return no("the directory of this name is not the one where the file was");
        }
        if let Err(why) = &place.directory.available {
            return no(why);
        }
        match &place.taken {
            Some(taken) => {
                no(&format!("its name is taken by something else, inode {}", taken.inode))
            }
            None => Restore::Planned { path: name.to_path_buf() },
        }
    }

    fn notes(&self, image: &OpenImage) -> Vec<String> {
        let mut notes = Vec::new();
        if image.gone == Gone::LeftOver {
            notes.push(format!(
                "NFS keeps it as '{}' until no process has it open",
                image.name.display()
            ));
        } else if image.identity.links.is_some_and(|links| links > 0) {
            notes.push("the file has another name still, in a place that is not known".into());
        }
        if image.place.as_ref().is_ok_and(|place| place.own_view) {
            notes.push("names are as in the mount namespace of the process, which is not that of this program".into());
        }
        if self.is_larger(image) {
            notes.push("its disk is larger than that of the image on it".into());
        }
        if self.references.iter().any(|(reference, _)| reference.need == Need::Data) {
            notes.push("it is an external data file".into());
        }
        if self.references.iter().any(|(_, meant)| *meant > 1) {
            notes.push(
                "another file of this name was deleted as well; they cannot be told apart".into(),
            );
        }
        notes
    }
}

impl Found<'_> {
    /// Whether it shows a larger disk than an image above it, which is rarely intended.
    fn is_larger(&self, image: &OpenImage) -> bool {
        let size = |image: &OpenImage| match image.content {
            Content::Qcow2 { virtual_size } => Some(virtual_size),
            Content::Broken { .. } | Content::Raw => None,
        };
        let above = |(reference, _): &(&Reference, usize)| {
            let images = self.seen.iter().flat_map(|(process, _)| &process.images);
            let mut above = images.filter(|image| object(image) == reference.by_object);
            above.next().and_then(size)
        };
        let own = size(image);
        self.references.iter().filter_map(above).any(|above| own.is_some_and(|own| own > above))
    }
}

fn written_to(who: &str) -> Refusal {
    (
        Code::Written,
        format!("it is open for writing: {who}"),
        "wait for the end of a block job that may run, then try again".into(),
    )
}

/// The directory that the copy goes to.
fn target<'a>(facts: &'a Facts, image: &'a OpenImage) -> Result<&'a DirectoryFacts, Refusal> {
    let directory = match (&facts.to, &image.place) {
        (Some(to), _) => to,
        (None, Ok(place)) if place.same_mount => &place.directory,
        (None, Ok(_)) => {
            return Err((
                Code::NoDirectory,
                "the directory of this name is not the one where the file was".into(),
                Remedy::StateDirectory,
            ));
        }
        (None, Err(why)) => {
            return Err((Code::NoDirectory, why.clone(), Remedy::StateDirectory));
        }
    };
    match &directory.available {
        Ok(_) => Ok(directory),
        Err(why) => Err((Code::NotWritable, why.clone(), Remedy::OtherCopies)),
    }
}

/// Longest name of a file, on all file systems that matter.
const LONGEST_NAME: usize = 255;

/// The name of the copy: the same for the same file at every try.
fn copy_name(name: &Path, image: &OpenImage) -> OsString {
    let mut hasher = blake3::Hasher::new();
    let identity = &image.identity;
    for number in [identity.device, identity.inode, Some(identity.size)] {
        hasher.update(&number.unwrap_or_default().to_be_bytes());
    }
    hasher.update(&identity.mtime_ns.to_be_bytes()).update(name.as_os_str().as_bytes());
    let id: String = hasher.finalize().to_hex().chars().take(8).collect();
    let suffix = format!(".rescued-{id}");
    let name = name.file_name().map_or(&[][..], OsStr::as_bytes);
    let most = LONGEST_NAME.saturating_sub(suffix.len());
    let mut bytes = name.get(..most).unwrap_or(name).to_vec();
    bytes.extend_from_slice(suffix.as_bytes());
    OsString::from_vec(bytes)
}

/// Where two files had one name, none gets it back.
fn one_for_each_name(items: &mut [Item]) {
    let mut times: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for item in items.iter() {
        let times = times.entry(item.name.clone()).or_default();
        *times = times.saturating_add(1);
    }
    for item in items {
        if let Action::Save { restore: restore @ Restore::Planned { .. }, .. } = &mut item.action
            && times.get(&item.name).is_some_and(|times| *times > 1)
        {
            let why = "several deleted files had this name".into();
            *restore = Restore::No { why };
        }
    }
}

/// Refuses what does not fit any more. Where a file system can share what is copied within it, nothing is
/// known before it is tried.
fn enough_space(facts: &Facts, items: &mut [Item]) {
    let Some((to, free)) =
        facts.to.as_ref().and_then(|to| to.available.as_ref().ok().map(|free| (to, *free)))
    else {
        return;
    };
    let mut free = free;
    for item in items.iter_mut().filter(|item| item.device != to.device) {
        if !matches!(item.action, Action::Save { .. }) {
            continue;
        }
        match free.checked_sub(item.allocated) {
            Some(rest) => free = rest,
            None => {
                item.action = Action::Refuse {
                    code: Code::NoSpace,
                    why: format!(
                        "it takes {} bytes, and '{}' has {free} free",
                        item.allocated,
                        to.path.display()
                    ),
                    way_out: Remedy::RoomForCopies,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::Place;
    use super::*;
    use crate::facts::Identity;

    fn open(name: &str, inode: u64, gone: Gone) -> OpenImage {
        OpenImage {
            identity: Identity {
                device: Some(1),
                inode: Some(inode),
                links: Some(0),
                ..Identity::default()
            },
            allocated: 4096,
            name: name.into(),
            gone,
            written: false,
            content: Content::Qcow2 { virtual_size: 1 << 20 },
            locked: true,
            writers: Some(Vec::new()),
            place: Ok(Place {
                directory: DirectoryFacts {
                    path: Path::new(name).parent().unwrap().into(),
                    device: 1,
                    inode: 1000,
                    available: Ok(1 << 30),
                },
                same_mount: true,
                taken: None,
                own_view: false,
            }),
        }
    }

    fn top(name: &str, inode: u64) -> OpenImage {
        OpenImage { written: true, ..open(name, inode, Gone::No) }
    }

    fn names(by: &OpenImage, name: &str) -> Reference {
        Reference {
            by: by.name.clone(),
            by_object: object(by),
            need: Need::Backing,
            name: name.into(),
            relative: false,
            format: Some(Format::Qcow2),
            exists: false,
        }
    }

    fn process(images: Vec<OpenImage>, references: Vec<Reference>) -> Facts {
        let program = "qemu".into();
        let process = ProcessFacts { process: 7, program, images, references };
        Facts { processes: vec![process], ..Facts::default() }
    }

    fn planned(facts: &Facts) -> Vec<Item> {
        plan(facts, &Options { restore: true }).items
    }

    fn code(item: &Item) -> Option<Code> {
        match item.action {
            Action::Refuse { code, .. } => Some(code),
            _ => None,
        }
    }

    fn back(item: &Item) -> Option<&Path> {
        match &item.action {
            Action::Save { restore: Restore::Planned { path }, .. } => Some(path),
            _ => None,
        }
    }

    #[test]
    fn a_name_alone_is_not_enough() {
        let (top, base) = (top("/v/top", 1), open("/v/base", 2, Gone::Deleted));
        // The file is called so, but nothing that is open names it.
        let items = planned(&process(vec![top.clone(), base.clone()], Vec::new()));
        assert_eq!(items.iter().map(code).collect::<Vec<_>>(), [Some(Code::NoBase)]);
        let reference = names(&top, "/v/base");
        let items = planned(&process(vec![top.clone(), base.clone()], vec![reference.clone()]));
        assert_eq!(back(&items[0]), Some(Path::new("/v/base")));
        // It is named, and is not what is named.
        let raw = OpenImage { content: Content::Raw, ..base };
        let items = planned(&process(vec![top, raw], vec![reference]));
        assert_eq!(code(&items[0]), Some(Code::OtherFormat));
    }

    #[test]
    fn of_two_files_of_one_name_none_is_put_back() {
        let top = top("/v/top", 1);
        let bases = [2, 3].map(|inode| open("/v/base", inode, Gone::Deleted));
        let images = [vec![top.clone()], bases.to_vec()].concat();
        let items = planned(&process(images, vec![names(&top, "/v/base")]));
        assert_eq!(items.len(), 2);
        for item in &items {
            assert!(matches!(item.action, Action::Save { .. }) && back(item).is_none());
        }
    }

    #[test]
    fn two_leftovers_that_may_be_either_are_not_put_back() {
        let tops = [top("/v/a", 1), top("/v/b", 2)];
        let left = [3, 4].map(|inode| open(&format!("/v/.nfs{inode:024x}"), inode, Gone::LeftOver));
        let references = vec![names(&tops[0], "/v/base-a"), names(&tops[1], "/v/base-b")];
        let items = planned(&process([&tops[..], &left[..]].concat(), references.clone()));
        assert_eq!(items.len(), 2);
        assert!(items.iter().all(|item| back(item).is_none() && code(item).is_none()));
        // One of them is of another format: then the other is what is named.
        let mut raw = left.clone();
        raw[1].content = Content::Raw;
        let items = planned(&process([&tops[..1], &raw[..]].concat(), references[..1].to_vec()));
        assert_eq!(items.iter().filter_map(back).collect::<Vec<_>>(), [Path::new("/v/base-a")]);
    }

    #[test]
    fn an_image_that_is_not_known_to_be_still_is_refused() {
        let top = top("/v/top", 1);
        let base = open("/v/base", 2, Gone::Deleted);
        let with = |change: fn(&mut OpenImage)| {
            let mut base = base.clone();
            change(&mut base);
            let facts = process(vec![top.clone(), base], vec![names(&top, "/v/base")]);
            code(&planned(&facts)[0])
        };
        assert_eq!(with(|_| {}), None);
        assert_eq!(with(|base| base.written = true), Some(Code::Written));
        assert_eq!(with(|base| base.writers = None), Some(Code::WritersUnknown));
        assert_eq!(with(|base| base.writers = Some(vec!["x".into()])), Some(Code::Written));
        assert_eq!(with(|base| base.place = Err("gone".into())), Some(Code::NoDirectory));
        assert_eq!(
            with(|base| base.place.as_mut().unwrap().same_mount = false),
            Some(Code::NoDirectory)
        );
        assert_eq!(
            with(|base| base.place.as_mut().unwrap().directory.available = Err("full".into())),
            Some(Code::NotWritable)
        );
    }

    #[test]
    fn a_base_that_nobody_has_is_told() {
        let top = top("/v/top", 1);
        let plan =
            plan(&process(vec![top.clone()], vec![names(&top, "/v/base")]), &Options::default());
        assert_eq!(plan.lost[0].name, Path::new("/v/base"));
        assert!(!plan.is_whole());
    }
}
