//! Builds a sound image: refcounts, copied flags and offsets are right.

use std::io::Write;

use arbitrary::{Result, Unstructured};

use crate::reference::Rules;

/// The name of the backing file of images that have one.
pub const BASE_NAME: &str = "base";
/// The name of the external data file of images that have one.
pub const DATA_NAME: &str = "data";
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Compressed clusters may have no more references than a 16-bit refcount can express.
const MOST_CLUSTERS: u64 = 48;

/// An image and what is known about it.
#[derive(Debug, Clone)]
pub struct Forged {
    /// The file.
    pub bytes: Vec<u8>,
    /// Where its structures lie.
    pub structures: Vec<Structure>,
    /// Something in it may be wrong.
    pub damaged: bool,
    /// Clusters of the guest's disk that are allocated, if nothing was damaged.
    pub allocated: u64,
    /// Ids of its snapshots.
    pub snapshots: Vec<String>,
}

/// Words of one width, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Structure {
    /// Where they start.
    pub at: u64,
    /// Bytes of them all.
    pub len: u64,
    /// Bytes of one.
    pub width: usize,
}

impl Forged {
    /// An image of unknown making.
    pub fn as_it_is(bytes: Vec<u8>) -> Self {
        Self { bytes, structures: vec![], damaged: true, allocated: 0, snapshots: vec![] }
    }

    /// Bytes in a cluster, as far as the header is to be believed.
    pub fn cluster(&self) -> usize {
        1 << crate::reference::u32_at(&self.bytes, 20).clamp(9, 21)
    }
}

/// What an image is to be like.
struct Shape {
    rules: Rules,
    zstd: bool,
    header_length: u64,
    size: u64,
    refcount_order: u32,
    backing: bool,
    bits: (u64, u64, u64),
    extensions: Vec<(u32, Vec<u8>)>,
}

pub(super) fn build(choices: &mut Unstructured<'_>) -> Forged {
    let shape = shape(choices).unwrap_or_else(|_| Shape {
        rules: Rules { version: 3, cluster_bits: 9, extended: false, data_file: false },
        zstd: false,
        header_length: 104,
        size: 0,
        refcount_order: 4,
        backing: false,
        bits: (0, 0, 0),
        extensions: vec![],
    });
    let mut file = File::new(shape);
    // Whatever was built when the choices run out is enough.
    let _ = file.fill(choices);
    file.finish()
}

fn shape(choices: &mut Unstructured<'_>) -> Result<Shape> {
    let version = if choices.ratio(1, 4)? { 2 } else { 3 };
    let v3 = version == 3;
    let cluster_bits = *choices.choose(&[9, 9, 9, 10, 11, 12, 14, 14, 16])?;
    let extended = v3 && cluster_bits >= 14 && choices.ratio(2, 3)?;
    let zstd = v3 && choices.ratio(1, 3)?;
    let data_file = v3 && choices.ratio(1, 5)?;
    let rules = Rules { version, cluster_bits, extended, data_file };
    let header_length = match choices.int_in_range(0..=5)? {
        _ if !v3 => 72,
        0 if !zstd => 104,
        1 => 105,
        2 => choices.int_in_range(105..=300)?,
        _ => 112,
    };
    let cluster = 1u64 << cluster_bits;
    let clusters = choices.int_in_range(0..=MOST_CLUSTERS)?;
    let mut size = clusters * cluster;
    if choices.ratio(1, 3)? {
        size = size.saturating_sub(choices.int_in_range(0..=cluster)?);
    } else if choices.ratio(1, 6)? {
        size += rules.l2_coverage() * choices.int_in_range(1..=5)?;
    }
    let refcount_order = if v3 { choices.int_in_range(0..=6)? } else { 4 };
    let backing = choices.ratio(1, 3)?;
    let dirty = u64::from(v3 && choices.ratio(1, 10)?);
    let corrupt = u64::from(v3 && choices.ratio(1, 10)?) << 1;
    let features = u64::from(data_file) << 2 | u64::from(zstd) << 3 | u64::from(extended) << 4;
    let incompatible = dirty | corrupt | features;
    let compatible = u64::from(v3 && choices.ratio(1, 5)?);
    let mut extensions = vec![];
    if backing && (v3 || choices.ratio(4, 5)?) {
        extensions.push((0xe279_2aca, b"raw".to_vec()));
    }
    if data_file {
        extensions.push((0x4441_5441, DATA_NAME.into()));
    }
    if choices.ratio(1, 4)? {
        let len = choices.int_in_range(0..=40)?;
        extensions.push((choices.arbitrary::<u32>()? | 1, choices.bytes(len)?.to_vec()));
    }
    if choices.ratio(1, 8)? {
        let mut name = vec![0; 48];
        let mut bits = choices.bytes(8)?.to_vec();
        bits[0] %= 3;
        name[..8].copy_from_slice(&bits);
        extensions.push((0x6803_f857, name));
    }
    let raw = u64::from(data_file && !backing && choices.ratio(1, 3)?) << 1;
    let bits = (incompatible, compatible, raw);
    Ok(Shape { rules, zstd, header_length, size, refcount_order, backing, bits, extensions })
}

