//! Reading by extents, by slices of them, at random, from many threads and as a stream gives one disk.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use fixtures::kept;
use fixtures::pattern::Random;

use super::{Cursor, ExtentKind, Extents, Reader};
use crate::ErrorKind;
use crate::chain::{Chain, OpenOptions};
use crate::format::GuestOffset;

/// The chains of the images that are kept in git and can be read.
fn chains() -> impl Iterator<Item = Chain> {
    let readable =
        kept::table().into_iter().filter(|row| matches!(row.expected, kept::Expected::Reads(_)));
    readable.map(|row| {
        let snapshot = row.snapshot.clone();
        let options = OpenOptions { snapshot, ..OpenOptions::default() };
        Chain::open(&row.path(), &options).unwrap()
    })
}

fn open(name: &str) -> Chain {
    Chain::open(&kept::dir().join(name), &OpenOptions::default()).unwrap()
}

fn whole(chain: &Chain) -> Vec<u8> {
    let mut reader = chain.reader();
    let mut disk = Vec::new();
    for extent in chain.extents() {
        let extent = extent.unwrap();
        let mut bytes = vec![0xee; extent.len as usize];
        reader.read_extent(&extent, &mut bytes).unwrap();
        disk.extend(bytes);
    }
    assert_eq!(disk.len() as u64, chain.virtual_size());
    disk
}

#[test]
fn chains_are_shared_and_readers_are_sent() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<Chain>();
    shared::<crate::Error>();
    sent::<Reader>();
    sent::<Cursor>();
    sent::<Extents>();
}

#[test]
fn a_buffer_of_another_length_than_the_extent_is_refused() {
    for chain in chains() {
        let mut reader = chain.reader();
        for extent in chain.extents() {
            let extent = extent.unwrap();
            for len in [extent.len - 1, extent.len + 1, 256 << 10] {
                let mut bytes = vec![0xee; len as usize];
                let error = reader.read_extent(&extent, &mut bytes).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
                assert!(bytes.iter().all(|byte| *byte == 0xee), "the buffer was written to");
            }
        }
    }
}

#[test]
fn an_extent_is_read_by_its_own_chain_only() {
    let (one, other) = (open("v3.qcow2"), open("zlib.qcow2"));
    let extent = one.extents().next().unwrap().unwrap();
    let mut bytes = vec![0; extent.len as usize];
    let error = other.reader().read_extent(&extent, &mut bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("another chain"), "{error}");
    one.clone().reader().read_extent(&extent, &mut bytes).unwrap();
    let again = open("v3.qcow2").extents().next().unwrap().unwrap();
    assert_eq!(again, extent, "what is compared is what extents say");
}

#[test]
fn slices_of_extents_read_as_the_whole() {
    for chain in chains() {
        let (mut reader, mut disk) = (chain.reader(), Vec::new());
        for extent in chain.extents() {
            let extent = extent.unwrap();
            let mut at = extent.guest.0;
            while at < extent.end() {
                let piece = extent.slice(at, at + 700);
                assert_eq!(piece.guest.0, at);
                let mut bytes = vec![0xee; piece.len as usize];
                reader.read_extent(&piece, &mut bytes).unwrap();
                disk.extend(bytes);
                at = piece.end();
            }
            assert_eq!(extent.slice(0, u64::MAX), extent);
            assert_eq!(extent.slice(extent.end(), u64::MAX).len, 0);
            assert_eq!(extent.slice(extent.guest.0 + 1, extent.guest.0).len, 0);
        }
        assert!(disk == whole(&chain), "{}", chain.layers()[0].path().display());
    }
}

#[test]
fn random_reads_of_many_threads_give_the_same_disk() {
    for chain in chains() {
        let (disk, size) = (whole(&chain), chain.virtual_size());
        let read = |seed| {
            let (mut reader, mut random) = (chain.reader(), Random::new(seed));
            for _ in 0..100 {
                let at = random.below(size + 1);
                let len = random.below(size - at + 1).min(5000);
                let expected = &disk[at as usize..(at + len) as usize];
                let mut bytes = vec![0xee; len as usize];
                reader.read_at(&mut bytes, GuestOffset(at)).unwrap();
                assert!(bytes == expected, "{len} bytes at {at}");
                bytes.fill(0xee);
                chain.read_at(&mut bytes, GuestOffset(at)).unwrap();
                assert!(bytes == expected, "{len} bytes at {at}");
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|seed| drop(scope.spawn(move || read(seed)))));
    }
}

#[test]
fn a_read_past_the_end_of_the_disk_is_refused() {
    let chain = open("v3.qcow2");
    for at in [chain.virtual_size() - 511, chain.virtual_size(), u64::MAX - 10] {
        let error = chain.read_at(&mut [0; 512], GuestOffset(at)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}

#[test]
fn a_cursor_reads_the_disk_as_a_stream() {
    for chain in chains() {
        let (mut cursor, mut disk) = (chain.cursor(), Vec::new());
        cursor.read_to_end(&mut disk).unwrap();
        assert!(disk == whole(&chain));
        if chain.virtual_size() < 512 {
            continue;
        }
        let mut sector = [0; 512];
        assert_eq!(cursor.seek(SeekFrom::Current(-512)).unwrap(), chain.virtual_size() - 512);
        cursor.read_exact(&mut sector).unwrap();
        assert_eq!(sector, disk[disk.len() - 512..]);
        cursor.seek(SeekFrom::Start(u64::MAX)).unwrap();
        assert_eq!(cursor.read(&mut sector).unwrap(), 0);
        assert!(cursor.seek(SeekFrom::End(i64::MIN)).is_err());
        assert!(cursor.seek(SeekFrom::Current(1)).is_err());
    }
}

#[test]
fn a_damaged_cluster_is_an_error_of_the_stream_that_keeps_its_place() {
    let chain = open("bad-stream.qcow2");
    let mut disk = Vec::new();
    let error = chain.cursor().read_to_end(&mut disk).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    let inner = error.get_ref().unwrap().downcast_ref::<crate::Error>().unwrap();
    assert_eq!(inner.kind(), ErrorKind::Corrupt);
    assert!(
        inner
            .place()
            .file
            .as_deref()
            .is_some_and(|file| Path::new(file).ends_with("bad-stream.qcow2"))
    );
    assert!(
        chain
            .extents()
            .any(|extent| { matches!(extent.unwrap().kind, ExtentKind::Compressed { .. }) })
    );
}
