//! Targets for single structures.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use arbitrary::{Result, Unstructured};
use qcow::codec::{Codec, Compressor, Decompressor};
use qcow::format::{
    BitmapEntry, BitmapTableEntry, EntryRules, Geometry, HeaderArea, L1Entry, L2Entry, LuksHeader,
    Snapshot, Version,
};
use serde_json::Value;

use crate::forge;
use crate::reference::{self, Image, Rules, Unit, bytes_at, u16_at, u32_at, u64_at};

/// The first cluster: header, extensions, backing name. What is accepted must be what the reference accepts,
/// and must survive being written.
pub fn header(data: &[u8]) {
    let image = forge::image(data);
    let mut cluster = bytes_at(&image.bytes, 0, image.cluster());
    match data {
        &[how, ..] if how % 8 == 7 => encrypt(&mut cluster, how),
        _ => {}
    }
    let parsed = HeaderArea::parse(&cluster);
    let judged = Image::open(&cluster);
    let area = match parsed {
        Err(error) => {
            let refused_for_bitmaps = matches!(error.place().structure, Some("bitmaps extension"));
            assert!(judged.is_err() || refused_for_bitmaps, "refused without reason: {error}");
            assert!(!error.to_string().is_empty());
            return;
        }
        Ok(area) => area,
    };
    match judged {
        Ok(judged) => {
            assert_eq!(area.backing_name, judged.backing_name);
            assert_eq!(area.backing_format().map(<[u8]>::to_vec), judged.backing_format);
            assert_eq!(area.header.virtual_size(), judged.size);
        }
        Err(refusal) => {
            // What only stops a reader is not for the parser to see.
            let later = [
                "it is encrypted",
                "the data file has no name",
                "a raw data file, but there is none",
                "the L1 table is past any file",
            ];
            assert!(later.contains(&refusal.0), "accepted in spite of: {refusal}");
        }
    }
    let Ok(mut written) = area.to_bytes() else { return };
    assert!(written.len() <= cluster.len());
    written.resize(cluster.len(), 0);
    let mut again = HeaderArea::parse(&written).expect("what was written can be read");
    again.header.backing_name_offset = area.header.backing_name_offset;
    again.header.backing_name_len = area.header.backing_name_len;
    assert_eq!(again, area);
}

/// Puts in front of the extensions, over what is there, the one of an image that uses LUKS. Some of its fields are
/// wrong.
fn encrypt(cluster: &mut [u8], how: u8) {
    let at = if u32_at(cluster, 4) == 3 { u32_at(cluster, 100) as usize } else { 72 };
    let offset = if how & 8 == 0 { 3 * cluster.len() as u64 } else { 768 };
    let mut extension =
        vec![0x05, 0x37, 0xbe, 0x77, 0, 0, 0, if how & 0x70 == 0 { 15 } else { 16 }];
    extension.extend(offset.to_be_bytes());
    extension.extend(4096u64.to_be_bytes());
    if let Some(there) = at.checked_add(24).and_then(|end| cluster.get_mut(at..end)) {
        there.copy_from_slice(&extension);
    }
    cluster[35] = if how & 0x60 == 0x20 { 0 } else { 2 };
}

/// L1 and L2 entries, with and without subclusters.
pub fn entries(data: &[u8]) {
    let _ = one_entry(&mut Unstructured::new(data));
}

