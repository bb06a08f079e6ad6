//! The libvirt driver and store against two real hosts.
//!
//! | variable | what it is |
//! |---|---|
//! | `QCOWTOOL_TEST_URI_A`, `QCOWTOOL_TEST_URI_B` | the hosts, as this machine reaches them |
//! | `QCOWTOOL_TEST_PEER_B` | B, as A reaches it |
//! | `QCOWTOOL_TEST_DIR_B` | where B's /var/lib/libvirt/images is seen from here |
//! | `QCOWTOOL_TEST_VIRSH_B` | a command: virsh, connected to B |
//! | `QCOWTOOL_TEST_RESTART_B` | a command that restarts B's libvirtd |
//!
//! Both hosts need /var/lib/libvirt/images, and it must not be the same storage. What is not set is skipped.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use migrate::ErrorKind;
use migrate::driver::libvirt::Connection;
use migrate::driver::{Hypervisor, Inventory, JobProgress, MigrateRequest};
use migrate::facts::{Content, DomainState, Identity};
use migrate::plan::Flag;
use migrate::store::libvirt::LibvirtStore;
use migrate::store::{Mode, Store, Wanted};
use qcow::chain::Format;
use qcow::ops::create::{Backing, CreateOptions, create};
use qcow::{CancelToken, Observer, Silent};

const IMAGES: &str = "/var/lib/libvirt/images";

/// One migration at a time: all of them need ports and processors.
static ALONE: Mutex<()> = Mutex::new(());

/// Who restarts a daemon is alone.
static DAEMONS: RwLock<()> = RwLock::new(());

struct Hosts {
    a: Arc<Connection>,
    b: Arc<Connection>,
    at_a: LibvirtStore,
    at_b: LibvirtStore,
    peer_b: String,
    _up: Option<RwLockReadGuard<'static, ()>>,
}

fn hosts() -> Option<Hosts> {
    let up = DAEMONS.read().unwrap_or_else(|poison| poison.into_inner());
    Some(Hosts { _up: Some(up), ..connect()? })
}

fn connect() -> Option<Hosts> {
    let get = |name: &str| std::env::var(name).ok();
    let all = (get("QCOWTOOL_TEST_URI_A"), get("QCOWTOOL_TEST_URI_B"), get("QCOWTOOL_TEST_PEER_B"));
    let (Some(a), Some(b), Some(peer_b)) = all else {
        eprintln!(
            "SKIPPED: QCOWTOOL_TEST_URI_A, QCOWTOOL_TEST_URI_B and QCOWTOOL_TEST_PEER_B are not set"
        );
        return None;
    };
    let open = |uri: &str| Arc::new(Connection::open(uri).unwrap());
    let (a, b) = (open(&a), open(&b));
    let (at_a, at_b) = (LibvirtStore::new(Arc::clone(&a)), LibvirtStore::new(Arc::clone(&b)));
    Some(Hosts { a, b, at_a, at_b, peer_b, _up: None })
}

fn path(name: &str) -> PathBuf {
    Path::new(IMAGES).join(format!("libvirt-hosts-{}-{name}", std::process::id()))
}

/// An image in a temporary file.
fn image(size: u64, backing: Option<(&str, Format)>) -> File {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image");
    let backing = backing.map(|(name, format)| Backing::new(name, format).unchecked(true));
    create(&file, &CreateOptions::default().size(size).backing(backing)).unwrap();
    File::open(file).unwrap()
}

fn put(store: &dyn Store, path: &Path, content: &File, mode: Mode) -> Identity {
    store.put(path, content, mode, &Silent, &CancelToken::new()).unwrap()
}

fn bytes(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Removes what it names when a test ends, however it ends.
struct Leaves<'a>(&'a LibvirtStore, Vec<PathBuf>);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        for path in &self.1 {
            if let Ok(Some(found)) = self.0.look(path) {
                let _ = self.0.remove(path, &found.identity);
            }
        }
    }
}

#[test]
fn two_hosts_are_two() {
    let Some(hosts) = hosts() else { return };
    let (a, b) = (hosts.a.host().unwrap(), hosts.b.host().unwrap());
    assert_ne!(a.uuid.unwrap(), b.uuid.unwrap());
    assert_ne!(a.hostname, b.hostname);
    assert!(a.qemu.unwrap().major >= 6 && b.libvirt.unwrap().major >= 9);
}