/// A file being written, cluster by cluster.
struct File {
    shape: Shape,
    cluster: u64,
    bytes: Vec<u8>,
    /// References to each cluster.
    references: Vec<u64>,
    structures: Vec<Structure>,
    l1: Vec<u64>,
    /// Guest clusters that were given entries, and where these lie.
    entries: Vec<(u64, u64)>,
    /// Where the next compressed cluster goes: behind the last one.
    packed: u64,
    allocated: u64,
    snapshots: Vec<(String, u64, u64)>,
    /// Bytes of extra data in each entry of the snapshot table.
    snapshot_extra: usize,
    l1_at: u64,
}

impl File {
    fn new(shape: Shape) -> Self {
        let cluster = shape.rules.cluster();
        let l1 = vec![0; shape.size.div_ceil(shape.rules.l2_coverage()) as usize];
        let mut file = Self {
            shape,
            cluster,
            bytes: vec![],
            references: vec![],
            structures: vec![],
            l1,
            entries: vec![],
            packed: 0,
            allocated: 0,
            snapshots: vec![],
            snapshot_extra: 24,
            l1_at: 0,
        };
        file.append(&[0]);
        file.l1_at = file.append(&vec![0; file.l1.len() * 8]);
        file
    }

    /// Appends clusters that hold `bytes`, with one reference each; tells where.
    fn append(&mut self, bytes: &[u8]) -> u64 {
        let at = self.bytes.len() as u64;
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(self.cluster as usize), 0);
        self.references.resize(self.bytes.len() / self.cluster as usize, 1);
        at
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn mark(&mut self, at: u64, len: u64, width: usize) {
        if len > 0 {
            self.structures.push(Structure { at, len, width });
        }
    }

    /// Entries, snapshots and bitmaps, as long as there are choices.
    fn fill(&mut self, choices: &mut Unstructured<'_>) -> Result<()> {
        let clusters = self.shape.size.div_ceil(self.cluster);
        if clusters > 0 {
            let sequential = choices.ratio(1, 2)?;
            for number in 0..choices.int_in_range(0..=clusters.min(MOST_CLUSTERS))? {
                let guest =
                    if sequential { number } else { choices.int_in_range(0..=clusters - 1)? };
                self.entry(choices, guest)?;
            }
        }
        // QEMU has no snapshots of disks in data files.
        if self.shape.refcount_order > 1 && !self.shape.rules.data_file {
            for number in 0..choices.int_in_range(0..=4u8)?.saturating_sub(2) {
                let shared = choices.ratio(2, 3)?;
                self.snapshot(number, shared, choices.ratio(1, 2)?);
                // Version 3 asks for the size of the disk, which is the second field.
                let lengths: &[usize] =
                    if self.shape.rules.version == 3 { &[24, 16, 32, 99] } else { &[24, 0, 8, 16] };
                self.snapshot_extra = *choices.choose(lengths)?;
            }
        }
        if self.shape.rules.version == 3 && self.shape.size > 0 && choices.ratio(1, 4)? {
            self.bitmaps(choices)?;
        }
        Ok(())
    }

    /// Where the entry of a guest cluster lies; its L2 table is made if there is none.
    fn entry_at(&mut self, guest: u64) -> u64 {
        let rules = self.shape.rules;
        let per_table = self.cluster / rules.width();
        let index = (guest / per_table) as usize;
        if self.l1[index] == 0 {
            self.l1[index] = self.append(&[0]);
            let width = if rules.extended { 16 } else { 8 };
            self.mark(self.l1[index], per_table.min(64) * width, 8);
        }
        self.l1[index] + guest % per_table * rules.width()
    }