fn one_entry(choices: &mut Unstructured<'_>) -> Result<()> {
    let cluster_bits = choices.int_in_range(9..=21)?;
    let rules = Rules {
        version: choices.int_in_range(2..=3)?,
        cluster_bits,
        extended: cluster_bits >= 14 && choices.arbitrary()?,
        data_file: choices.ratio(1, 4)?,
    };
    let geometry = Geometry::new(cluster_bits, rules.extended).expect("a geometry");
    let version = if rules.version == 2 { Version::V2 } else { Version::V3 };
    let entry_rules = EntryRules { geometry, version, data_file: rules.data_file };
    while !choices.is_empty() {
        let mut entry = choices.arbitrary::<u64>()?;
        if choices.arbitrary()? {
            entry &= !(rules.cluster() - 2); // aligned, or nearly so
        }
        let bitmap = choices.arbitrary::<u64>()?;
        let decoded = L2Entry::decode(entry, bitmap, &entry_rules);
        compare_entry(entry, bitmap, rules, &decoded);
        if let Ok(decoded) = decoded
            && let Ok((word, bitmap)) = decoded.encode(&entry_rules)
        {
            let again = L2Entry::decode(word, bitmap, &entry_rules).expect("a valid entry");
            // Flags that are not part of a variant are not kept, and a length may be rounded.
            match (again, decoded) {
                (L2Entry::Compressed(a), L2Entry::Compressed(b)) => {
                    assert_eq!((a.host, a.len), (b.host, b.len));
                }
                // Without a cluster there is no refcount that the flag could speak of.
                (
                    L2Entry::Subclusters { host: None, allocated, zero, .. },
                    L2Entry::Subclusters { host, allocated: a, zero: z, .. },
                ) => assert_eq!((host, allocated, zero), (None, a, z)),
                (again, decoded) => assert_eq!(again, decoded),
            }
        }
        let table = L1Entry(entry).l2_table(geometry);
        let offset = entry & 0x00ff_ffff_ffff_fe00;
        assert_eq!(table.is_ok(), offset.is_multiple_of(rules.cluster()));
    }
    Ok(())
}

fn compare_entry(entry: u64, bitmap: u64, rules: Rules, decoded: &qcow::Result<L2Entry>) {
    // At this guest offset a cluster of a data file is where it belongs.
    let guest = entry & 0x00ff_ffff_ffff_fe00;
    let units = if rules.extended { 32 } else { 1 };
    for unit in 0..units {
        let judged = reference::unit_of(entry, bitmap, rules, guest, unit);
        let read = decoded.as_ref().ok().map(|decoded| match *decoded {
            L2Entry::Unallocated => Unit::Below,
            L2Entry::Zero { .. } => Unit::Zero,
            L2Entry::Data { host, .. } => Unit::Data(host.0),
            L2Entry::Compressed(span) => Unit::Compressed { host: span.host.0, len: span.len },
            L2Entry::Subclusters { host, allocated, zero, .. } => {
                let bit = 1 << unit;
                match host {
                    _ if zero & bit != 0 => Unit::Zero,
                    Some(host) if allocated & bit != 0 => Unit::Data(host.0),
                    _ => Unit::Below,
                }
            }
        });
        assert_eq!(read, judged.ok(), "entry {entry:#x} {bitmap:#x} {rules:?}");
    }
}

/// Compressed clusters: streams of our own making, damaged, and arbitrary bytes.
pub fn compressed(data: &[u8]) {
    let _ = one_cluster(&mut Unstructured::new(data));
}

fn one_cluster(choices: &mut Unstructured<'_>) -> Result<()> {
    let zstd = choices.arbitrary()?;
    let codec = if zstd { Codec::Zstd } else { Codec::Zlib };
    let cluster = 1usize << choices.int_in_range(9..=16)?;
    let mut decompressor = Decompressor::new(codec).expect("a codec");
    let mut output = vec![0; cluster];
    let made = choices.ratio(3, 4)?;
    let input = if made {
        // Less than a cluster, or more, is an error, and so may several frames be.
        let mut input = Vec::new();
        let whole = choices.ratio(2, 3)?;
        for _ in 0..choices.int_in_range(1..=3)? {
            let len = if whole { cluster } else { choices.int_in_range(0..=cluster + 512)? };
            let seed = choices.bytes(choices.len().min(16))?.to_vec();
            let content: Vec<u8> =
                (0..len).map(|at| *seed.get(at % 23).unwrap_or(&((at / 40) as u8))).collect();
            let mut stream = Vec::new();
            let level = choices.int_in_range(1..=9)?;
            let mut compressor = Compressor::new(codec, Some(level)).expect("a codec");
            if compressor.compress(&content, &mut stream).expect("it compresses") {
                decompressor.decompress(&stream, &mut vec![0; len]).expect("its own stream");
                input.extend(stream);
            }
            if whole {
                break;
            }
        }
        for _ in 0..choices.int_in_range(0..=3)? {
            if input.is_empty() {
                break;
            }
            let at = choices.int_in_range(0..=input.len() - 1)?;
            input[at] = choices.arbitrary()?;
        }
        input.resize(input.len() + choices.int_in_range(0..=600)?, 0);
        input
    } else {
        choices.bytes(choices.len())?.to_vec()
    };
    let judged = reference::decompress(&input, cluster, zstd);
    match decompressor.decompress(&input, &mut output) {
        Ok(()) => assert_eq!(judged.as_ref(), Ok(&output), "zstd: {zstd}"),
        Err(error) => assert!(judged.is_err(), "refused without reason: {error}"),
    }
    // A context that saw damage is as good as new.
    let sound = b"sound ".repeat(cluster / 6 + 1);
    let mut stream = Vec::new();
    Compressor::new(codec, None)
        .and_then(|mut compressor| compressor.compress(&sound[..cluster], &mut stream))
        .expect("it compresses");
    decompressor.decompress(&stream, &mut output).expect("a sound stream");
    assert_eq!(output, sound[..cluster]);
    Ok(())
}

