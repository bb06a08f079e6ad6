//! Random worlds: a guest, what is at the destination, what the operator wants, and what goes wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use migrate::driver::model::*;
use migrate::plan::{PathMap, Policy, Style};
use proptest::prelude::*;
use proptest::sample::select;
use qcow::chain::Format;

/// Clusters of every active layer.
const CLUSTERS: usize = 6;

type Held = Vec<Option<u8>>;

/// A disk and what the destination has that may be mistaken for a part of it.
#[derive(Debug, Clone)]
struct Disk {
    /// The active layer and those below; the last may be raw.
    layers: Vec<Held>,
    raw: bool,
    snapshot: bool,
    dirty_base: bool,
    readonly: bool,
    /// It is on storage that both hosts have.
    shared: bool,
    gone: Gone,
    base: BaseThere,
    target: TargetThere,
}

/// What happened to the uppermost lower layer while the guest ran.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Gone {
    No,
    Deleted,
    /// Another file has its name now.
    Replaced,
    /// The header of the active layer names another file since.
    Rebased,
}

/// What the destination has where the base would be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum BaseThere {
    Nothing,
    /// The lower layers as one image.
    Flat,
    /// The lower layers, one by one.
    Chain,
    /// The same but for one cluster.
    Changed(usize),
    /// The same, but one cluster shorter, or longer.
    Shorter,
    Longer,
    /// Only the lowest of the lower layers.
    Lowest,
    /// The right one, and another guest writes to it.
    InUse,
}

/// What the destination has where the disk would be.
#[derive(Debug, Clone, PartialEq)]
enum TargetThere {
    Nothing,
    /// A left-over of this length, perhaps on the base that is there.
    Stale {
        held: Held,
        backed: bool,
    },
    /// Something that another guest uses.
    InUse,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Tamper {
    No,
    BaseThereChanges,
    BaseThereGoes,
    TargetAppears,
    SourceBaseChanges,
    SourceBaseGoes,
    Stops,
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    disks: Vec<Disk>,
    /// The second disk stands on the first one's lower layers.
    one_template: bool,
    /// The second disk's lower layers have the names of the first one's, in another directory.
    same_names: bool,
    /// Bases arrive damaged.
    pub(crate) damage: bool,
    running: bool,
    tamper: Tamper,
    before: Vec<(usize, usize, u8)>,
    pub(crate) policy: Policy,
    pub(crate) scenario: Scenario,
}

fn held(length: impl Strategy<Value = usize>) -> impl Strategy<Value = Held> {
    let cluster = prop_oneof![3 => Just(None), 1 => (0..4u8).prop_map(Some)];
    length.prop_flat_map(move |length| prop::collection::vec(cluster.clone(), length))
}

fn disk() -> impl Strategy<Value = Disk> {
    let lower = prop::collection::vec(held(CLUSTERS - 2..=CLUSTERS + 1), 0..=3);
    let gone = prop_oneof![
        6 => Just(Gone::No),
        2 => Just(Gone::Deleted),
        1 => Just(Gone::Replaced),
        1 => Just(Gone::Rebased),
    ];
    let base = prop_oneof![
        3 => Just(BaseThere::Nothing),
        4 => Just(BaseThere::Flat),
        2 => Just(BaseThere::Chain),
        2 => (0..CLUSTERS - 2).prop_map(BaseThere::Changed),
        1 => Just(BaseThere::Shorter),
        1 => Just(BaseThere::Longer),
        1 => Just(BaseThere::Lowest),
        1 => Just(BaseThere::InUse),
    ];
    let target = prop_oneof![
        8 => Just(TargetThere::Nothing),
        2 => (held(Just(CLUSTERS)), any::<bool>())
            .prop_map(|(held, backed)| TargetThere::Stale { held, backed }),
        1 => held(Just(CLUSTERS + 1)).prop_map(|held| TargetThere::Stale { held, backed: false }),
        1 => Just(TargetThere::InUse),
    ];
    let rarely = || prop::bool::weighted(0.06);
    (
        held(Just(CLUSTERS)),
        lower,
        any::<bool>(),
        [rarely(), rarely(), rarely(), rarely()],
        gone,
        base,
        target,
    )
        .prop_map(
            |(top, lower, raw, [snapshot, dirty_base, readonly, shared], gone, base, target)| {
                let layers = std::iter::once(top).chain(lower).collect();
                Disk { layers, raw, snapshot, dirty_base, readonly, shared, gone, base, target }
            },
        )
}

fn policy() -> impl Strategy<Value = Policy> {
    let style = select(vec![Style::Auto, Style::Thin, Style::Thin, Style::Full]);
    let map = prop::bool::weighted(0.8);
    (style, map, any::<bool>(), any::<bool>()).prop_map(|(style, map, adopt, drop)| {
        Policy::default().style(style).adopt(adopt).drop_internal_snapshots(drop).path_map(if map {
            ["/old", "/more"].map(|old| PathMap { old: old.into(), new: "/new".into() }).into()
        } else {
            vec![]
        })
    })
}

fn writes() -> impl Strategy<Value = Vec<(usize, usize, u8)>> {
    prop::collection::vec((0..2usize, 0..CLUSTERS, 0..9u8), 0..4)
}

pub(crate) fn some_world() -> impl Strategy<Value = World> {
    let tamper = prop_oneof![
        8 => Just(Tamper::No),
        4 => select(vec![
            Tamper::BaseThereChanges,
            Tamper::BaseThereGoes,
            Tamper::TargetAppears,
            Tamper::SourceBaseChanges,
            Tamper::SourceBaseGoes,
            Tamper::Stops,
        ]),
    ];
    let fault = prop_oneof![
        5 => Just(None),
        1 => select(vec![Fault::Start, Fault::HalfWay, Fault::Memory, Fault::Answer])
            .prop_map(Some),
    ];
    let scenario = (writes(), fault).prop_map(|(writes, fault)| Scenario { writes, fault });
    let disks = prop::collection::vec(disk(), 1..=2);
    let running = prop::bool::weighted(0.8);
    let names = (any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.05));
    (disks, names, running, tamper, writes(), policy(), scenario).prop_map(
        |(
            mut disks,
            (one_template, same_names, damage),
            running,
            tamper,
            before,
            policy,
            scenario,
        )| {
            if same_names {
                // Both bases have to be brought for their names to meet.
                for disk in &mut disks {
                    (disk.base, disk.gone) = (BaseThere::Nothing, Gone::No);
                }
            }
            let one_template = one_template && !same_names;
            World {
                disks,
                one_template,
                same_names,
                damage,
                running,
                tamper,
                before,
                policy,
                scenario,
            }
        },
    )
}

