//! Each program of `qcow/examples` does what it says.

use std::fs;
use std::path::{Path, PathBuf};

use qcow::{CancelToken, ErrorKind};

/// The programs, each with its `main`, which nothing calls here.
macro_rules! examples {
    ($($name:ident $path:literal;)*) => {
        $(#[path = $path] #[allow(dead_code)] mod $name;)*
    };
}

examples! {
    backup "../../examples/backup.rs";
    bitmap "../../examples/bitmap.rs";
    check_repair "../../examples/check_repair.rs";
    create "../../examples/create.rs";
    errors "../../examples/errors.rs";
    flatten "../../examples/flatten.rs";
    incremental "../../examples/incremental.rs";
    info "../../examples/info.rs";
    io_uring_blocks "../../examples/io_uring.rs";
    own_storage "../../examples/own_storage.rs";
    read_untrusted "../../examples/read_untrusted.rs";
    seek "../../examples/seek.rs";
    snapshot "../../examples/snapshot.rs";
    threads "../../examples/threads.rs";
    tokio_tasks "../../examples/tokio.rs";
}

fn image(name: &str) -> PathBuf {
    fixtures::kept::dir().join(name)
}

/// The disk of a kept image, as a raw file that the example `flatten` and qemu-img agree on.
fn disk(name: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    let mut convert = std::process::Command::new("qemu-img");
    convert.args(["convert", "-U", "-O", "raw"]).arg(image(name)).arg(&raw);
    assert!(convert.status().unwrap().success());
    fs::read(raw).unwrap()
}

#[test]
fn the_readers_read() {
    let expected = disk("chain.qcow2");
    assert_eq!(info::run(&image("chain.qcow2")).unwrap(), 3);
    let bytes = read_untrusted::run(&image("chain.qcow2"), &fixtures::kept::dir()).unwrap();
    assert_eq!(bytes[..], expected[..4096]);
    let elsewhere = read_untrusted::run(&image("chain.qcow2"), Path::new("/proc"));
    assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::Denied);
    let data = expected.iter().filter(|&&byte| byte != 0).count();
    assert_eq!(threads::run(&image("chain.qcow2")).unwrap(), data);
    assert_eq!(own_storage::run(&image("v3.qcow2")).unwrap()[..], disk("v3.qcow2")[..16]);
    let mut disk = std::io::Cursor::new(vec![0; 512]);
    assert!(!seek::has_partition_table(&mut disk).unwrap());
    disk.get_mut()[510..].copy_from_slice(&[0x55, 0xaa]);
    assert!(seek::has_partition_table(&mut disk).unwrap());
}

#[test]
fn the_examples_of_snapshots_and_bitmaps_list_them() {
    let firsts = snapshot::run(&image("snapshots-v3.qcow2")).unwrap();
    assert_eq!(firsts.len(), 2);
    assert_eq!(firsts[0], disk("v3.qcow2")[0], "the first snapshot holds what v3.qcow2 does");
    assert!(bitmap::run(&image("bitmaps.qcow2")).unwrap() > 0);
}

#[test]
fn the_example_of_an_incremental_backup_copies_what_changed_since_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (vm, sunday, monday) = (path("vm.qcow2"), path("sunday.qcow2"), path("monday.qcow2"));
    let qemu = |program: &str, arguments: &[&str], image: &Path| {
        let status = std::process::Command::new(program).args(arguments).arg(image).output();
        assert!(status.unwrap().status.success(), "{program} {arguments:?}");
    };
    fs::copy(image("v3.qcow2"), &vm).unwrap();
    flatten::run(&vm, &sunday, &CancelToken::new()).unwrap();
    use qcow::ops::bitmap::{BitmapAction, BitmapOptions, change_bitmap};
    let add = [BitmapAction::Add { granularity: None }];
    let (options, cancel) = (BitmapOptions::default(), CancelToken::new());
    change_bitmap(&vm, b"since-sunday", &add, &options, &qcow::Silent, &cancel).unwrap();
    qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 9 512 512"], &vm);
    let sunday = sunday.to_str().unwrap();
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", sunday, "-F", "qcow2"], &monday);
    let copied = backup::run(&vm, "since-sunday", &monday).unwrap();
    assert!((512..=1 << 16).contains(&copied), "{copied}");
    let same = ["compare", "-f", "qcow2", "-F", "qcow2", vm.to_str().unwrap()];
    qemu("qemu-img", &same, &monday);
}