    fn entry(&mut self, choices: &mut Unstructured<'_>, guest: u64) -> Result<()> {
        let at = self.entry_at(guest);
        if self.entries.iter().any(|&(known, _)| known == guest) {
            return Ok(());
        }
        let Rules { extended, data_file, .. } = self.shape.rules;
        let kind = choices.int_in_range(0..=7)?;
        let fill = choices.arbitrary::<u8>()?;
        let (entry, bitmap) = match kind {
            0 => (0, 0),
            1 if extended => (0, 0xffff_ffff << 32),
            1 if self.shape.rules.version == 3 => (1, 0),
            2 if extended => (self.data(guest, fill), 0xffff_ffff << 32),
            2 if self.shape.rules.version == 3 => (self.data(guest, fill) | 1, 0),
            3 | 4 if !data_file => match self.compressed(fill, choices.ratio(1, 4)?) {
                Some(entry) => (entry, 0),
                None => (self.data(guest, fill), if extended { 0xffff_ffff } else { 0 }),
            },
            5 if extended => {
                let data = choices.arbitrary::<u32>()?;
                let zero = choices.arbitrary::<u32>()? & !data;
                (self.data(guest, fill), u64::from(zero) << 32 | u64::from(data))
            }
            6 if extended => (0, u64::from(choices.arbitrary::<u32>()?) << 32),
            _ => (self.data(guest, fill), if extended { 0xffff_ffff } else { 0 }),
        };
        self.put(at, &entry.to_be_bytes());
        if extended {
            self.put(at + 8, &bitmap.to_be_bytes());
        }
        self.entries.push((guest, at));
        // The first cluster of a data file is told from none by the copied flag, but if it reads as zeros.
        self.allocated += u64::from(entry & !1 != 0 && entry != COPIED | 1);
        Ok(())
    }

    fn content(&self, fill: u8) -> Vec<u8> {
        (0..self.cluster).map(|at| fill ^ (at / 512) as u8 ^ (at % 7) as u8).collect()
    }

    /// A cluster of data; in a data file it lies where the guest has it, and nobody else may have it.
    fn data(&mut self, guest: u64, fill: u8) -> u64 {
        if self.shape.rules.data_file {
            return (guest * self.cluster) | COPIED;
        }
        let content = self.content(fill);
        self.append(&content)
    }

    /// A compressed cluster, behind the last one if that is possible; `None` if it does not pay.
    fn compressed(&mut self, fill: u8, apart: bool) -> Option<u64> {
        let content = self.content(fill);
        let stream = if self.shape.zstd {
            zstd::bulk::compress(&content, 1).ok()?
        } else {
            let mut deflate =
                flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            deflate.write_all(&content).ok()?;
            deflate.finish().ok()?
        };
        if stream.len() as u64 >= self.cluster {
            return None;
        }
        // Packing gives a host cluster many references.
        let narrow = self.shape.refcount_order < 3;
        let room = self.packed.next_multiple_of(self.cluster) - self.packed;
        let fresh = narrow || apart || room < stream.len() as u64;
        let host = if fresh { self.append(&[0]) } else { self.packed };
        if !fresh {
            self.references[(host / self.cluster) as usize] += 1;
        }
        self.put(host, &stream);
        self.packed = host + stream.len() as u64;
        self.mark(host, stream.len() as u64, 1);
        let sectors = (self.packed - 1) / 512 - host / 512;
        Some(COMPRESSED | sectors << (62 - (self.shape.rules.cluster_bits - 8)) | host)
    }

    /// A snapshot of the tables as they are, or of an empty disk.
    fn snapshot(&mut self, number: u8, shared: bool, with_state: bool) {
        let table: Vec<u64> = if shared { self.l1.clone() } else { vec![0; self.l1.len()] };
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let at = self.append(&bytes);
        self.mark(at, bytes.len() as u64, 8);
        if shared {
            for &table in self.l1.iter().filter(|&&table| table != 0) {
                self.references[(table / self.cluster) as usize] += 1;
            }
            for (_, entry_at) in self.entries.clone() {
                let entry = crate::reference::u64_at(&self.bytes, entry_at);
                for cluster in self.host_clusters(entry) {
                    self.references[cluster as usize] += 1;
                }
            }
        }
        self.snapshots.push((format!("{}", number + 1), at, u64::from(with_state)));
    }

