//! The target for images that are written to: sequences of requests, against an array of bytes.

use arbitrary::{Result, Unstructured};
use qcow::chain::{Chain, Format, OpenOptions};
use qcow::disk::{Disk, WriteOptions};
use qcow::format::GuestOffset;
use qcow::io::Zeroes;
use qcow::ops::check::{CheckOptions, check};
use qcow::{CancelToken, Silent};

use crate::forge;
use crate::images::MOST_BYTES;
use crate::place::Place;

/// Requests in a sequence, at most.
const REQUESTS: usize = 40;
/// Snapshots that are looked at.
const SNAPSHOTS: usize = 4;

/// A request, with the range of the disk that it is for.
#[derive(Debug)]
enum Request {
    Write,
    Vectored,
    Steps,
    Dropped,
    Compressed,
    Zero(Zeroes),
    Discard,
    Flush,
    /// The disk is closed and opened again.
    Again,
    /// The process ends after a flush, and the disk is opened again.
    Killed,
}

/// What is known of an image in use.
struct World<'a> {
    place: &'a Place,
    disk: Disk,
    model: Vec<u8>,
    /// Discarding does something.
    discards: bool,
    data_file: bool,
    /// The process has ended without closing the disk, which may leave leaks.
    killed: bool,
}

fn open(place: &Place) -> qcow::Result<Disk> {
    let options = OpenOptions::default().format(Format::Qcow2);
    Disk::open(&place.top(), &options, WriteOptions::new().table_cache(8 << 10))
}

fn content(place: &Place, snapshot: Option<&str>) -> qcow::Result<Vec<u8>> {
    let options =
        OpenOptions::default().format(Format::Qcow2).snapshot(snapshot.map(str::to_owned));
    let chain = Chain::open(&place.top(), &options)?;
    let mut bytes = vec![0; chain.virtual_size().min(MOST_BYTES) as usize];
    chain.reader().read_at(&mut bytes, GuestOffset(0))?;
    Ok(bytes)
}

/// Corruptions and leaks.
fn found(place: &Place) -> (u64, u64) {
    let options = CheckOptions::default().threads(1);
    let outcome = check(&place.top(), &options, &Silent, &CancelToken::new()).expect("a check");
    (outcome.corruptions + outcome.check_errors, outcome.leaks)
}

/// Writes to a sound image in all ways. What is read is what was written, also by the reader that shares nothing with the
/// writer; the image stays without errors and gets no leaks; its snapshots stay what they are. A damaged one ends
/// orderly.
pub fn writes(data: &[u8]) {
    let (requests, image) = data.split_at(data.len() / 3);
    let mut requests = Unstructured::new(requests);
    let mut choices = Unstructured::new(image);
    let sound = !requests.ratio(1, 4).unwrap_or(false);
    let image = if sound { forge::sound(&mut choices) } else { forge::from_choices(&mut choices) };
    let place = Place::with(&image.bytes);
    let Ok(disk) = open(&place) else { return };
    if disk.size() > MOST_BYTES || disk.size() == 0 {
        return;
    }
    if image.damaged {
        let _ = damaged(&disk, &mut requests);
        let _ = disk.close();
        return;
    }
    drop(disk);
    let chain = Chain::open(&place.top(), &OpenOptions::default().format(Format::Qcow2));
    let chain = chain.expect("what can be written to can be read");
    let top = chain.layers()[0].image().expect("an image");
    let ids = top.snapshots().iter().take(SNAPSHOTS);
    let ids: Vec<String> = ids.filter_map(|s| String::from_utf8(s.id.clone()).ok()).collect();
    let snapshots: Vec<_> = ids.iter().map(|id| content(&place, Some(id)).ok()).collect();
    let version_2 = top.header().version == qcow::format::Version::V2;
    let discards = !(version_2 && chain.layers().len() > 1);
    let data_file = top.has_data_file();
    drop(chain); // Its locks.
    let before = found(&place);
    assert_eq!(before.0, 0, "a sound image");
    let model = content(&place, None).expect("a sound image can be read");
    let disk = open(&place).expect("as before");
    let mut world = World { place: &place, disk, model, discards, data_file, killed: false };
    for _ in 0..REQUESTS {
        if requests.is_empty() {
            break;
        }
        // An error means that there are no more choices.
        let Ok(drawn) = request(&mut requests, world.model.len()) else { break };
        world.run(drawn);
    }
    let mut bytes = vec![0; world.model.len()];
    world.disk.read_at(&mut bytes, 0).expect("a read");
    assert!(bytes == world.model, "what is read is not what was written");
    let killed = world.killed;
    world.disk.close().expect("a close");
    assert!(content(&place, None).expect("a read") == world.model, "another reader");
    for (id, before) in ids.iter().zip(snapshots) {
        assert!(content(&place, Some(id)).ok() == before, "snapshot {id}");
    }
    let after = found(&place);
    assert!(
        after.0 == 0 && (killed || after.1 <= before.1),
        "errors and leaks: {before:?}, then {after:?}"
    );
}

/// A request, where it starts, its length, and a byte.
type Drawn = (Request, usize, usize, u8);

