//! Targets for whole images.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use arbitrary::Unstructured;
use qcow::chain::{Chain, Format, Limits, OpenOptions};
use qcow::extent::Reader;
use qcow::format::{CompressionType, GuestOffset, Version};
use qcow::ops::check::{CheckOptions, CheckOutcome, RepairOptions, Scope};
use qcow::ops::flatten::FlattenOptions;
use qcow::ops::info::InfoOptions;
use qcow::ops::map::MapOptions;
use qcow::ops::{Qcow2Options, RawOptions, TargetOptions};
use qcow::{CancelToken, Silent};

use crate::forge::{self, DATA_NAME, Forged};
use crate::place::{Place, base, data as data_file};
use crate::reference::{self, Image, Layer, Refusal, Rules, Unit, u32_at, u64_at};

/// Disks larger than this are only read in places.
pub const MOST_BYTES: u64 = 8 << 20;
/// What the engine refuses on opening and the reference does not look at.
const NOT_JUDGED: [&str; 4] =
    ["snapshot table", "bitmap directory", "bitmap table", "bitmaps extension"];

/// Why an image may not be readable that is sound by itself.
pub const ELSEWHERE: [Refusal; 2] =
    [Refusal("its data file is not here"), Refusal("its backing file is not here")];

/// What an image may need beside itself.
#[derive(Debug)]
pub struct Beside {
    base: Vec<u8>,
    data: Vec<u8>,
}

impl Default for Beside {
    /// The files of every [`Place`].
    fn default() -> Self {
        Self { base: base(), data: data_file() }
    }
}

impl Beside {
    /// `top`, reading from its data file if it has one.
    fn layer<'a>(&'a self, top: Image<'a>) -> std::result::Result<Layer<'a>, Refusal> {
        let data = match &top.data_file {
            None => None,
            Some(name) if name == DATA_NAME.as_bytes() => Some(&self.data[..]),
            Some(_) => return Err(ELSEWHERE[0].clone()),
        };
        Ok(Layer::Qcow2(top, data))
    }
}

/// The layers that `image` and the files in its place make, read by the reference.
pub fn layers<'a>(
    image: &'a [u8],
    beside: &'a Beside,
) -> std::result::Result<Vec<Layer<'a>>, Refusal> {
    let top = Image::open(image)?;
    let below = match (&top.backing_name, &top.backing_format) {
        (None, _) => None,
        (Some(name), Some(format)) if name == b"base" && format == b"raw" => Some(&beside.base[..]),
        _ => return Err(ELSEWHERE[1].clone()),
    };
    let top = beside.layer(top)?;
    Ok(std::iter::once(top).chain(below.map(Layer::Raw)).collect())
}

fn open(path: &Path, snapshot: Option<&str>) -> qcow::Result<Chain> {
    let options =
        OpenOptions::default().format(Format::Qcow2).snapshot(snapshot.map(str::to_owned));
    Chain::open(path, &options)
}

/// Opens an image and its backing file and reads the disk in pieces: the same bytes as the reference's, or
/// an error where that has one. `info` and `map` end orderly too.
pub fn read(data: &[u8]) {
    let image = forge::image(data);
    let place = Place::with(&image.bytes);
    let beside = Beside::default();
    let judged = layers(&image.bytes, &beside);
    let info = qcow::ops::info::info(&place.top(), &InfoOptions::default());
    let chain = match (open(&place.top(), None), judged) {
        (Err(error), judged) => {
            let not_judged = NOT_JUDGED.iter().any(|s| error.place().structure == Some(s));
            assert!(judged.is_err() || not_judged, "refused without reason: {error}");
            return;
        }
        (Ok(_), Err(refusal)) => panic!("opened in spite of: {refusal}"),
        (Ok(chain), Ok(layers)) => {
            info.expect("what can be read can be described");
            compare(&chain, &layers);
            chain
        }
    };
    if !image.damaged {
        assert!(
            chain
                .reader()
                .read_at(&mut vec![0; 512.min(chain.virtual_size() as usize)], GuestOffset(0))
                .is_ok()
        );
    }
    walk_map(&chain);
    let top = Image::open(&image.bytes).expect("it was opened before");
    open_as_a_strangers(&place, &image, &top);
    // A table past the end of the file has up to 65536 snapshots, all of them of zeros.
    for snapshot in
        chain.layers()[0].image().map_or(&[][..], |image| image.snapshots()).iter().take(8)
    {
        let Ok(id) = std::str::from_utf8(&snapshot.id) else { continue };
        let Ok(chain) = open(&place.top(), Some(id)) else { continue };
        let found = chain.layers()[0].image().expect("an image").find_snapshot(id).expect("found");
        let l1 = (found.l1_table_offset.0, u64::from(found.l1_entries));
        let mut layers = layers(&image.bytes, &beside).expect("they were opened before");
        layers[0] = beside.layer(top.clone().with_l1(l1.0, l1.1)).expect("as before");
        compare(&chain, &layers);
        break;
    }
}