#[test]
fn the_writers_write_and_stop_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let base = path("base.qcow2");
    flatten::run(&image("v3.qcow2"), &base, &CancelToken::new()).unwrap();
    create::run(&base, &path("overlay.qcow2"), &path("empty.qcow2")).unwrap();
    assert_eq!(info::run(&path("overlay.qcow2")).unwrap(), 2);
    assert_eq!(info::run(&path("empty.qcow2")).unwrap(), 1);
    // The overlay has nothing of its own yet, and then one cluster.
    assert_eq!(incremental::run(&path("overlay.qcow2"), &path("none.raw")).unwrap(), 0);
    let written = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 7 0 512"])
        .arg(path("overlay.qcow2"))
        .output();
    assert!(written.unwrap().status.success());
    assert!(incremental::run(&path("overlay.qcow2"), &path("some.raw")).unwrap() >= 512);
    assert_eq!(fs::read(path("some.raw")).unwrap()[..512], [7; 512]);

    let cancel = CancelToken::new();
    cancel.cancel();
    let stopped = flatten::run(&path("overlay.qcow2"), &path("stopped.qcow2"), &cancel);
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(!path("stopped.qcow2").exists());
}

#[test]
fn what_is_leaked_is_given_back_if_the_example_may_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("leaks.qcow2");
    fs::copy(image("v3.qcow2"), &path).unwrap();
    assert_eq!(check_repair::run(&path, false).unwrap().leaks, 0);
    // A reference to a cluster that nothing uses: the last one that is counted, counted once more.
    let mut bytes = fs::read(&path).unwrap();
    let number = |at: usize, bytes: &[u8]| {
        usize::try_from(u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
    };
    let block = number(number(48, &bytes), &bytes);
    bytes[block + 1] += 1;
    fs::write(&path, bytes).unwrap();
    let before = fs::read(&path).unwrap();
    assert_eq!(check_repair::run(&path, false).unwrap().leaks, 1);
    assert_eq!(fs::read(&path).unwrap(), before, "a look changes nothing");
    let repaired = check_repair::run(&path, true).unwrap();
    assert_eq!((repaired.leaks, repaired.corruptions), (0, 0));
}

#[test]
fn each_error_leads_somewhere() {
    assert_eq!(errors::run(&image("v3.qcow2")), "use it");
    assert_eq!(errors::run(Path::new("/nowhere/at/all")), "look for the file");
    assert_eq!(errors::run(&image("bad-version.qcow2")), "convert it");
    assert_eq!(errors::run(&image("bad-reftable.qcow2")), "restore it from a backup");
    assert_eq!(errors::run(&image("chain.qcow2")), "do not open it");
}

#[test]
fn a_ring_and_a_runtime_move_the_data_of_a_disk_and_qemu_finds_it() {
    fixtures::needs_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let (base, path) = (dir.path().join("base.qcow2"), dir.path().join("disk.qcow2"));
    let size = 8 << 20;
    fixtures::qemu::create(&base, "", &size.to_string());
    let over = format!("cluster_size=16k,backing_file={},backing_fmt=qcow2", base.display());
    fixtures::qemu::create(&path, &over, &size.to_string());
    let image = path.to_str().unwrap();
    match io_uring_blocks::run(&path, 5000) {
        Ok(written) => {
            assert!(written > 1000);
            let raw = dir.path().join("disk.raw");
            let convert = ["convert", "-O", "raw", image, raw.to_str().unwrap()];
            fixtures::qemu::qemu_img(&convert);
            let bytes = fs::read(raw).unwrap();
            let blocks = bytes.chunks(4096).enumerate();
            let is = |(number, block): &(usize, &[u8])| {
                *block == io_uring_blocks::block(*number as u64 * 4096)
            };
            let found = blocks.clone().filter(is).count();
            let zeros = blocks.filter(|(_, block)| block.iter().all(|byte| *byte == 0)).count();
            assert_eq!(found + zeros, size / 4096);
            // 2,500 writes to 2,048 blocks.
            assert!(found > 1000, "{found}");
        }
        // As in most containers.
        Err(error) if error.to_string().contains("does not allow io_uring") => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("SKIPPED: {error}");
        }
        Err(error) => panic!("{error}"),
    }
    tokio_tasks::run(&path).unwrap();
    fixtures::qemu::qemu_img(&["check", "-q", image]);
    let reads: Vec<String> = (0..16).map(|n| format!("read -P {n} {}k 64k", n * 64)).collect();
    fixtures::qemu::qemu_io("qcow2", &path, &reads);
}