fn request(choices: &mut Unstructured<'_>, size: usize) -> Result<Drawn> {
    let request = match choices.int_in_range(0..=15)? {
        0..=3 => Request::Write,
        4 => Request::Vectored,
        5 | 6 => Request::Steps,
        7 => Request::Dropped,
        8 => Request::Compressed,
        9 => Request::Zero(Zeroes::Keep),
        10 => Request::Zero(Zeroes::Unmap),
        11 | 12 => Request::Discard,
        13 => Request::Flush,
        14 => Request::Again,
        _ => Request::Killed,
    };
    let unit = if choices.ratio(1, 4)? { 1 } else { 512 };
    let at = choices.int_in_range(0..=(size - 1) / unit)? * unit;
    let most = (size - at).min(200 << 10);
    let len = (choices.int_in_range(1..=most.div_ceil(unit))? * unit).min(most);
    Ok((request, at, len, choices.arbitrary()?))
}

impl World<'_> {
    fn run(&mut self, (request, at, len, value): Drawn) {
        let cluster = self.disk.cluster_size().expect("a cluster size");
        let (mut range, mut value) = (at..at + len, value);
        match request {
            Request::Compressed if self.data_file => return,
            Request::Compressed => {
                let start = at / cluster as usize * cluster as usize;
                range = start..self.model.len().min(start + cluster as usize);
            }
            Request::Zero(_) => value = 0,
            Request::Discard => {
                let (size, cluster) = (self.model.len(), cluster as usize);
                let end = if range.end == size { size } else { range.end / cluster * cluster };
                let start = at.next_multiple_of(cluster);
                (range, value) = (start..end.max(start), 0);
                if !self.discards {
                    range = start..start;
                }
            }
            Request::Dropped | Request::Flush | Request::Again | Request::Killed => range = 0..0,
            _ => {}
        }
        let whole = (at as u64, len as u64);
        self.carry_out(&request, whole, range.len(), value).unwrap_or_else(|error| {
            panic!("{request:?} of {len} bytes at {at}: {error}");
        });
        if !range.is_empty() {
            self.model[range].fill(value);
        }
        let mut bytes = vec![0; len];
        self.disk.read_at(&mut bytes, at as u64).expect("a read");
        assert!(bytes == self.model[at..at + len], "{request:?} of {len} bytes at {at}");
    }

    fn carry_out(
        &mut self,
        request: &Request,
        (at, len): (u64, u64),
        changed: usize,
        value: u8,
    ) -> qcow::Result<()> {
        let cluster = self.disk.cluster_size().expect("a cluster size");
        match request {
            Request::Compressed => {
                self.disk.write_compressed(&vec![value; changed], at / cluster * cluster)
            }
            Request::Again | Request::Killed => {
                self.disk.flush()?;
                // Its locks are released before it is opened again.
                let memory = std::sync::Arc::new(qcow::io::MemoryStorage::new(vec![0; 512]));
                let none = Disk::from_storage(memory, Format::Raw, WriteOptions::new())?;
                let disk = std::mem::replace(&mut self.disk, none);
                match request {
                    Request::Again => disk.close()?,
                    _ => {
                        self.killed = true;
                        drop(disk);
                    }
                }
                self.disk = open(self.place)?;
                Ok(())
            }
            request => carry_out(&self.disk, request, (at, len), value),
        }
    }
}

fn carry_out(disk: &Disk, request: &Request, (at, len): (u64, u64), value: u8) -> qcow::Result<()> {
    let bytes = || vec![value; len as usize];
    match request {
        Request::Write => disk.write_at(&bytes(), at),
        Request::Vectored => {
            let bytes = bytes();
            let (first, second) = bytes.split_at(bytes.len() / 3);
            let bufs = [std::io::IoSlice::new(first), std::io::IoSlice::new(second)];
            disk.write_vectored_at(&bufs, at)
        }
        Request::Steps | Request::Dropped => {
            let drop = matches!(request, Request::Dropped);
            let write = disk.prepare_write(at, len)?.expect("nobody else is there");
            for place in write.places().iter().filter(|place| !drop || !place.in_place) {
                let bytes = vec![value; place.len as usize];
                disk.data_storage().write_at(&bytes, place.host.0).expect("a write");
            }
            if drop { Ok(()) } else { write.commit() }
        }
        Request::Zero(how) => disk.write_zeroes(at, len, *how),
        Request::Discard => disk.discard(at, len),
        Request::Compressed => disk.write_compressed(&bytes(), at),
        Request::Flush | Request::Again | Request::Killed => disk.flush(),
    }
}

/// A damaged image is written to: requests may fail.
fn damaged(disk: &Disk, requests: &mut Unstructured<'_>) -> Result<()> {
    for _ in 0..REQUESTS {
        if requests.is_empty() {
            break;
        }
        let (request, at, len, value) = request(requests, disk.size() as usize)?;
        let _ = carry_out(disk, &request, (at as u64, len as u64), value);
        let _ = disk.read_at(&mut vec![0; len], at as u64);
    }
    Ok(())
}
