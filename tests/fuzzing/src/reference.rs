//! A reader of QCOW2 images that is written to be read: the judge of what the engine reads.
//!
//! It shares no code with the engine. The whole file is in memory, nothing is cached, nothing is fast, and
//! every rule stands once, in the order in which the format's description has it. Snapshots and bitmaps
//! are not looked at when an image is opened, so it accepts images whose tables of these the engine refuses.

use std::fmt;
use std::io::Read;

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// Why something cannot be opened or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub &'static str);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

type Result<T> = std::result::Result<T, Refusal>;

fn refuse_if(wrong: bool, why: &'static str) -> Result<()> {
    if wrong { Err(Refusal(why)) } else { Ok(()) }
}

/// `len` bytes of `file` from `at` on; what lies past its end is zeros.
pub fn bytes_at(file: &[u8], at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if let Some(there) = usize::try_from(at).ok().and_then(|at| file.get(at..)) {
        let len = len.min(there.len());
        bytes[..len].copy_from_slice(&there[..len]);
    }
    bytes
}

/// The big-endian number of 16 bits at `at`.
pub fn u16_at(file: &[u8], at: u64) -> u16 {
    u16::from_be_bytes(bytes_at(file, at, 2).try_into().expect("two bytes"))
}

/// The big-endian number of 32 bits at `at`.
pub fn u32_at(file: &[u8], at: u64) -> u32 {
    u32::from_be_bytes(bytes_at(file, at, 4).try_into().expect("four bytes"))
}

/// The big-endian number of 64 bits at `at`.
pub fn u64_at(file: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes_at(file, at, 8).try_into().expect("eight bytes"))
}

/// An image that can be read.
#[derive(Debug, Clone)]
pub struct Image<'a> {
    file: &'a [u8],
    /// Version 2 or 3, the size of clusters, what entries look like.
    pub rules: Rules,
    zstd: bool,
    /// Size of the guest's disk in bytes.
    pub size: u64,
    l1: u64,
    l1_entries: u64,
    /// The backing file's name, if there is one.
    pub backing_name: Option<Vec<u8>>,
    /// The backing file's format, if it is recorded.
    pub backing_format: Option<Vec<u8>>,
    /// The external data file's name, if guest data lives there.
    pub data_file: Option<Vec<u8>>,
}

/// What decides how an entry is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// 2 or 3.
    pub version: u32,
    /// Binary logarithm of the cluster size.
    pub cluster_bits: u32,
    /// Entries of 16 bytes with 32 subclusters.
    pub extended: bool,
    /// Guest data lives in an external data file.
    pub data_file: bool,
}

impl Rules {
    /// Bytes in a cluster.
    pub fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes in an L2 entry.
    pub fn width(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Guest bytes that one L2 table maps.
    pub fn l2_coverage(self) -> u64 {
        self.cluster() / self.width() * self.cluster()
    }

    /// Bytes of the smallest unit that an entry tells apart.
    pub fn unit(self) -> u64 {
        if self.extended { self.cluster() / 32 } else { self.cluster() }
    }
}

/// What an entry says about one unit of its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// The backing file has it.
    Below,
    /// Zeros.
    Zero,
    /// It is data, in the cluster at this host offset.
    Data(u64),
    /// The cluster is compressed: `len` bytes at most, from `host` on.
    Compressed {
        /// Where it starts.
        host: u64,
        /// Upper bound of its length.
        len: u64,
    },
}

