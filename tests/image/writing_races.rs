//! Faults of QEMU 10.0.2's writer, each of which loses or mixes guests' bytes: first shown with `qemu-io`, so that the
//! test is known to see it, then looked for in ours. Two requests meet on one cluster, or a process dies where
//! the space of one cluster was given to another.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::qcowtool;
use fixtures::{Scratch, args, needs_qemu, qemu};
use qcow::chain::Format;
use qcow::disk::{Disk, WriteOptions};
use qcow::io::{Capabilities, MemoryStorage, Storage, WriteStorage, Zeroes};

const CLUSTER: u64 = 64 << 10;

/// Requests that `qemu-io` stops where it is told to. Its complaints are the fault that is looked for.
fn suspended(image: &Path, options: &[&str], commands: &[&str]) -> String {
    let mut arguments = args!["-t", "writeback"];
    arguments.extend(options.iter().map(Into::into));
    arguments.extend(commands.iter().flat_map(|command| args!["-c", command]));
    arguments.push(format!("blkdebug::{}", image.display()).into());
    let run = Command::new("qemu-io").args(arguments).output().unwrap();
    String::from_utf8_lossy(&run.stdout).into_owned()
}

fn check_code(image: &Path) -> Option<i32> {
    let run = Command::new("qemu-img").args(args!["check", "-q", image]).output().unwrap();
    run.status.code()
}

/// The values that the first cluster of the disk has, as QEMU reads it.
fn first_cluster(image: &Path) -> Vec<u8> {
    let mut bytes = qemu::raw_of("qcow2", image);
    bytes.truncate(CLUSTER as usize);
    bytes.dedup();
    bytes
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Call {
    Read,
    Write,
}

/// A storage in memory, one call of which waits until it is let go.
#[derive(Debug)]
struct Waiting {
    bytes: MemoryStorage,
    /// Which call waits: the next one of at least a sector.
    call: Call,
    armed: AtomicBool,
    reached: SyncSender<()>,
    go: Mutex<Receiver<()>>,
}

/// The other ends.
struct Handle {
    reached: Receiver<()>,
    go: SyncSender<()>,
}

impl Waiting {
    fn new(bytes: Vec<u8>, call: Call) -> (Arc<Self>, Handle) {
        let (reached, is_reached) = sync_channel(1);
        let (let_go, go) = sync_channel(1);
        let (bytes, armed, go) =
            (MemoryStorage::new(bytes), AtomicBool::new(false), Mutex::new(go));
        let storage = Self { bytes, call, armed, reached, go };
        (Arc::new(storage), Handle { reached: is_reached, go: let_go })
    }

    fn meet(&self, call: Call, len: usize) {
        if call == self.call && len >= 512 && self.armed.swap(false, SeqCst) {
            self.reached.send(()).unwrap();
            self.go.lock().unwrap().recv().unwrap();
        }
    }
}

impl Storage for Waiting {
    fn len(&self) -> u64 {
        self.bytes.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.meet(Call::Read, buf.len());
        self.bytes.read_at(buf, offset)
    }
}

impl WriteStorage for Waiting {
    fn capabilities(&self) -> Capabilities {
        self.bytes.capabilities()
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.meet(Call::Write, bytes.len());
        self.bytes.write_at(bytes, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64, how: Zeroes) -> std::io::Result<()> {
        self.bytes.write_zeroes(offset, len, how)
    }

    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.bytes.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.bytes.set_len(len)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.bytes.sync()
    }
}

/// Makes `first` wait in the middle of a request, and does `then` meanwhile, as far as it is let.
fn meanwhile<T: Send>(
    storage: &Waiting,
    handle: Handle,
    first: impl FnOnce() -> T + Send,
    then: impl FnOnce() + Send,
) -> T {
    std::thread::scope(|scope| {
        storage.armed.store(true, SeqCst);
        let first = scope.spawn(first);
        handle.reached.recv().unwrap();
        let (done, is_done) = sync_channel(1);
        let then = scope.spawn(move || {
            then();
            let _ = done.send(());
        });
        // It may have to wait for the first request: that is one good answer.
        let _ = is_done.recv_timeout(Duration::from_millis(200));
        handle.go.send(()).unwrap();
        then.join().unwrap();
        first.join().unwrap()
    })
}

/// W-01: a write that was given the cluster, and a discard that frees it before it is linked.
#[test]
fn a_write_and_a_discard_of_one_cluster_do_not_leave_it_to_two() {
    needs_qemu!();
    let scratch = Scratch::new();
    let made = || {
        let image = scratch.path("image.qcow2");
        qemu::create(&image, "", "4M");
        qemu::qemu_io("qcow2", &image, &["write -P 9 0 64k", "write -z 0 64k"]);
        image
    };
    let image = made();
    let commands = [
        "break write_aio A",
        "aio_write -P 1 0 64k",
        "wait_break A",
        "discard 0 64k",
        "resume A",
        "aio_flush",
        "write -P 2 1M 64k",
    ];
    suspended(&image, &[], &commands);
    assert_eq!(
        (check_code(&image), first_cluster(&image)),
        (Some(2), vec![2]),
        "QEMU has the fault"
    );

    let image = made();
    let (storage, handle) = Waiting::new(fs::read(&image).unwrap(), Call::Write);
    let disk = Disk::from_storage(storage.clone(), Format::Qcow2, WriteOptions::new()).unwrap();
    disk.read_at(&mut [0; 512], 0).unwrap();
    let write = || disk.write_at(&[1; CLUSTER as usize], 0).unwrap();
    meanwhile(&storage, handle, write, || disk.discard(0, CLUSTER).unwrap());
    disk.write_at(&[2; CLUSTER as usize], 1 << 20).unwrap();
    disk.close().unwrap();
    fs::write(&image, storage.bytes.bytes()).unwrap();
    qemu::assert_clean(&image);
    let found = first_cluster(&image);
    assert!(found == [1] || found == [0], "{found:?}");
}

/// W-02: a read that has looked up its place, which is then freed and given to another cluster.
#[test]
fn a_read_does_not_find_what_was_written_to_another_cluster() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("image.qcow2");
    qemu::create(&image, "", "4M");
    qemu::qemu_io("qcow2", &image, &["write -P 1 0 64k"]);
    let bytes = fs::read(&image).unwrap();
    let commands = [
        "break read_aio A",
        "aio_read -v 0 16",
        "wait_break A",
        "discard 0 64k",
        "write -P 2 1M 64k",
        "resume A",
        "aio_flush",
    ];
    let text = suspended(&image, &[], &commands);
    assert!(text.contains("00000000:  02 02 02"), "QEMU has the fault: {text}");

    let (storage, handle) = Waiting::new(bytes, Call::Read);
    let disk = Disk::from_storage(storage.clone(), Format::Qcow2, WriteOptions::new()).unwrap();
    // From now on the tables are in memory.
    disk.read_at(&mut [0; 512], 1 << 20).unwrap();
    let mut found = vec![0; CLUSTER as usize];
    let read = || {
        disk.read_at(&mut found, 0).unwrap();
        found.dedup();
        found
    };
    let found = meanwhile(&storage, handle, read, || {
        disk.discard(0, CLUSTER).unwrap();
        for round in 0..4 {
            disk.write_at(&[2; CLUSTER as usize], (1 << 20) + round * CLUSTER).unwrap();
            disk.flush().unwrap();
        }
    });
    assert!(found == [1] || found == [0], "{found:?}");
    disk.close().unwrap();
    fs::write(&image, storage.bytes.bytes()).unwrap();
    qemu::assert_clean(&image);
}

