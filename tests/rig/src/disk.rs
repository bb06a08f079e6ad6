//! What is on the guest's disks: how a template is made, and what every sector must hold after any
//! number of writes. `guest.S` is the other half of this.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

const SECTOR: usize = 512;
/// First of the template's stamped sectors, and the one behind the last.
const TEMPLATE: std::ops::Range<u32> = 2048..18432;
/// First of the sectors that are written to, and the one behind the last. They overlap the end of the
/// template, so that clusters are copied on write.
const WRITES: std::ops::Range<u32> = 14336..22528;
const SPAN: u32 = WRITES.end - WRITES.start;
/// From the place of one write to that of the next; odd, so that all places are used.
const STEP: u32 = 677;
const BOOT: &[u8; SECTOR] = include_bytes!("guest.bin");

/// What a template holds.
#[derive(Debug, Clone, Copy)]
pub struct Template {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Stamped on each of the template's sectors: templates with other tags are other templates.
    pub tag: [u8; 4],
    /// How many disks the guest writes to.
    pub disks: u8,
    /// Writes to each disk in each burst.
    pub burst: u16,
    /// Ticks from one burst to the next; a second has 18.2.
    pub pause: u8,
}

impl Default for Template {
    fn default() -> Self {
        Self { size: 64 << 20, tag: *b"TPL!", disks: 1, burst: 8, pause: 1 }
    }
}

/// The disk that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The one that the guest boots from.
    Boot,
    /// Another one that it writes to, which was empty: the second is number 1.
    Data(u8),
}

impl Template {
    /// Writes the template as a raw image.
    pub fn write(&self, raw: &Path) {
        let mut file = File::create(raw).expect("a template can be made");
        file.write_all(&self.boot_sector()).unwrap();
        file.seek(SeekFrom::Start(u64::from(TEMPLATE.start) * SECTOR as u64)).unwrap();
        let sectors: Vec<u8> = TEMPLATE.flat_map(|sector| self.stamped(sector)).collect();
        file.write_all(&sectors).unwrap();
        file.set_len(self.size).unwrap();
    }

    /// Applies the guest's writes 1 to `last` to a raw image, as if it had run for that long.
    pub fn apply_writes(&self, raw: &Path, last: u32) {
        let mut file = File::options().write(true).open(raw).unwrap();
        for number in 1..=last {
            let sector = place(number);
            file.seek(SeekFrom::Start(u64::from(sector) * SECTOR as u64)).unwrap();
            file.write_all(&written(number, sector, 0x80)).unwrap();
        }
    }

    /// Checks every sector of a raw image against what the highest write on it implies, and returns the
    /// number of that write. The caller compares it with what the guest reported: an image that is
    /// consistently old passes here.
    ///
    /// # Errors
    /// How many sectors are wrong, and the first of them.
    pub fn check(&self, raw: &Path, kind: Kind) -> Result<u32, String> {
        let mut file = File::open(raw).map_err(|e| format!("{}: {e}", raw.display()))?;
        let length = file.seek(SeekFrom::End(0)).unwrap();
        if length != self.size {
            return Err(format!("the disk is {length} bytes long, not {}", self.size));
        }
        let read = |file: &mut File, sectors: std::ops::Range<u32>| {
            let mut bytes = vec![0; (sectors.end - sectors.start) as usize * SECTOR];
            file.seek(SeekFrom::Start(u64::from(sectors.start) * SECTOR as u64)).unwrap();
            file.read_exact(&mut bytes).unwrap();
            bytes
        };
        let used = read(&mut file, 0..WRITES.end);
        let sector = |n: u32| &used[n as usize * SECTOR..][..SECTOR];
        let word = |n: u32, at: usize| {
            u32::from_le_bytes(sector(n)[4 * at..][..4].try_into().expect("four bytes"))
        };
        let writes = WRITES
            .filter(|&n| sector(n)[4..8] == *b"WRT!")
            .map(|n| word(n, 0))
            .max()
            .unwrap_or_default();

        let drive = 0x80 + if let Kind::Data(number) = kind { number } else { 0 };
        // The last write to each sector; number 0 stands for none.
        let mut last = vec![0; SPAN as usize];
        for number in writes.saturating_sub(SPAN - 1).max(1)..=writes {
            last[(place(number) - WRITES.start) as usize] = number;
        }
        let mut wrong = Vec::new();
        let boots = kind == Kind::Boot;
        for n in 0..WRITES.end {
            let number = if WRITES.contains(&n) { last[(n - WRITES.start) as usize] } else { 0 };
            let (expected, what) = if number > 0 {
                (written(number, n, drive), format!("write {number}"))
            } else if boots && n == 0 {
                (self.boot_sector(), "the boot sector".into())
            } else if boots && TEMPLATE.contains(&n) {
                (self.stamped(n), "the template".into())
            } else {
                ([0; SECTOR], "zeros".into())
            };
            if sector(n) != expected {
                wrong.push((n, what, word(n, 0), word(n, 1)));
            }
        }
        if let Some((n, what, number, stamp)) = wrong.first() {
            let stamp = stamp.to_le_bytes();
            return Err(format!(
                "{} sectors are wrong after {writes} writes; the first is {n}, which should hold \
                 {what} and begins with {number:#x} {:?}",
                wrong.len(),
                stamp.escape_ascii().to_string(),
            ));
        }
        rest_is_zero(&mut file, u64::from(WRITES.end) * SECTOR as u64)?;
        Ok(writes)
    }