    fn host_clusters(&self, entry: u64) -> Vec<u64> {
        if entry & COMPRESSED != 0 {
            let offset_bits = 62 - (self.shape.rules.cluster_bits - 8);
            let host = entry & ((1 << offset_bits) - 1);
            return vec![host / self.cluster];
        }
        let host = entry & 0x00ff_ffff_ffff_fe00;
        if host == 0 { vec![] } else { vec![host / self.cluster] }
    }

    /// One to three bitmaps, and the directory and extension that name them.
    fn bitmaps(&mut self, choices: &mut Unstructured<'_>) -> Result<()> {
        let mut directory = Vec::new();
        let count = choices.int_in_range(1..=3u32)?;
        for number in 0..count {
            let granularity_bits = choices.int_in_range(9..=20)?;
            let granules = (self.shape.size / 512 * 512).div_ceil(1 << granularity_bits);
            let entries = (granules.div_ceil(64) * 8).div_ceil(self.cluster);
            if entries == 0 {
                return Ok(()); // a disk of less than a sector
            }
            // The first cluster of bits: some of them, none, or all.
            let bits = match choices.int_in_range(0..=2)? {
                0 => self.append(&[0x55]),
                bits => bits - 1,
            };
            let mut table = vec![0; entries as usize * 8];
            table[..8].copy_from_slice(&bits.to_be_bytes());
            let table_at = self.append(&table);
            self.mark(table_at, entries * 8, 8);
            directory.extend(table_at.to_be_bytes());
            directory.extend((entries as u32).to_be_bytes());
            // Not stored cleanly; records writes.
            directory.extend(choices.int_in_range(0..=3u32)?.to_be_bytes());
            directory.extend([1, granularity_bits, 0, 5, 0, 0, 0, 0]);
            directory.extend(format!("bits{number}\0\0\0").as_bytes());
        }
        let at = self.append(&directory);
        self.mark(at, directory.len() as u64, 4);
        let mut extension = count.to_be_bytes().to_vec();
        extension.extend([0; 4]);
        extension.extend((directory.len() as u64).to_be_bytes());
        extension.extend(at.to_be_bytes());
        self.shape.extensions.push((0x2385_2875, extension));
        self.shape.bits.2 |= 1;
        Ok(())
    }

    fn finish(mut self) -> Forged {
        let snapshots_at = self.snapshot_table();
        self.copied_flags();
        let l1: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.put(self.l1_at, &l1);
        self.mark(self.l1_at, l1.len() as u64, 8);
        let (refcounts_at, refcount_clusters) = self.refcounts();
        self.header(snapshots_at, refcounts_at, refcount_clusters);
        Forged {
            bytes: self.bytes,
            structures: self.structures,
            damaged: false,
            allocated: self.allocated,
            snapshots: self.snapshots.into_iter().map(|(id, ..)| id).collect(),
        }
    }