const NAMES: [&str; 2] = ["vda", "vdb"];

impl World {
    fn directory(&self, index: usize) -> &'static str {
        if self.disks[index].shared { "/shared" } else { "/old" }
    }

    /// The disk that a layer of this disk was made for.
    fn owner(&self, index: usize, depth: usize) -> usize {
        let shares = self.one_template && depth > 0 && self.disks[0].layers.len() > 1;
        if shares { 0 } else { index }
    }

    /// The name of a layer on the source.
    fn path(&self, index: usize, depth: usize) -> PathBuf {
        let owner = self.owner(index, depth);
        let (directory, name) = (self.directory(owner), NAMES[owner]);
        if depth == 0 {
            Path::new(directory).join(name)
        } else if self.same_names && owner == 1 && !self.disks[1].shared {
            Path::new("/more").join(format!("{}-{depth}", NAMES[0]))
        } else {
            Path::new(directory).join(format!("{name}-{depth}"))
        }
    }

    /// The lower layers of a disk, as they are on the source.
    fn lower(&self, index: usize) -> &[Held] {
        &self.disks[self.owner(index, 1)].layers[1..]
    }

    fn format(&self, index: usize, depth: usize) -> Format {
        let lowest = depth == self.lower(index).len();
        let raw = self.disks[self.owner(index, depth)].raw && lowest;
        if raw { Format::Raw } else { Format::Qcow2 }
    }

    /// The guest, and everything that both hosts have.
    pub(crate) fn model(&self) -> Model {
        let mut model = Model::new(&[
            (Side::Source, "/old", 1),
            (Side::Destination, "/new", 2),
            (Side::Destination, "/old", 2),
            (Side::Source, "/more", 4),
            (Side::Destination, "/more", 5),
            (Side::Source, "/shared", 3),
            (Side::Destination, "/shared", 3),
        ]);
        for (index, facts) in self.disks.iter().enumerate() {
            self.put_chain(&mut model, Side::Source, index, |path| path.to_path_buf());
            let mut disk =
                GuestDisk::new(NAMES[index], &self.path(index, 0), self.format(index, 0));
            disk.readonly = facts.readonly;
            disk.content = model.read(&disk).unwrap();
            model.disks.push(disk);
        }
        if self.running {
            model.start().unwrap();
        }
        for index in 0..self.disks.len() {
            self.put_there(&mut model, index);
        }
        for index in 0..self.disks.len() {
            self.lose(&mut model, index);
        }
        model
    }

    fn put_chain(
        &self,
        model: &mut Model,
        side: Side,
        index: usize,
        rename: impl Fn(&Path) -> PathBuf,
    ) {
        let disk = &self.disks[index];
        let lower = self.lower(index);
        let first = usize::from(side == Side::Destination);
        for depth in (first..=lower.len()).rev() {
            let clusters = if depth == 0 { &disk.layers[0] } else { &lower[depth - 1] };
            let below = (depth < lower.len()).then(|| {
                layer(&rename(&self.path(index, depth + 1)), self.format(index, depth + 1))
            });
            let mut image = Image::new(self.format(index, depth), clusters.clone(), below);
            if depth == 0 && disk.snapshot && image.format == Format::Qcow2 {
                image.snapshots.push("old".into());
            }
            image.dirty = depth == 1 && disk.dirty_base && image.format == Format::Qcow2;
            // The other disk may have brought it already.
            let _ = model.put(side, &rename(&self.path(index, depth)), image);
        }
    }

    fn put_there(&self, model: &mut Model, index: usize) {
        let disk = &self.disks[index];
        let there = |path: &Path| self.policy.mapped(path);
        let base = there(&self.path(index, 1));
        let lower = self.lower(index);
        if let (Some(first), false) = (lower.first(), disk.shared) {
            let length = first.len();
            let path = self.path(index, 1);
            let format = self.format(index, 1);
            let Ok(mut flat) = model.show(Side::Source, &path, format) else { return };
            let mut in_use = false;
            match disk.base {
                BaseThere::Nothing => flat.clear(),
                BaseThere::Flat => {}
                BaseThere::Chain => {
                    self.put_chain(model, Side::Destination, index, there);
                    flat.clear();
                }
                BaseThere::Changed(cluster) => flat[cluster] ^= 8,
                BaseThere::Shorter => flat.truncate(length - 1),
                BaseThere::Longer => flat.push(7),
                BaseThere::Lowest => {
                    let lowest = lower.last().unwrap();
                    flat = lowest.iter().map(|held| held.unwrap_or(0)).collect();
                }
                BaseThere::InUse => in_use = true,
            }
            if !flat.is_empty() {
                let held = flat.into_iter().map(Some).collect();
                let image = Image { in_use, ..Image::new(Format::Qcow2, held, None) };
                let _ = model.put(Side::Destination, &base, image);
            }
        }
        if disk.shared {
            return;
        }
        let target = there(&self.path(index, 0));
        let stale = match &disk.target {
            TargetThere::Nothing => return,
            TargetThere::Stale { held, backed } => {
                let found = model.look(Side::Destination, &base).map(|(_, image)| image.format);
                let below = found.filter(|_| *backed).map(|format| layer(&base, format));
                Image::new(self.format(index, 0), held.clone(), below)
            }
            TargetThere::InUse => {
                let image = Image::empty(self.format(index, 0), CLUSTERS, None);
                Image { in_use: true, ..image }
            }
        };
        let _ = model.put(Side::Destination, &target, stale);
    }

    fn lose(&self, model: &mut Model, index: usize) {
        if self.lower(index).is_empty() || self.disks[index].shared {
            return;
        }
        let path = self.path(index, 1);
        let wrong = Image::new(self.format(index, 1), vec![Some(77); CLUSTERS], None);
        match self.disks[index].gone {
            Gone::No => {}
            // Of a guest that is shut off nobody could tell any more.
            Gone::Replaced | Gone::Rebased if !self.running => {}
            Gone::Deleted => model.unlink(Side::Source, &path),
            Gone::Replaced => {
                model.unlink(Side::Source, &path);
                let _ = model.put(Side::Source, &path, wrong);
            }
            Gone::Rebased => {
                let other = Path::new("/old").join(format!("{}-other", NAMES[index]));
                let _ = model.put(Side::Source, &other, wrong);
                let named = layer(&other, self.format(index, 1));
                model.change(Side::Source, &self.path(index, 0), |top| top.backing = Some(named));
            }
        }
    }

    /// The guest goes on between the plan and its execution.
    pub(crate) fn write_before(&self, model: &mut Model) {
        for (disk, cluster, value) in &self.before {
            model.write(*disk, *cluster, *value);
        }
    }

    pub(crate) fn tampered(&self) -> bool {
        self.tamper != Tamper::No || self.damage
    }

    /// Somebody does something between the plan and its execution.
    pub(crate) fn tamper(&self, model: &mut Model) {
        let base = self.path(0, 1);
        let there = |path: &Path| self.policy.mapped(path);
        let spoil = |image: &mut Image| {
            if let Some(cluster) = image.clusters.first_mut() {
                *cluster = Some(55);
            }
        };
        match self.tamper {
            Tamper::No => {}
            Tamper::BaseThereChanges => model.change(Side::Destination, &there(&base), spoil),
            Tamper::BaseThereGoes => model.unlink(Side::Destination, &there(&base)),
            Tamper::TargetAppears => {
                let image = Image::new(Format::Qcow2, vec![Some(44); CLUSTERS], None);
                let _ = model.put(Side::Destination, &there(&self.path(0, 0)), image);
            }
            Tamper::SourceBaseChanges => model.change(Side::Source, &base, spoil),
            Tamper::SourceBaseGoes => model.unlink(Side::Source, &base),
            Tamper::Stops => model.stop(),
        }
    }

    /// The guest's own active layers, among the files of `before`.
    pub(crate) fn tops(&self, before: &BTreeMap<Inode, Image>) -> Vec<Inode> {
        let model = self.model();
        (0..self.disks.len())
            .filter_map(|index| model.look(Side::Source, &self.path(index, 0)))
            .map(|(inode, _)| inode)
            .filter(|inode| before.contains_key(inode))
            .collect()
    }
}