#[test]
fn a_file_is_made_read_back_and_removed_once() {
    let Some(hosts) = hosts() else { return };
    let store = &hosts.at_b;
    let path = path("made & <named>.qcow2");
    let _leaves = Leaves(store, vec![path.clone()]);
    assert_eq!(store.look(&path).unwrap(), None);
    let content = image(64 << 20, None);
    let made = put(store, &path, &content, Mode::Private);
    let length = content.metadata().unwrap().len();
    assert_eq!(made.size, length);
    let found = store.look(&path).unwrap().unwrap();
    assert_eq!(found.identity, made);
    let facts = found.image.unwrap();
    assert_eq!((facts.format, facts.virtual_size, found.in_use), (Format::Qcow2, 64 << 20, None));
    assert!(store.list(Path::new(IMAGES), 10_000).unwrap().contains(&path));
    assert_eq!(bytes(&store.fetch(&path, 1 << 20).unwrap()), bytes(&content));
    assert_eq!(store.fetch(&path, length - 1).unwrap_err().kind(), ErrorKind::Refused);
    let again = store.put(&path, &content, Mode::Private, &Silent, &CancelToken::new());
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(store.look(&path).unwrap().unwrap().identity, made);
    assert!(store.remove(&path, &made).unwrap());
    assert!(!store.remove(&path, &made).unwrap());
}

#[test]
fn another_file_of_the_same_name_is_not_removed() {
    let Some(hosts) = hosts() else { return };
    let store = &hosts.at_b;
    let path = path("replaced.qcow2");
    let _leaves = Leaves(store, vec![path.clone()]);
    let first = put(store, &path, &image(64 << 20, None), Mode::Private);
    // Somebody else removes it, and makes another one.
    let other = LibvirtStore::new(Arc::clone(&hosts.b));
    assert!(other.remove(&path, &first).unwrap());
    put(&other, &path, &image(65 << 20, None), Mode::Private);
    let error = store.remove(&path, &first).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(store.look(&path).unwrap().is_some());
}

#[test]
fn holes_are_not_sent_and_stay_holes() {
    let Some(hosts) = hosts() else { return };
    let path = path("sparse.raw");
    let _leaves = Leaves(&hosts.at_b, vec![path.clone()]);
    let content = tempfile::tempfile().unwrap();
    content.set_len(40 << 30).unwrap();
    content.write_all_at(&[1; 1 << 16], 0).unwrap();
    content.write_all_at(&[2; 1 << 16], 20 << 30).unwrap();
    let free = hosts.at_b.available(Path::new(IMAGES)).unwrap();
    let made = put(&hosts.at_b, &path, &content, Mode::ReadOnly);
    assert_eq!(made.size, 40 << 30);
    let after = hosts.at_b.available(Path::new(IMAGES)).unwrap();
    assert!(free.saturating_sub(after) < 1 << 30, "{free} {after}");
    let compare = |file: &File| {
        let mut wanted = Wanted::new("digest");
        wanted.file = Some(file);
        let cancel = CancelToken::new();
        hosts.at_b.same_content(&path, Format::Raw, &wanted, &Silent, &cancel).unwrap()
    };
    let equal = Content::Equal { digest: "digest".into() };
    assert_eq!(compare(&content), equal);
    content.write_all_at(&[3], 30 << 30).unwrap();
    assert_eq!(compare(&content), Content::Different);
    content.write_all_at(&[0], 30 << 30).unwrap();
    assert_eq!(compare(&content), equal);
    content.write_all_at(&[0; 1 << 16], 20 << 30).unwrap();
    assert_eq!(compare(&content), Content::Different);
}

#[test]
fn chains_are_told_by_headers() {
    let Some(hosts) = hosts() else { return };
    let (base, top) = (path("base.qcow2"), path("top.qcow2"));
    let _leaves = Leaves(&hosts.at_b, vec![base.clone(), top.clone()]);
    put(&hosts.at_b, &base, &image(32 << 20, None), Mode::ReadOnly);
    let name = base.file_name().unwrap().to_str().unwrap();
    put(&hosts.at_b, &top, &image(64 << 20, Some((name, Format::Qcow2))), Mode::Private);
    let layers = hosts.at_b.chain(&top, None).unwrap();
    let told: Vec<_> = layers.iter().map(|layer| (&layer.layer.path, layer.virtual_size)).collect();
    assert_eq!(told, [(&top, 64 << 20), (&base, 32 << 20)]);
    assert!(layers.iter().all(|layer| layer.layer.format.as_deref() == Some("qcow2")));
    let error = hosts.at_b.chain(&path("nowhere"), None).unwrap_err();
    assert!(error.message().contains("not there"), "{error}");
}