/// Entries of a snapshot table.
pub fn snapshots(data: &[u8]) {
    let mut rest = data;
    while !rest.is_empty() {
        let Ok((snapshot, consumed)) = Snapshot::parse(rest, Version::V3) else {
            assert!(Snapshot::entry_len(rest).is_err() || rest.len() < entry_len(rest));
            return;
        };
        assert!(entry_len(rest).next_multiple_of(8) == consumed && entry_len(rest) <= rest.len());
        let extra = u64::from(u32_at(rest, 36));
        let id_at = (40 + extra) as usize;
        let name_at = id_at + usize::from(u16_at(rest, 12));
        assert_eq!(snapshot.l1_table_offset.0, u64_at(rest, 0));
        assert_eq!(snapshot.l1_entries, u32_at(rest, 8));
        assert_eq!(snapshot.id, rest[id_at..name_at]);
        assert_eq!(snapshot.name, rest[name_at..name_at + usize::from(u16_at(rest, 14))]);
        let state = if extra >= 8 { u64_at(rest, 40) } else { u32_at(rest, 32).into() };
        assert_eq!(snapshot.vm_state_size, state);
        assert_eq!(snapshot.disk_size, (extra >= 16).then(|| u64_at(rest, 48)));
        if let Ok(bytes) = snapshot.to_bytes() {
            let (again, len) = Snapshot::parse(&bytes, Version::V3).expect("what was written");
            assert_eq!((&again, len), (&snapshot, bytes.len()));
        }
        rest = rest.get(consumed..).unwrap_or_default();
    }
}

fn entry_len(entry: &[u8]) -> usize {
    40 + u32_at(entry, 36) as usize
        + usize::from(u16_at(entry, 12))
        + usize::from(u16_at(entry, 14))
}

/// LUKS headers of encrypted images: taken if they are whole, with every field where its description has it.
pub fn luks(data: &[u8]) {
    const MAGIC: &[u8] = b"LUKS\xba\xbe\0\x01";
    let (&how, rest) = data.split_first().unwrap_or((&0, data));
    let mut bytes = rest.to_vec();
    if how & 1 == 0 {
        bytes.splice(..bytes.len().min(MAGIC.len()), MAGIC.iter().copied());
    }
    if how & 2 == 0 {
        bytes.resize(bytes.len().max(LuksHeader::BYTES), 0);
    }
    let parsed = LuksHeader::parse(&bytes);
    assert_eq!(parsed.is_ok(), bytes.starts_with(MAGIC) && bytes.len() >= LuksHeader::BYTES);
    let Ok(header) = parsed else { return };
    let text = |at: usize, len: usize| {
        let text = bytes[at..at + len].split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    };
    let sectors = |at| u64::from(u32_at(&bytes, at)) * 512;
    assert_eq!((&header.cipher, &header.mode), (&text(8, 32), &text(40, 32)));
    assert_eq!((&header.hash, &header.uuid), (&text(72, 32), &text(168, 40)));
    assert_eq!((header.payload_offset, header.key_bytes), (sectors(104), u32_at(&bytes, 108)));
    assert_eq!(header.digest_iterations, u32_at(&bytes, 164));
    assert_eq!(header.slots.len(), 8);
    for (slot, at) in header.slots.iter().zip((208..).step_by(48)) {
        assert_eq!(slot.active, u32_at(&bytes, at) == 0x00ac_71f3);
        assert_eq!(
            (slot.iterations, slot.stripes),
            (u32_at(&bytes, at + 4), u32_at(&bytes, at + 44))
        );
        assert_eq!(slot.key_offset, sectors(at + 40));
    }
    assert!(header.cipher_name().starts_with(&header.cipher));
    assert!(header.mode.starts_with(header.mode_parts().0));
}