/// W-03: the space that a cluster gave up is written to again before its entry on disk says that it gave it up, and
/// then the process dies.
#[test]
fn space_is_not_used_again_before_it_is_durably_given_up() {
    needs_qemu!();
    let scratch = Scratch::new();
    let made = || {
        let image = scratch.path("image.qcow2");
        qemu::create(&image, "", "4M");
        qemu::qemu_io("qcow2", &image, &["write -P 7 0 64k"]);
        image
    };
    let image = made();
    let commands = [
        "write -z -u 0 64k",
        "break l2_update A",
        "aio_write -P 2 2M 64k",
        "wait_break A",
        // The process ends as if it was killed.
        "sigraise 9",
    ];
    suspended(&image, &["-d", "unmap"], &commands);
    assert_eq!(first_cluster(&image), [2], "QEMU has the fault");

    let image = made();
    let storage = Arc::new(MemoryStorage::new(fs::read(&image).unwrap()));
    let disk = Disk::from_storage(storage.clone(), Format::Qcow2, WriteOptions::new()).unwrap();
    disk.discard(0, CLUSTER).unwrap();
    disk.write_at(&[2; CLUSTER as usize], 2 << 20).unwrap();
    // What a process that was killed here would have handed to the system.
    fs::write(&image, storage.bytes()).unwrap();
    drop(disk);
    let found = first_cluster(&image);
    assert!(found == [7] || found == [0], "{found:?}");
    let run = qcowtool(args!["check", image]);
    assert!(matches!(run.code(), Some(0 | 3)), "{}{}", run.stdout(), run.stderr());
}