    fn snapshot_table(&mut self) -> u64 {
        let mut bytes = Vec::new();
        for (id, l1, state) in &self.snapshots {
            bytes.extend(l1.to_be_bytes());
            bytes.extend((self.l1.len() as u32).to_be_bytes());
            bytes.extend((id.len() as u16).to_be_bytes());
            bytes.extend(4u16.to_be_bytes());
            bytes.extend([0; 16]);
            bytes.extend((*state as u32 * 512).to_be_bytes());
            bytes.extend((self.snapshot_extra as u32).to_be_bytes());
            let extra = [state * 512, self.shape.size, u64::MAX];
            let mut extra: Vec<u8> = extra.iter().flat_map(|n| n.to_be_bytes()).collect();
            extra.resize(self.snapshot_extra, 0xee);
            bytes.extend(extra);
            bytes.extend(id.as_bytes());
            bytes.extend(b"name");
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        if bytes.is_empty() {
            return 0;
        }
        let at = self.append(&bytes);
        self.mark(at, bytes.len() as u64, 4);
        at
    }

    /// Sets the copied flag wherever exactly one refers to a cluster.
    fn copied_flags(&mut self) {
        let in_the_image = if self.shape.rules.data_file { vec![] } else { self.entries.clone() };
        for (_, at) in in_the_image {
            let entry = crate::reference::u64_at(&self.bytes, at);
            let host = entry & 0x00ff_ffff_ffff_fe00;
            let alone = host != 0
                && self.references[(host / self.cluster) as usize % self.references.len()] == 1;
            if entry & COMPRESSED == 0 && alone {
                self.put(at, &(entry | COPIED).to_be_bytes());
            }
        }
        for index in 0..self.l1.len() {
            let table = self.l1[index];
            if table != 0 && self.references[(table / self.cluster) as usize] == 1 {
                self.l1[index] |= COPIED;
            }
        }
    }

    /// Refcount blocks and their table, at the end of the file; where the table lies, and its clusters.
    fn refcounts(&mut self) -> (u64, u64) {
        let most = self.references.iter().copied().max().unwrap_or(1);
        let order = &mut self.shape.refcount_order;
        while 1u128 << (1u32 << *order) <= u128::from(most) {
            *order += 1;
        }
        let bits = 1u64 << *order;
        let per_block = self.cluster * 8 / bits;
        let others = self.references.len() as u64;
        let (mut blocks, mut table) = (1, 1);
        loop {
            let needed = (others + blocks + table).div_ceil(per_block);
            let table_needed = (needed * 8).div_ceil(self.cluster);
            if (needed, table_needed) == (blocks, table) {
                break;
            }
            (blocks, table) = (blocks.max(needed), table.max(table_needed));
            if (blocks, table) != (needed, table_needed) {
                break; // one block more than needed does no harm
            }
        }
        let table_at = self.append(&vec![0; (table * self.cluster) as usize]);
        let blocks_at = self.append(&vec![0; (blocks * self.cluster) as usize]);
        for block in 0..blocks {
            let offset = blocks_at + block * self.cluster;
            self.put(table_at + block * 8, &offset.to_be_bytes());
        }
        for (cluster, &count) in (0u64..).zip(&self.references.clone()) {
            let bit = cluster * bits;
            let at = (blocks_at + bit / 8) as usize;
            if bits < 8 {
                self.bytes[at] |= (count << (bit % 8)) as u8;
            } else {
                let width = (bits / 8) as usize;
                self.put(at as u64, &count.to_be_bytes()[8 - width..]);
            }
        }
        self.mark(table_at, blocks * 8, 8);
        let used = (self.references.len() as u64 * bits).div_ceil(8);
        self.mark(blocks_at, used, (bits as usize / 8).max(1));
        (table_at, table)
    }

    fn header(&mut self, snapshots_at: u64, refcounts_at: u64, refcount_clusters: u64) {
        let shape = &self.shape;
        let rules = shape.rules;
        let mut area = vec![0; shape.header_length as usize];
        for (magic, data) in &shape.extensions {
            let mut extension = magic.to_be_bytes().to_vec();
            extension.extend((data.len() as u32).to_be_bytes());
            extension.extend(data);
            extension.resize(extension.len().next_multiple_of(8), 0);
            if area.len() + extension.len() + 16 <= self.cluster as usize {
                area.extend(extension);
            }
        }
        area.extend([0; 8]);
        let mut set = |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
        let small = |number: u64| u32::try_from(number).expect("a small number").to_be_bytes();
        set(0, b"QFI\xfb");
        set(4, &rules.version.to_be_bytes());
        set(20, &rules.cluster_bits.to_be_bytes());
        set(24, &shape.size.to_be_bytes());
        set(36, &small(self.l1.len() as u64));
        set(40, &self.l1_at.to_be_bytes());
        set(48, &refcounts_at.to_be_bytes());
        set(56, &small(refcount_clusters));
        set(60, &small(self.snapshots.len() as u64));
        set(64, &snapshots_at.to_be_bytes());
        if rules.version == 3 {
            set(72, &shape.bits.0.to_be_bytes());
            set(80, &shape.bits.1.to_be_bytes());
            set(88, &shape.bits.2.to_be_bytes());
            set(96, &shape.refcount_order.to_be_bytes());
            set(100, &small(shape.header_length));
            if shape.zstd {
                set(104, &[1]);
            }
        }
        if shape.backing && area.len() + BASE_NAME.len() <= self.cluster as usize {
            let at = area.len() as u64;
            area.extend(BASE_NAME.as_bytes());
            area[8..16].copy_from_slice(&at.to_be_bytes());
            area[16..20].copy_from_slice(&small(BASE_NAME.len() as u64));
        }
        let start = self.shape.header_length;
        let len = area.len() as u64 - start;
        self.put(0, &area);
        self.mark(start, len, 4);
    }
}