#[test]
fn a_stopped_transfer_leaves_nothing() {
    struct StopAt(CancelToken);
    impl Observer for StopAt {
        fn progress(&self, done: u64, _: u64) {
            if done > 4 << 20 {
                self.0.cancel();
            }
        }
    }
    let Some(hosts) = hosts() else { return };
    let path = path("stopped.raw");
    let _leaves = Leaves(&hosts.at_b, vec![path.clone()]);
    let mut content = tempfile::tempfile().unwrap();
    content.write_all(&vec![7; 16 << 20]).unwrap();
    let cancel = CancelToken::new();
    let stop = StopAt(cancel.clone());
    let error = hosts.at_b.put(&path, &content, Mode::Private, &stop, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(hosts.at_b.look(&path).unwrap(), None);
}

#[test]
fn a_directory_that_is_not_there_is_told_apart_from_an_empty_one() {
    let Some(hosts) = hosts() else { return };
    let nowhere = Path::new("/nonexistent/directory");
    assert_eq!(hosts.at_b.look(&nowhere.join("x")).unwrap(), None);
    let error = hosts.at_b.available(nowhere).unwrap_err();
    assert!(error.message().contains("no directory"), "{error}");
}

#[test]
fn nothing_that_exists_is_overwritten_even_where_libvirt_does_not_see_it() {
    let Some(hosts) = hosts() else { return };
    let Some(dir) = std::env::var_os("QCOWTOOL_TEST_DIR_B").map(PathBuf::from) else {
        eprintln!(
            "SKIPPED: QCOWTOOL_TEST_DIR_B, where that directory of B is seen from here, is not set"
        );
        return;
    };
    let inside = |path: &Path| dir.join(path.file_name().unwrap());
    let (dangling, directory, pipe) = (path("dangling"), path("directory"), path("pipe"));
    std::os::unix::fs::symlink("/nonexistent", inside(&dangling)).unwrap();
    std::fs::create_dir(inside(&directory)).unwrap();
    let made = std::process::Command::new("mkfifo").arg(inside(&pipe)).status().unwrap();
    let content = image(64 << 20, None);
    let outcomes = [&dangling, &directory, &pipe]
        .map(|path| hosts.at_b.put(path, &content, Mode::Private, &Silent, &CancelToken::new()));
    let looked = hosts.at_b.look(&directory);
    std::fs::remove_file(inside(&dangling)).unwrap();
    std::fs::remove_dir(inside(&directory)).unwrap();
    std::fs::remove_file(inside(&pipe)).unwrap();
    assert!(made.success());
    for outcome in outcomes {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Refused);
    }
    assert!(looked.unwrap_err().message().contains("neither a file"));
}

#[test]
fn a_pool_that_is_defined_but_not_active_is_left_as_it_was() {
    let Some(hosts) = hosts() else { return };
    let Ok(virsh) = std::env::var("QCOWTOOL_TEST_VIRSH_B") else {
        eprintln!("SKIPPED: QCOWTOOL_TEST_VIRSH_B, a command for B, is not set");
        return;
    };
    let virsh = |arguments: &str| {
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("{virsh} {arguments}")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    virsh("pool-define-as qcowtool-sleeping dir --target /var/tmp");
    let store = LibvirtStore::new(Arc::clone(&hosts.b));
    let available = store.available(Path::new("/var/tmp"));
    let during = virsh("pool-list --name --inactive");
    drop(store);
    let after = virsh("pool-list --name --inactive");
    virsh("pool-undefine qcowtool-sleeping");
    assert!(available.unwrap() > 0);
    assert!(!during.contains("sleeping") && after.contains("sleeping"), "{during} {after}");
}

/// A guest on A whose disk of 64 MiB holds 32 MiB of data.
struct Guest<'a> {
    hosts: &'a Hosts,
    uuid: String,
    name: String,
    disk: PathBuf,
}

impl<'a> Guest<'a> {
    fn start(hosts: &'a Hosts, name: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let uuid = format!("deadbeef-0000-4000-8000-{:08x}{count:04x}", std::process::id());
        let disk = path(&format!("{name}.raw"));
        let mut content = tempfile::tempfile().unwrap();
        let noise = |n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 1;
        content.write_all(&(0..32 << 20).map(noise).collect::<Vec<u8>>()).unwrap();
        content.set_len(64 << 20).unwrap();
        put(&hosts.at_a, &disk, &content, Mode::Private);
        let guest = Self { hosts, uuid, name: format!("{name}-{}", std::process::id()), disk };
        let xml = format!(
            "<domain type='qemu'><name>{}</name><uuid>{}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>\
             <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>\
             <source file='{}'/><target dev='vda' bus='virtio'/></disk>\
             <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>",
            guest.name,
            guest.uuid,
            guest.disk.display()
        );
        hosts.a.define(&xml).unwrap();
        hosts.a.start(&guest.uuid).unwrap();
        guest
    }