/// With the limits for images of strangers, one that is sound is opened; and in one that is opened no two guest
/// clusters are in one place, and none is past the end of the file.
fn open_as_a_strangers(place: &Place, image: &Forged, top: &Image<'_>) {
    let options = OpenOptions::default().format(Format::Qcow2).limits(Limits::untrusted());
    if let Err(error) = Chain::open(&place.top(), &options) {
        assert!(image.damaged, "a sound image is refused: {error}");
        return;
    }
    let Rules { data_file, .. } = top.rules;
    if data_file || top.size > MOST_BYTES {
        return;
    }
    let (cluster, unit) = (top.rules.cluster(), top.rules.unit());
    let mut owners = BTreeMap::new();
    for guest in (0..top.size.div_ceil(unit)).map(|number| number * unit) {
        if let Ok(Unit::Data(host)) = top.unit_at(guest) {
            let owner = *owners.entry(host).or_insert(guest / cluster);
            assert_eq!(owner, guest / cluster, "two guest clusters are at {host:#x}");
            assert!(host < image.bytes.len() as u64, "{host:#x} is past the end");
        }
    }
}

/// The map has no gaps, and ends with the disk unless something cannot be read.
fn walk_map(chain: &Chain) {
    // One entry may stand for petabytes, which are looked at table by table.
    if chain.virtual_size() > 1 << 32 {
        return;
    }
    let mut at = 0;
    for entry in qcow::ops::map::map(chain, &MapOptions::default()).take(10_000) {
        let Ok(entry) = entry else { return };
        assert_eq!(entry.start, at);
        at = entry.end();
        assert!(at > entry.start && at <= chain.virtual_size());
    }
}