/// What an L2 entry says about unit number `unit` of the cluster at guest offset `guest`.
///
/// # Errors
/// For entries that are not understood.
pub fn unit_of(entry: u64, bitmap: u64, rules: Rules, guest: u64, unit: u64) -> Result<Unit> {
    if entry >> 62 & 1 == 1 {
        refuse_if(rules.data_file, "a compressed cluster beside a data file")?;
        let offset_bits = 62 - (rules.cluster_bits - 8);
        let host = entry & ((1 << offset_bits) - 1);
        let more_sectors = (entry & ((1 << 62) - 1)) >> offset_bits;
        return Ok(Unit::Compressed { host, len: (more_sectors + 1) * 512 - host % 512 });
    }
    let copied = entry >> 63 == 1;
    let host = entry & 0x00ff_ffff_ffff_fe00;
    let aligned = host.is_multiple_of(rules.cluster());
    let allocated = host != 0 || (rules.data_file && copied);
    let in_its_place = !rules.data_file || !allocated || host == guest;
    if rules.extended {
        let (data, zero) = (bitmap & 0xffff_ffff, bitmap >> 32);
        refuse_if(data & zero != 0, "a subcluster that is both allocated and zero")?;
        refuse_if(data != 0 && !allocated, "subclusters without a cluster")?;
        refuse_if(!aligned, "a cluster that is not aligned")?;
        refuse_if(!in_its_place, "a cluster of a data file that is not at its guest offset")?;
        return Ok(match (data >> unit & 1, zero >> unit & 1) {
            (_, 1) => Unit::Zero,
            (1, _) => Unit::Data(host),
            _ => Unit::Below,
        });
    }
    if entry & 1 == 1 {
        refuse_if(rules.version == 2, "a zero flag in version 2")?;
        refuse_if(!aligned, "a cluster that is not aligned")?;
        let kept = host != 0;
        refuse_if(kept && !in_its_place, "a cluster of a data file that is not at its offset")?;
        return Ok(Unit::Zero);
    }
    if !allocated {
        return Ok(Unit::Below);
    }
    refuse_if(!aligned, "a cluster that is not aligned")?;
    refuse_if(!in_its_place, "a cluster of a data file that is not at its guest offset")?;
    Ok(Unit::Data(host))
}

const LARGEST_FILE: u64 = (1 << 63) - 1;
/// Tables that are read must start and end before this.
const MAX_FILE_OFFSET: u64 = (1 << 63) - (1 << 30);

fn check_table(offset: u64, len: Option<u64>, most: u64, cluster: u64) -> Result<()> {
    let end = len.and_then(|len| len.checked_add(offset));
    refuse_if(len.is_none_or(|len| len > most), "a table is too long")?;
    refuse_if(end.is_none_or(|end| end > LARGEST_FILE), "a table ends beyond 2^63")?;
    refuse_if(!offset.is_multiple_of(cluster), "a table is not aligned")
}