    /// To a QCOW2 image at `target` on B.
    fn request(&self, target: &Path) -> MigrateRequest {
        let facts = self.hosts.a.domain(&self.uuid).unwrap().unwrap();
        let edit = |xml: &str| {
            let (from, to) = (self.disk.to_str().unwrap(), target.to_str().unwrap());
            xml.replace(from, to).replace("type='raw'", "type='qcow2'")
        };
        MigrateRequest {
            uuid: self.uuid.clone(),
            to: self.hosts.peer_b.clone(),
            flags: vec![
                Flag::Live,
                Flag::PeerToPeer,
                Flag::PersistDest,
                Flag::UndefineSource,
                Flag::NonSharedDisk,
                Flag::ChangeProtection,
                Flag::AbortOnError,
                Flag::Paused,
            ],
            migrate_disks: vec!["vda".into()],
            detect_zeroes: vec!["vda".into()],
            destination_xml: edit(&facts.migratable_xml),
            persistent_xml: Some(edit(&facts.inactive_xml.unwrap())),
            bandwidth_mib: None,
            migrate_uri: None,
            tuning: migrate::plan::Tuning::default(),
        }
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        for host in [&self.hosts.a, &self.hosts.b] {
            if let Ok(Some(state)) = host.state(&self.uuid) {
                if state != DomainState::ShutOff {
                    let _ = host.destroy(&self.uuid);
                }
                let _ = host.undefine(&self.uuid);
            }
        }
    }
}

#[test]
fn a_guest_moves_with_its_disk_and_is_watched() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let Some(hosts) = hosts() else { return };
    let target = path("moves.qcow2");
    let _at_b = Leaves(&hosts.at_b, vec![target.clone()]);
    let _at_a = Leaves(&hosts.at_a, vec![path("moves.raw")]);
    let guest = Guest::start(&hosts, "moves");
    assert_eq!(hosts.a.capacity(&guest.uuid, "vda").unwrap(), 64 << 20);
    assert_eq!(hosts.a.block_job(&guest.uuid, "vda").unwrap(), None);
    assert_eq!(hosts.a.job(&guest.uuid).unwrap(), None);
    assert!(hosts.at_a.look(&guest.disk).unwrap().unwrap().in_use.is_some());
    put(&hosts.at_b, &target, &image(64 << 20, None), Mode::Private);

    let seen = Mutex::new(JobProgress::default());
    let mut request = guest.request(&target);
    request.bandwidth_mib = Some(16);
    hosts.a.migrate(&request, &|now| *seen.lock().unwrap() = *now, &CancelToken::new()).unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.disk_total >= 32 << 20 && seen.disk_processed > 0, "{seen:?}");
    assert_eq!(hosts.a.state(&guest.uuid).unwrap(), None);
    assert_eq!(hosts.b.state(&guest.uuid).unwrap(), Some(DomainState::Paused));
    let facts = hosts.b.domain(&guest.name).unwrap().unwrap();
    let there = target.to_str().unwrap();
    assert!(facts.persistent && facts.live_xml.contains(there));
    assert!(facts.inactive_xml.unwrap().contains(there));
    assert!(hosts.b.paths_in_use().unwrap().contains(&target));
    let in_use = hosts.at_b.look(&target).unwrap().unwrap();
    assert!(in_use.in_use.unwrap().contains(&guest.name));
    let error = hosts.at_b.remove(&target, &in_use.identity).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    hosts.b.resume(&guest.uuid).unwrap();
    assert_eq!(hosts.b.state(&guest.uuid).unwrap(), Some(DomainState::Running));
}

#[test]
fn a_cancelled_migration_leaves_the_guest_and_the_target_can_be_removed() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let Some(hosts) = hosts() else { return };
    let target = path("cancelled.qcow2");
    let _at_b = Leaves(&hosts.at_b, vec![target.clone()]);
    let _at_a = Leaves(&hosts.at_a, vec![path("cancelled.raw")]);
    let guest = Guest::start(&hosts, "cancelled");
    let made = put(&hosts.at_b, &target, &image(64 << 20, None), Mode::Private);

    let cancel = CancelToken::new();
    let mut request = guest.request(&target);
    request.bandwidth_mib = Some(1);
    let watch = |now: &JobProgress| {
        if now.disk_processed > 0 {
            cancel.cancel();
        }
    };
    let error = hosts.a.migrate(&request, &watch, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    assert_eq!(hosts.a.state(&guest.uuid).unwrap(), Some(DomainState::Running));
    assert_eq!(hosts.a.job(&guest.uuid).unwrap(), None);
    hosts.a.abort(&guest.uuid).unwrap();
    settle(|| hosts.b.state(&guest.uuid).unwrap().is_none(), &hosts.b);
    assert_ne!(hosts.at_b.look(&target).unwrap().unwrap().identity, made);
    assert!(hosts.at_b.remove(&target, &made).unwrap());
    assert_eq!(hosts.at_b.look(&target).unwrap(), None);
}