/// Holds what the engine reads against the reference, unit by unit.
fn compare(chain: &Chain, layers: &[Layer<'_>]) {
    let size = chain.virtual_size();
    assert_eq!(size, layers[0].size());
    let Layer::Qcow2(top, _) = &layers[0] else { unreachable!("the top is an image") };
    let step = top.rules.unit();
    let mut reader = chain.reader();
    let mut all_readable = true;
    let offsets: Vec<u64> = if size <= MOST_BYTES {
        (0..size.div_ceil(step)).map(|number| number * step).collect()
    } else {
        // The beginning, the end, and where each L2 table's range begins.
        let ends = (0..64).chain(size.div_ceil(step).saturating_sub(64)..size.div_ceil(step));
        let coverage = top.rules.l2_coverage();
        let tables = (0..size.div_ceil(coverage).min(64)).map(|number| number * coverage);
        ends.map(|number| number * step).chain(tables).filter(|&at| at < size).collect()
    };
    for at in offsets {
        let len = step.min(size - at);
        all_readable &= compare_range(&mut reader, layers, at, len);
    }
    if size > MOST_BYTES {
        return;
    }
    let mut whole = vec![0; size as usize];
    let read = reader.read_at(&mut whole, GuestOffset(0));
    assert_eq!(read.is_ok(), all_readable, "{read:?}");
    if all_readable {
        assert!(reference::read(layers, 0, size).expect("readable") == whole);
    }
    // Ranges that begin and end anywhere.
    for (at, len) in [(1, 511), (step - 1, 2), (step / 2 + 3, 2 * step), (size / 3, size / 2)] {
        if at + len <= size {
            compare_range(&mut reader, layers, at, len);
        }
    }
}

fn compare_range(reader: &mut Reader, layers: &[Layer<'_>], at: u64, len: u64) -> bool {
    let mut bytes = vec![0xee; len as usize];
    let read = reader.read_at(&mut bytes, GuestOffset(at));
    match (read, reference::read(layers, at, len)) {
        (Ok(()), Ok(judged)) => {
            let difference = bytes.iter().zip(&judged).position(|(a, b)| a != b);
            assert_eq!(difference, None, "a difference after {at:#x}");
            true
        }
        (Err(_), Err(_)) => false,
        (Ok(()), Err(refusal)) => panic!("read {at:#x} in spite of: {refusal}"),
        (Err(error), Ok(_)) => panic!("{at:#x} is not read: {error}"),
    }
}

pub(crate) fn check_at(path: &Path, threads: usize) -> qcow::Result<CheckOutcome> {
    let options = CheckOptions::default().format(Format::Qcow2).threads(threads);
    qcow::ops::check::check(path, &options, &Silent, &CancelToken::new())
}

/// Checks an image: the outcome does not depend on threads, sound images are clean, and nothing is written.
pub fn check(data: &[u8]) {
    let image = forge::image(data);
    let place = Place::with(&image.bytes);
    let outcome = check_at(&place.top(), 1);
    let again = check_at(&place.top(), 2);
    match (&outcome, &again) {
        (Ok(one), Ok(two)) => {
            let json = |outcome| serde_json::to_string(outcome).expect("JSON");
            assert_eq!(json(one), json(two));
        }
        (Err(one), Err(two)) => assert_eq!(one.to_string(), two.to_string()),
        _ => panic!("{outcome:?}, but {again:?}"),
    }
    if !image.damaged {
        let outcome = outcome.expect("a sound image");
        let found = (outcome.corruptions, outcome.leaks, outcome.check_errors);
        assert_eq!(found, (0, 0, 0), "{:?}", outcome.findings);
        assert_eq!(outcome.allocated_clusters, image.allocated);
    }
    assert!(fs::read(place.top()).expect("the image") == image.bytes, "check wrote");
}

/// Repairs an image: afterwards it is clean, or it was not touched; and all that could be read before reads
/// the same, in snapshots as well.
pub fn repair(data: &[u8]) {
    let (scope, data) = match data.split_first() {
        _ if data.starts_with(b"QFI\xfb") => (Scope::All, data),
        Some((&first, rest)) if first & 1 == 1 => (Scope::Leaks, rest),
        Some((_, rest)) => (Scope::All, rest),
        None => (Scope::All, data),
    };
    let image = forge::image(data);
    let place = Place::with(&image.bytes);
    let check = CheckOptions::default().format(Format::Qcow2).threads(1);
    let plan = RepairOptions::new(scope).dry_run(true).check(check.clone());
    let token = CancelToken::new();
    let planned = qcow::ops::check::repair(&place.top(), &plan, &Silent, &token);
    assert!(fs::read(place.top()).expect("the image") == image.bytes, "a plan wrote");
    let options = plan.dry_run(false);
    let done = qcow::ops::check::repair(&place.top(), &options, &Silent, &token);
    assert_eq!(planned.is_ok(), done.is_ok(), "{planned:?}, but {done:?}");
    let after = fs::read(place.top()).expect("the image");
    let Ok(outcome) = done else {
        assert!(after == image.bytes, "a repair that was refused wrote");
        return;
    };
    assert_eq!(planned.expect("a plan").steps, outcome.steps);
    if outcome.steps.is_empty() {
        assert!(after == image.bytes);
    }
    assert_eq!(outcome.check.leaks, 0);
    if scope == Scope::All {
        let found = (outcome.check.corruptions, outcome.check.check_errors);
        assert_eq!(found, (0, 0), "{:?}", outcome.check.findings);
        let again = qcow::ops::check::repair(&place.top(), &options, &Silent, &token);
        assert_eq!(again.expect("a clean image").steps, []);
    }
    assert_same_content(&image.bytes, &after);
}

/// Whatever can be read of an image and its snapshots reads the same in what has become of it.
pub(crate) fn assert_same_content(image: &[u8], after: &[u8]) {
    let beside = Beside::default();
    for (before, now) in views(image).into_iter().zip(views(after)) {
        if before.size.max(now.size) > MOST_BYTES {
            continue;
        }
        let below = before.backing_name.is_some().then_some(Layer::Raw(&beside.base));
        let data = before.data_file.is_some().then_some(&beside.data[..]);
        let stack = |top| -> Vec<Layer<'_>> {
            std::iter::once(Layer::Qcow2(top, data)).chain(below.clone()).collect()
        };
        let (unit, size) = (before.rules.unit(), before.size);
        let (before, now) = (stack(before), stack(now));
        for at in (0..size.div_ceil(unit)).map(|number| number * unit) {
            let len = unit.min(size - at);
            if let Ok(bytes) = reference::read(&before, at, len) {
                assert!(reference::read(&now, at, len) == Ok(bytes), "{at:#x} changed");
            }
        }
    }
}

/// The image as it is and as its snapshots have it, as far as it opens.
fn views(file: &[u8]) -> Vec<Image<'_>> {
    let mut views: Vec<Image<'_>> = Vec::new();
    // A refcount table of no clusters stops readers, but not a repair.
    let Ok(image) = Image::open(file) else { return views };
    let mut at = u64_at(file, 64);
    views.push(image.clone());
    for _ in 0..u32_at(file, 60).min(8) {
        let (l1, entries) = (u64_at(file, at), u64::from(u32_at(file, at + 8)));
        let names =
            u64::from(u32_at(file, at + 12) >> 16) + u64::from(u32_at(file, at + 12) & 0xffff);
        views.push(image.clone().with_l1(l1, entries));
        at += (40 + u64::from(u32_at(file, at + 36)) + names).next_multiple_of(8);
    }
    views
}