impl<'a> Image<'a> {
    /// Opens an image, without its snapshots and bitmaps.
    ///
    /// # Errors
    /// If QEMU would not open it, and if it is encrypted.
    pub fn open(file: &'a [u8]) -> Result<Self> {
        refuse_if(u32_at(file, 0) != 0x5146_49fb, "the magic is wrong")?;
        let version = u32_at(file, 4);
        refuse_if(version != 2 && version != 3, "the version is unknown")?;
        let cluster_bits = u32_at(file, 20);
        refuse_if(!(9..=21).contains(&cluster_bits), "cluster_bits is out of range")?;
        let cluster = 1u64 << cluster_bits;

        // Version 2 ends at byte 72, whatever follows.
        let v3 = version == 3;
        let header_length = if v3 { u64::from(u32_at(file, 100)) } else { 72 };
        refuse_if(v3 && header_length < 104, "the header is too short")?;
        refuse_if(header_length > cluster, "the header is longer than a cluster")?;
        let backing_offset = u64_at(file, 8);
        refuse_if(backing_offset > cluster, "the backing name is past the first cluster")?;

        let incompatible = if v3 { u64_at(file, 72) } else { 0 };
        let autoclear = if v3 { u64_at(file, 88) } else { 0 };
        refuse_if(incompatible & !0x1f != 0, "unknown incompatible features")?;
        let compression = if v3 && header_length > 104 { bytes_at(file, 104, 1)[0] } else { 0 };
        refuse_if(compression > 1, "the compression type is unknown")?;
        refuse_if(
            (incompatible >> 3 & 1 == 1) != (compression != 0),
            "the compression type and its bit disagree",
        )?;
        let extended = incompatible >> 4 & 1 == 1;
        refuse_if(extended && cluster_bits < 14, "subclusters of less than 512 bytes")?;
        refuse_if(v3 && u32_at(file, 96) > 6, "the refcounts are too wide")?;
        refuse_if(u32_at(file, 32) != 0, "it is encrypted")?;

        let size = u64_at(file, 24);
        let l1_entries = u64::from(u32_at(file, 36));
        let (l1, refcounts, snapshots) = (u64_at(file, 40), u64_at(file, 48), u64_at(file, 64));
        let refcount_clusters = u64::from(u32_at(file, 56));
        refuse_if(refcount_clusters == 0, "there is no refcount table")?;
        check_table(refcounts, refcount_clusters.checked_mul(cluster), 8 << 20, cluster)?;
        // An entry has at least 40 bytes.
        check_table(snapshots, Some(u64::from(u32_at(file, 60)) * 40), 65_536 * 40, cluster)?;
        check_table(l1, Some(l1_entries * 8), 32 << 20, cluster)?;
        refuse_if(l1 + l1_entries * 8 > MAX_FILE_OFFSET, "the L1 table is past any file")?;

        let data_file = incompatible >> 2 & 1 == 1;
        let rules = Rules { version, cluster_bits, extended, data_file };
        refuse_if(l1_entries < size.div_ceil(rules.l2_coverage()), "the L1 table is too short")?;

        let mut image = Self {
            file,
            rules,
            zstd: compression == 1,
            size: size / 512 * 512,
            l1,
            l1_entries,
            backing_name: None,
            backing_format: None,
            data_file: None,
        };
        let area_end = if backing_offset == 0 { cluster } else { backing_offset };
        let mut data_file_name = Vec::new();
        image.extensions(header_length, area_end, &mut data_file_name)?;

        if backing_offset != 0 {
            let len = u64::from(u32_at(file, 16));
            refuse_if(len > 1023.min(cluster - backing_offset), "the backing name is too long")?;
            let name = until_nul(bytes_at(file, backing_offset, len as usize));
            image.backing_name = Some(name).filter(|name| !name.is_empty());
        }
        refuse_if(data_file && data_file_name.is_empty(), "the data file has no name")?;
        refuse_if(autoclear >> 1 & 1 == 1 && !data_file, "a raw data file, but there is none")?;
        image.data_file = data_file.then_some(data_file_name);
        Ok(image)
    }

    fn extensions(&mut self, start: u64, end: u64, data_file_name: &mut Vec<u8>) -> Result<()> {
        let mut at = start;
        while at < end {
            refuse_if(end - at < 8, "an extension is cut short")?;
            let (magic, len) = (u32_at(self.file, at), u64::from(u32_at(self.file, at + 4)));
            refuse_if(len > end - at - 8, "an extension runs over its area")?;
            if magic == 0 {
                break;
            }
            let data = bytes_at(self.file, at + 8, len as usize);
            match magic {
                0xe279_2aca => {
                    refuse_if(len > 15, "the backing format is too long")?;
                    self.backing_format = Some(until_nul(data)).filter(|name| !name.is_empty());
                }
                0x2385_2875 => refuse_if(len != 24, "the bitmaps extension's length")?,
                0x0537_be77 => return Err(Refusal("an encryption header")),
                0x4441_5441 => *data_file_name = until_nul(data),
                _ => {}
            }
            at += 8 + len.div_ceil(8) * 8;
        }
        Ok(())
    }

    /// The same image with the L1 table that a snapshot has.
    pub fn with_l1(mut self, offset: u64, entries: u64) -> Self {
        (self.l1, self.l1_entries) = (offset, entries);
        self
    }