    fn boot_sector(&self) -> [u8; SECTOR] {
        let mut sector = *BOOT;
        sector[4..6].copy_from_slice(&self.burst.to_le_bytes());
        sector[6] = self.disks;
        sector[7] = self.pause;
        sector[8..12].copy_from_slice(&self.tag);
        sector
    }

    fn stamped(&self, sector: u32) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let mut state = u64::from(sector) << 32 | u64::from(u32::from_le_bytes(self.tag));
        for word in bytes.chunks_exact_mut(8) {
            state ^= state << 13; // xorshift
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        bytes[..4].copy_from_slice(&sector.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.tag);
        bytes
    }
}

/// The sector that a write goes to.
fn place(number: u32) -> u32 {
    WRITES.start + number.wrapping_mul(STEP) % SPAN
}

fn written(number: u32, sector: u32, drive: u8) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for word in bytes.chunks_exact_mut(4) {
        word.copy_from_slice(&number.to_le_bytes());
    }
    bytes[4..8].copy_from_slice(b"WRT!");
    bytes[8..12].copy_from_slice(&sector.to_le_bytes());
    bytes[12..16].copy_from_slice(&u32::from(drive).to_le_bytes());
    bytes
}

fn rest_is_zero(file: &mut File, from: u64) -> Result<(), String> {
    file.seek(SeekFrom::Start(from)).unwrap();
    let mut buffer = vec![0_u8; 1 << 20];
    let zeros = vec![0_u8; 1 << 20];
    let mut at = from;
    loop {
        let n = file.read(&mut buffer).unwrap();
        if n == 0 {
            return Ok(());
        }
        if buffer[..n] != zeros[..n] {
            return Err(format!("there is something in the zeros at {at}"));
        }
        at += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(template: &Template, writes: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        template.write(file.path());
        template.apply_writes(file.path(), writes);
        file
    }

    fn flip(file: &tempfile::NamedTempFile, at: u64) {
        let mut file = File::options().read(true).write(true).open(file.path()).unwrap();
        let mut byte = [0];
        file.seek(SeekFrom::Start(at)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[byte[0] ^ 1]).unwrap();
    }

    const SMALL: Template =
        Template { size: 16 << 20, tag: *b"TPL!", disks: 1, burst: 8, pause: 1 };

    #[test]
    fn what_was_written_is_right() {
        for writes in [0, 1, 500, SPAN, SPAN + 3] {
            let file = image(&SMALL, writes);
            assert_eq!(SMALL.check(file.path(), Kind::Boot), Ok(writes));
        }
    }

    #[test]
    fn one_wrong_bit_anywhere_is_found() {
        let last = u64::from(WRITES.end) * SECTOR as u64;
        for at in
            [0, 600, 2048 * 512 + 77, u64::from(place(9)) * 512 + 300, last + 5, (16 << 20) - 1]
        {
            let file = image(&SMALL, 500);
            flip(&file, at);
            SMALL.check(file.path(), Kind::Boot).expect_err(&format!("the bit at {at}"));
        }
    }

    #[test]
    fn another_template_is_wrong() {
        let file = image(&Template { tag: *b"ELSE", ..SMALL }, 0);
        SMALL.check(file.path(), Kind::Boot).unwrap_err();
    }

    #[test]
    fn the_binary_is_what_the_source_says() {
        let dir = tempfile::tempdir().unwrap();
        let (object, binary) = (dir.path().join("guest.o"), dir.path().join("guest.bin"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/guest.S");
        let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
            let status = std::process::Command::new(program).args(arguments).status();
            status.is_ok_and(|s| s.success())
        };
        if !cfg!(target_arch = "x86_64") || !run("as", &["--version".as_ref()]) {
            println!("SKIPPED: no assembler for x86");
            return;
        }
        assert!(run("as", &["--32".as_ref(), "-o".as_ref(), object.as_ref(), source.as_ref()]));
        let link = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o"];
        let mut arguments: Vec<&std::ffi::OsStr> = link.iter().map(AsRef::as_ref).collect();
        arguments.extend([binary.as_os_str(), object.as_os_str()]);
        assert!(run("ld", &arguments));
        assert_eq!(std::fs::read(binary).unwrap(), BOOT);
    }
}