/// Flattens an image on its backing file: the result holds what the reference reads, is clean, and has the
/// same bytes for any number of threads.
pub fn flatten(data: &[u8]) {
    let mut choices = Unstructured::new(data);
    let options = flatten_options(&mut choices).unwrap_or_default();
    let image = match data.starts_with(b"QFI\xfb") {
        true => Forged::as_it_is(data.to_vec()),
        false => forge::from_choices(&mut choices),
    };
    let place = Place::with(&image.bytes);
    let Ok(chain) = open(&place.top(), None) else { return };
    if chain.virtual_size() > MOST_BYTES {
        return;
    }
    let beside = Beside::default();
    let layers = layers(&image.bytes, &beside).expect("the engine opened them");
    let judged = reference::read(&layers, 0, chain.virtual_size());
    let flat = place.path("flat");
    let run = |path: &Path, threads| {
        let options = options.clone().threads(threads).digest(true);
        qcow::ops::flatten::flatten(&chain, path, &options, &Silent, &CancelToken::new())
    };
    let outcome = match (run(&flat, 1), &judged) {
        (Err(error), judged) => {
            let options_refused = error.kind() == qcow::ErrorKind::Usage;
            assert!(judged.is_err() || options_refused, "not flattened: {error}");
            let left: Vec<_> = fs::read_dir(place.dir()).expect("the place").flatten().collect();
            assert_eq!(left.len(), 3, "{left:?}");
            return;
        }
        (Ok(_), Err(refusal)) => panic!("flattened in spite of: {refusal}"),
        (Ok(outcome), Ok(_)) => outcome,
    };
    let judged = judged.expect("it was readable");
    let file = fs::read(&flat).expect("the result");
    assert_eq!(outcome.file_length, file.len() as u64);
    assert_eq!(outcome.crc32, Some(fixtures::crc32_hex(&judged)));
    if outcome.format == Format::Raw {
        assert!(file == judged, "another content");
    } else {
        let result = Image::open(&file).expect("a sound image");
        assert!(result.backing_name.is_none());
        let content = reference::read(&[Layer::Qcow2(result, None)], 0, judged.len() as u64);
        assert!(content == Ok(judged), "another content");
        let clean = check_at(&flat, 1).expect("a sound image");
        assert_eq!((clean.corruptions, clean.leaks, clean.check_errors), (0, 0, 0));
    }
    let again = place.path("again");
    run(&again, 3).expect("as before");
    assert!(fs::read(again).expect("the result") == file, "threads changed the result");
}

fn flatten_options(choices: &mut Unstructured<'_>) -> arbitrary::Result<FlattenOptions> {
    let target = if choices.ratio(1, 4)? {
        TargetOptions::Raw(RawOptions::default())
    } else {
        let cluster_bits = choices.int_in_range(9..=16)?;
        TargetOptions::Qcow2(
            Qcow2Options::default()
                .cluster_size(1 << cluster_bits)
                .version(if choices.ratio(1, 5)? { Version::V2 } else { Version::V3 })
                .refcount_bits(1 << choices.int_in_range(0..=6)?)
                .extended_l2(choices.ratio(1, 4)?)
                .compression_type(
                    *choices.choose(&[CompressionType::Zlib, CompressionType::Zstd])?,
                ),
        )
    };
    Ok(FlattenOptions::default().target(target).compress(choices.arbitrary()?))
}