    /// What the tables say about the unit that holds guest offset `guest`.
    ///
    /// # Errors
    /// For entries that are not understood.
    pub fn unit_at(&self, guest: u64) -> Result<Unit> {
        let rules = self.rules;
        let index = guest / rules.l2_coverage();
        if index >= self.l1_entries {
            return Ok(Unit::Below);
        }
        let table = u64_at(self.file, self.l1 + index * 8) & 0x00ff_ffff_ffff_fe00;
        if table == 0 {
            return Ok(Unit::Below);
        }
        refuse_if(!table.is_multiple_of(rules.cluster()), "an L2 table that is not aligned")?;
        let at = table + guest % rules.l2_coverage() / rules.cluster() * rules.width();
        let entry = u64_at(self.file, at);
        let bitmap = if rules.extended { u64_at(self.file, at + 8) } else { 0 };
        let in_cluster = guest % rules.cluster();
        unit_of(entry, bitmap, rules, guest - in_cluster, in_cluster / rules.unit())
    }

    fn decompressed(&self, host: u64, len: u64) -> Result<Vec<u8>> {
        let input = bytes_at(self.file, host, usize::try_from(len).expect("two clusters at most"));
        decompress(&input, 1 << self.rules.cluster_bits, self.zstd)
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
    bytes
}

/// One cluster out of a compressed one.
///
/// # Errors
/// If the data is damaged or is not enough; for zstd also if a frame goes on past the cluster.
pub fn decompress(input: &[u8], cluster: usize, zstd: bool) -> Result<Vec<u8>> {
    let mut output = vec![0; cluster];
    if !zstd {
        let mut inflate = flate2::read::DeflateDecoder::new(input);
        inflate.read_exact(&mut output).map_err(|_| Refusal("a broken deflate stream"))?;
        return Ok(output);
    }
    let mut decoder = Decoder::new().expect("a zstd context");
    let mut to_read = InBuffer::around(input);
    let mut to_fill = OutBuffer::around(&mut output[..]);
    let mut missing = 0;
    while to_fill.pos() < cluster {
        let before = (to_read.pos(), to_fill.pos());
        missing = decoder.run(&mut to_read, &mut to_fill).map_err(|_| Refusal("a broken frame"))?;
        refuse_if(before == (to_read.pos(), to_fill.pos()), "the frames end too early")?;
    }
    refuse_if(missing != 0, "a frame goes on past the cluster")?;
    Ok(output)
}

/// One image of a chain.
#[derive(Debug, Clone)]
pub enum Layer<'a> {
    /// A raw file.
    Raw(&'a [u8]),
    /// A QCOW2 image, and its data file if it has one.
    Qcow2(Image<'a>, Option<&'a [u8]>),
}

impl Layer<'_> {
    /// Size of the layer's disk in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Raw(file) => (file.len() as u64).div_ceil(512) * 512,
            Self::Qcow2(image, _) => image.size,
        }
    }
}

/// `len` bytes of the guest's disk at `guest`, through `layers`, the uppermost first.
///
/// # Errors
/// If any of it cannot be read.
pub fn read(layers: &[Layer<'_>], guest: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let end = guest + len;
    let mut at = guest;
    while at < end {
        let Some((layer, below)) = layers.split_first() else {
            bytes.resize(len as usize, 0);
            break;
        };
        // Past the end of a layer there are zeros, whatever lies below.
        if at >= layer.size() {
            bytes.resize(len as usize, 0);
            break;
        }
        let Layer::Qcow2(image, data) = layer else {
            let Layer::Raw(file) = layer else { unreachable!() };
            let now = end.min(layer.size()) - at;
            bytes.extend(bytes_at(file, at, now as usize));
            at += now;
            continue;
        };
        let unit_end = (at / image.rules.unit() + 1) * image.rules.unit();
        let now = (unit_end.min(end).min(image.size) - at) as usize;
        let in_cluster = at % image.rules.cluster();
        match image.unit_at(at)? {
            Unit::Below => bytes.extend(read(below, at, now as u64)?),
            Unit::Zero => bytes.resize(bytes.len() + now, 0),
            Unit::Data(host) => {
                let file = data.unwrap_or(image.file);
                bytes.extend(bytes_at(file, host + in_cluster, now));
            }
            Unit::Compressed { host, len } => {
                let cluster = image.decompressed(host, len)?;
                bytes.extend(&cluster[in_cluster as usize..][..now]);
            }
        }
        at += now as u64;
    }
    Ok(bytes)
}