#[test]
fn what_is_wrong_with_a_target_is_told() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let Some(hosts) = hosts() else { return };
    let target = path("size.qcow2");
    let _at_b = Leaves(&hosts.at_b, vec![target.clone()]);
    let _at_a = Leaves(&hosts.at_a, vec![path("size.raw")]);
    let guest = Guest::start(&hosts, "size");
    put(&hosts.at_b, &target, &image(65 << 20, None), Mode::Private);
    let migrate = |request| hosts.a.migrate(&request, &|_| {}, &CancelToken::new()).unwrap_err();
    let error = migrate(guest.request(&target));
    assert!(error.message().contains("the target of disk vda has another size"), "{error}");
    let error = migrate(guest.request(Path::new("/var/tmp/none.qcow2")));
    assert!(error.what_next().is_some_and(|next| next.to_string().contains("prepare")), "{error}");
    let mut nowhere = guest.request(&target);
    nowhere.to = "qemu+tcp://no-such-host.invalid/system".into();
    let error = migrate(nowhere);
    assert!(error.message().contains("name is not known"), "{error}");
    // A stranger of the same name.
    let uuid = format!("00000000-0000-4000-8000-{:012x}", std::process::id());
    let xml = hosts.a.domain(&guest.uuid).unwrap().unwrap().inactive_xml.unwrap();
    hosts.b.define(&xml.replace(&guest.uuid, &uuid)).unwrap();
    let error = migrate(guest.request(&target));
    hosts.b.undefine(&uuid).unwrap();
    assert!(error.message().contains("has a guest of this name"), "{error}");
    assert_eq!(hosts.a.state(&guest.uuid).unwrap(), Some(DomainState::Running));
}

#[test]
fn a_restarted_daemon_is_connected_to_again() {
    let _alone = DAEMONS.write().unwrap_or_else(|poison| poison.into_inner());
    let Some(hosts) = connect() else { return };
    let Ok(restart) = std::env::var("QCOWTOOL_TEST_RESTART_B") else {
        eprintln!("SKIPPED: QCOWTOOL_TEST_RESTART_B is not set");
        return;
    };
    let path = path("restart.qcow2");
    let _leaves = Leaves(&hosts.at_b, vec![path.clone()]);
    let made = put(&hosts.at_b, &path, &image(64 << 20, None), Mode::Private);
    let status = std::process::Command::new("sh").args(["-c", &restart]).status().unwrap();
    assert!(status.success());
    assert_eq!(hosts.at_b.look(&path).unwrap().unwrap().identity, made);
    assert!(hosts.at_b.remove(&path, &made).unwrap());
}

#[test]
fn a_transfer_whose_daemon_goes_away_fails_and_leaves_nothing() {
    struct RestartAt(String, AtomicU64);
    impl Observer for RestartAt {
        fn progress(&self, done: u64, _: u64) {
            if done > 4 << 20 && self.1.fetch_add(1, Ordering::SeqCst) == 0 {
                let status = std::process::Command::new("sh").args(["-c", &self.0]).status();
                assert!(status.unwrap().success());
            }
        }
    }
    let _alone = DAEMONS.write().unwrap_or_else(|poison| poison.into_inner());
    let Some(hosts) = connect() else { return };
    let Ok(restart) = std::env::var("QCOWTOOL_TEST_RESTART_B") else {
        eprintln!("SKIPPED: QCOWTOOL_TEST_RESTART_B is not set");
        return;
    };
    let path = path("daemon.raw");
    let _leaves = Leaves(&hosts.at_b, vec![path.clone()]);
    let mut content = tempfile::tempfile().unwrap();
    content.write_all(&vec![7; 16 << 20]).unwrap();
    let observer = RestartAt(restart, AtomicU64::new(0));
    let put = |observer: &dyn Observer| {
        hosts.at_b.put(&path, &content, Mode::Private, observer, &CancelToken::new())
    };
    let error = put(&observer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert_eq!(hosts.at_b.look(&path).unwrap(), None);
    let made = put(&Silent).unwrap();
    assert!(hosts.at_b.remove(&path, &made).unwrap());
}

fn settle(done: impl Fn() -> bool, host: &Connection) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "it did not come to that");
        host.wait(Duration::from_millis(250));
    }
}