/// Entries of a bitmap directory, and of a bitmap's table.
pub fn bitmaps(data: &[u8]) {
    let (shape, mut rest) = data.split_at(data.len().min(2));
    let cluster_bits = 9 + shape.first().map_or(0, |byte| u32::from(byte % 13));
    let geometry = Geometry::new(cluster_bits, false).expect("a geometry");
    let size = 512u64 << (shape.get(1).unwrap_or(&0) % 50);
    for word in rest.chunks_exact(8) {
        let word = u64_at(word, 0);
        let offset = word & 0x00ff_ffff_ffff_fe00;
        let reserved = word & 0xff00_0000_0000_01fe != 0;
        let wrong =
            reserved || !offset.is_multiple_of(1 << cluster_bits) || (offset != 0 && word & 1 == 1);
        assert_eq!(BitmapTableEntry::decode(word, geometry).is_err(), wrong, "{word:#x}");
    }
    while !rest.is_empty() {
        let Ok((entry, consumed)) = BitmapEntry::parse(rest) else { return };
        assert!(consumed.is_multiple_of(8) && consumed <= rest.len());
        assert_eq!(entry.table_offset.0, u64_at(rest, 0));
        assert_eq!(entry.table_entries, u32_at(rest, 8));
        let name_at = 24 + u32_at(rest, 20) as usize;
        assert_eq!(entry.name, rest[name_at..][..usize::from(u16_at(rest, 18))]);
        if entry.check(geometry, size).is_ok() {
            assert!(entry.flags.bits() < 4 && (9..=31).contains(&entry.granularity_bits));
            assert!(
                entry.table_offset.0.is_multiple_of(1 << cluster_bits) && entry.table_offset.0 > 0
            );
            assert!(u64::from(entry.table_entries) << cluster_bits <= 512 << 20);
            let bytes = entry.to_bytes().expect("a valid entry");
            assert_eq!(BitmapEntry::parse(&bytes).expect("what was written"), (entry, bytes.len()));
        }
        rest = &rest[consumed..];
    }
}

/// Names of backing files: paths, `file:`, `json:` and protocols.
pub fn names(data: &[u8]) {
    let holder = Path::new("/images/top.qcow2");
    let mut prefixed = b"json:".to_vec();
    prefixed.extend(data);
    for name in [data, &prefixed] {
        let name_of = Path::new(OsStr::from_bytes(name));
        let directory = qcow::chain::WorkingDirectory::At("/images".into());
        let Ok(path) = qcow::chain::resolve_name(name_of, holder, &directory) else {
            continue;
        };
        let plain = match name.strip_prefix(b"json:") {
            Some(json) => json_file(json).expect("the name of a local file"),
            None => {
                let end = name.iter().position(|&byte| byte == b':' || byte == b'/');
                match end.map(|end| (&name[..end], name[end], &name[end + 1..])) {
                    Some((protocol, b':', path)) => {
                        assert!(matches!(protocol, b"file" | b"host_device"));
                        path.to_vec()
                    }
                    _ => name.to_vec(),
                }
            }
        };
        let plain = PathBuf::from(OsStr::from_bytes(&plain));
        assert_eq!(path, Path::new("/images").join(plain));
    }
}

/// The file that a `json:` name can only mean, found another way: as a tree.
fn json_file(json: &[u8]) -> Option<Vec<u8>> {
    let tree: Value = serde_json::from_slice(json).ok()?;
    let at = |path: &[&str]| member(&tree, path).and_then(Value::as_str);
    for driver in [at(&["driver"]), at(&["file", "driver"])].into_iter().flatten() {
        assert!(!matches!(driver, "nbd" | "http" | "https" | "ssh" | "rbd" | "iscsi" | "nfs"));
    }
    // Raw drivers may lie between; only the innermost node names a file.
    let name = (0..=128).find_map(|depth| {
        let path = [vec!["file"; depth], vec!["filename"]].concat();
        at(&path)
    });
    Some(name?.as_bytes().to_vec())
}

/// A member of an object, nested or with a dotted key.
fn member<'v>(tree: &'v Value, path: &[&str]) -> Option<&'v Value> {
    let object = tree.as_object()?;
    let dotted = object.get(&path.join("."));
    dotted.or_else(|| match path {
        [outer, inner @ ..] if !inner.is_empty() => member(object.get(*outer)?, inner),
        _ => None,
    })
}
