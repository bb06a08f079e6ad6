//! What is compared and what is not.

use std::path::Path;

use fixtures::{args, needs_qemu, qemu, qemu_img};

use super::{CopyJob, CopyOptions};
use crate::chain::{Chain, OpenOptions};
use crate::format::GuestOffset;
use crate::{CancelToken, Silent};

fn bytes(path: &Path, at: u64) -> [u8; 2] {
    let chain = Chain::open(path, &OpenOptions::default()).unwrap();
    let mut bytes = [0; 2];
    chain.read_at(&mut bytes, GuestOffset(at)).unwrap();
    bytes
}

#[test]
fn of_what_is_dirty_only_what_differs_is_written_and_the_rest_is_not_looked_at() {
    needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
    qemu::create(&source, "", "4M");
    qemu::qemu_io("qcow2", &source, &["write -P 1 0 4M"]);
    qemu_img(&args!["bitmap", "--add", "-g", "65536", source, "b"]);
    qemu_img(&args!["convert", "-O", "qcow2", source, copy]);
    // Dirty and different, dirty and the same, and different where it is not dirty.
    qemu::qemu_io("qcow2", &source, &["write -P 2 1M 64k", "write -P 1 2M 64k"]);
    qemu::qemu_io("qcow2", &copy, &["write -P 9 3M 64k"]);
    let open = OpenOptions::default();
    let chain = Chain::open(&source, &open).unwrap();
    let options = CopyOptions::default().differences(true).dirty_in(Some(b"b".to_vec()));
    let job = CopyJob::into(&chain, &copy, &open, &options).unwrap();
    let outcome = job.run(&Silent, &CancelToken::new()).unwrap();
    assert_eq!((outcome.data_bytes, outcome.zero_bytes), (64 << 10, 0));
    assert!(outcome.not_carried_over.is_empty(), "{:?}", outcome.not_carried_over);
    let found = [1 << 20, 2 << 20, 3 << 20].map(|at| bytes(&copy, at));
    assert_eq!(found, [[2; 2], [1; 2], [9; 2]]);
}
