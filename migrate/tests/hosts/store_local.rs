//! The files of a host: what is put there, what is refused, and what can be removed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::store_common::{Host, Stopper, bytes_of, noise, sparse, tree_hash};
use fixtures::{Holder, Scratch, args, needs_qemu, qemu_img, raw_of};
use migrate::ErrorKind;
use migrate::facts::{Content, Identity};
use migrate::store::{LocalStore, Mode, Store, Wanted};
use proptest::prelude::*;
use qcow::chain::Format;
use qcow::{CancelToken, Observer, Silent};

#[test]
fn what_was_put_is_whole_private_and_sparse() {
    let host = Host::new();
    let data = [(3 << 20, noise(1, 70_000)), (40 << 20, noise(2, 5000))];
    let content = sparse(64 << 20, &data);
    let made = host.put("/images/disk", &content).unwrap();
    let file = File::open(host.real("/images/disk")).unwrap();
    let status = file.metadata().unwrap();
    assert_eq!(bytes_of(&file), bytes_of(&content));
    assert_eq!(status.mode() & 0o7777, 0o600);
    assert!(status.blocks() * 512 < 1 << 20, "{} blocks", status.blocks());
    let found = host.store.look(Path::new("/images/disk")).unwrap().unwrap();
    assert_eq!(made, found.identity);
    assert_eq!((made.device, made.inode), (Some(status.dev()), Some(status.ino())));
    assert_eq!(host.names(), ["disk"], "no temporary file is left");
}

#[test]
fn a_base_is_read_only_for_everybody() {
    let host = Host::new();
    let content = sparse(4096, &[(0, b"base".to_vec())]);
    let path = Path::new("/images/base");
    host.store.put(path, &content, Mode::ReadOnly, &Silent, &CancelToken::new()).unwrap();
    let status = fs::metadata(host.real("/images/base")).unwrap();
    assert_eq!(status.mode() & 0o7777, 0o444);
}

#[test]
fn nothing_that_exists_is_written_to() {
    let host = Host::new();
    let content = sparse(4096, &[(0, b"new".to_vec())]);
    fs::write(host.real("/images/disk"), "theirs").unwrap();
    symlink("/images/elsewhere", host.real("/images/link")).unwrap();
    for path in ["/images/disk", "/images/link"] {
        let error = host.put(path, &content).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    }
    assert_eq!(fs::read(host.real("/images/disk")).unwrap(), b"theirs");
    assert_eq!(host.names(), ["disk", "link"]);
}

/// Takes the name at the last moment.
struct Thief(PathBuf);

impl Observer for Thief {
    fn progress(&self, _done: u64, _total: u64) {
        fs::write(&self.0, "theirs").unwrap();
    }
}

#[test]
fn a_name_that_is_taken_meanwhile_is_not_replaced() {
    let host = Host::new();
    let content = sparse(4096, &[(0, b"new".to_vec())]);
    let thief = Thief(host.real("/images/disk"));
    let path = Path::new("/images/disk");
    let error =
        host.store.put(path, &content, Mode::Private, &thief, &CancelToken::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert_eq!(fs::read(host.real("/images/disk")).unwrap(), b"theirs");
    assert_eq!(host.names(), ["disk"]);
}

#[test]
fn a_put_that_is_stopped_leaves_nothing() {
    let host = Host::new();
    let content = sparse(8 << 20, &[(0, noise(3, 8 << 20))]);
    let cancel = CancelToken::new();
    let stopper = Stopper(cancel.clone());
    let path = Path::new("/images/disk");
    let error = host.store.put(path, &content, Mode::Private, &stopper, &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert!(host.names().is_empty(), "{:?}", host.names());
}

#[test]
fn tricks_at_the_temporary_name_are_refused() {
    let content = sparse(4096, &[(0, b"new".to_vec())]);
    let victim = |host: &Host| {
        fs::write(host.real("/images/victim"), "theirs").unwrap();
        host.real("/images/victim")
    };
    type Trick = fn(&Path, &Path);
    let tricks: [(&str, Trick); 4] = [
        ("symlink", |_, at| symlink("victim", at).unwrap()),
        ("hard link", |victim, at| fs::hard_link(victim, at).unwrap()),
        ("fifo", |_, at| {
            assert!(Command::new("mkfifo").arg(at).status().unwrap().success());
        }),
        ("writable by others", |_, at| {
            fs::write(at, "theirs").unwrap();
            fs::set_permissions(at, fs::Permissions::from_mode(0o666)).unwrap();
        }),
    ];
    for (name, trick) in tricks {
        let host = Host::new();
        let victim = victim(&host);
        let at = host.store.temporary(Path::new("/images/disk"), &content).unwrap().unwrap();
        trick(&victim, &host.real(at));
        host.put("/images/disk", &content).expect_err(name);
        assert_eq!(fs::read(&victim).unwrap(), b"theirs", "{name}");
        assert!(!host.real("/images/disk").exists(), "{name}");
    }
}

#[test]
fn two_do_not_make_one_file_at_once() {
    struct Second<'a>(&'a Host, &'a File);
    impl Observer for Second<'_> {
        fn progress(&self, _done: u64, _total: u64) {
            let error = self.0.put("/images/disk", self.1).unwrap_err();
            assert!(error.to_string().contains("another process is writing it"), "{error}");
        }
    }
    let host = Host::new();
    let content = sparse(3 << 20, &[(0, noise(3, 3 << 20))]);
    let second = Second(&host, &content);
    let path = Path::new("/images/disk");
    host.store.put(path, &content, Mode::Private, &second, &CancelToken::new()).unwrap();
    assert_eq!(fs::read(host.real("/images/disk")).unwrap(), bytes_of(&content));
}

#[test]
fn nothing_outside_the_root_can_be_reached() {
    let host = Host::new();
    let outside = host.dir.path().join("secret");
    fs::write(&outside, "secret").unwrap();
    symlink(host.dir.path(), host.real("/images/up")).unwrap();
    symlink("../../..", host.real("/images/dots")).unwrap();
    symlink("/proc/self/cwd", host.real("/images/magic")).unwrap();
    let content = sparse(4096, &[(0, b"new".to_vec())]);
    for path in [
        "/../secret",
        "/images/../../secret",
        "/images/up/secret",
        "/images/dots/secret",
        "/images/magic/secret",
        "secret",
        "../secret",
    ] {
        let found = host.store.look(Path::new(path));
        assert!(!matches!(found, Ok(Some(_))), "{path}: {found:?}");
        assert!(host.store.fetch(Path::new(path), 1 << 20).is_err(), "{path}");
        let _ = host.store.remove(Path::new(path), &host_identity(&outside));
        let _ = host.put(&format!("{path}.new"), &content);
    }
    assert_eq!(fs::read(&outside).unwrap(), b"secret");
    let mut around: Vec<_> =
        fs::read_dir(host.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    around.sort();
    assert_eq!(around, ["host", "secret"]);
}

fn host_identity(path: &Path) -> Identity {
    LocalStore::new(Path::new("/")).unwrap().look(path).unwrap().unwrap().identity
}

#[test]
fn what_is_no_file_is_reported_and_not_opened() {
    let host = Host::new();
    fs::write(host.real("/images/file"), "x").unwrap();
    symlink("file", host.real("/images/link")).unwrap();
    assert!(Command::new("mkfifo").arg(host.real("/images/fifo")).status().unwrap().success());
    for (path, word) in
        [("/images/link", "symbolic link"), ("/images/fifo", "fifo"), ("/images", "directory")]
    {
        let error = host.store.look(Path::new(path)).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(host.store.look(Path::new("/images/none")).unwrap(), None);
    assert_eq!(host.store.look(Path::new("/none/none")).unwrap(), None);
    let listed = host.store.list(Path::new("/images"), 10).unwrap();
    assert_eq!(listed, [Path::new("/images/file")]);
}

/// The usual name of a volume is a link to its device. That it leads to one is tried by `tests/migration/volumes.rs`.
#[test]
fn a_link_among_devices_leads_to_a_device_or_nowhere() {
    let host = Host::new();
    fs::create_dir_all(host.real("/dev/vg")).unwrap();
    fs::write(host.real("/images/file"), "x").unwrap();
    for target in ["../../images/file", "../../images", "../gone", "web"] {
        let link = host.real("/dev/vg/web");
        let _ = fs::remove_file(&link);
        symlink(target, &link).unwrap();
        let error = host.store.look(Path::new("/dev/vg/web")).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
    }
}

#[test]
fn free_space_is_told_only_where_files_can_be_made() {
    let host = Host::new();
    assert!(host.store.available(Path::new("/images")).unwrap() > 0);
    fs::write(host.real("/images/file"), "x").unwrap();
    assert!(host.store.available(Path::new("/images/file")).is_err());
    assert!(host.store.available(Path::new("/none")).is_err());
}

#[test]
fn only_what_was_made_is_removed() {
    let host = Host::new();
    let content = sparse(4096, &[(0, b"ours".to_vec())]);
    let made = host.put("/images/disk", &content).unwrap();
    // Somebody moves it away and puts another file there.
    let (disk, moved) = (host.real("/images/disk"), host.real("/images/moved"));
    fs::rename(&disk, &moved).unwrap();
    fs::write(&disk, "theirs").unwrap();
    let error = host.store.remove(Path::new("/images/disk"), &made).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(fs::read(&disk).unwrap(), b"theirs");
    // A link to ours is not ours.
    fs::remove_file(&disk).unwrap();
    symlink("moved", &disk).unwrap();
    host.store.remove(Path::new("/images/disk"), &made).unwrap_err();
    assert!(moved.exists());
    // It is ours again, whatever was written into it since.
    fs::remove_file(&disk).unwrap();
    fs::rename(&moved, &disk).unwrap();
    OpenOptions::new().append(true).open(&disk).unwrap().write_all(b"more").unwrap();
    assert!(host.store.remove(Path::new("/images/disk"), &made).unwrap());
    assert!(!host.store.remove(Path::new("/images/disk"), &made).unwrap());
    assert!(host.names().is_empty());
}

#[test]
fn a_reused_inode_number_does_not_make_a_file_ours() {
    let host = Host::new();
    let content = sparse(4096, &[(0, b"ours".to_vec())]);
    let made = host.put("/images/disk", &content).unwrap();
    let disk = host.real("/images/disk");
    // Some file systems give the same number at once; where not, the identity is given by hand.
    fs::remove_file(&disk).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&disk, "theirs").unwrap();
    let now = fs::metadata(&disk).unwrap();
    let same_number = Identity { inode: Some(now.ino()), ..made };
    let error = host.store.remove(Path::new("/images/disk"), &same_number).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(disk.exists());
}

#[test]
fn what_somebody_has_open_is_not_removed() {
    needs_qemu!();
    let host = Host::new();
    let (source, disk) = (host.real("/images/source"), host.real("/images/disk"));
    qemu_img(&args!["create", "-q", "-f", "qcow2", &source, "1M"]);
    let made = host.put("/images/disk", &File::open(&source).unwrap()).unwrap();
    for options in [&["-f", "qcow2"][..], &["-r", "-f", "qcow2"]] {
        let holder = Holder::new(options, &disk);
        let error = host.store.remove(Path::new("/images/disk"), &made).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("has it open"), "{error}");
        let in_use = host.store.look(Path::new("/images/disk")).unwrap().unwrap().in_use;
        assert_eq!(in_use.is_some(), !options.contains(&"-r"), "{in_use:?}");
        drop(holder);
    }
    // Without image locks, as a guest that is just arriving has it.
    let mut reader =
        Command::new("sleep").arg("60").stdin(File::open(&disk).unwrap()).spawn().unwrap();
    let error = host.store.remove(Path::new("/images/disk"), &made).unwrap_err();
    assert!(error.to_string().contains(&format!("process {} (", reader.id())), "{error}");
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert!(host.store.remove(Path::new("/images/disk"), &made).unwrap());
}

#[test]
fn chains_are_told_as_the_host_names_them() {
    needs_qemu!();
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("images")).unwrap();
    let base = scratch.path("images/base");
    let top = scratch.path("images/top");
    fs::write(&base, noise(5, 1 << 20)).unwrap();
    // The name in the header is that of the host that the directory stands for.
    let options =
        args!["create", "-q", "-u", "-f", "qcow2", "-b", "/images/base", "-F", "raw", &top, "2M"];
    qemu_img(&options);
    let store = LocalStore::new(scratch.path("images").parent().unwrap()).unwrap();
    let chain = store.chain(Path::new("/images/top"), None).unwrap();
    let names: Vec<_> = chain
        .iter()
        .map(|layer| (layer.layer.path.to_str().unwrap(), layer.layer.format.as_deref().unwrap()))
        .collect();
    assert_eq!(names, [("/images/top", "qcow2"), ("/images/base", "raw")]);
    assert_eq!(chain[0].virtual_size, 2 << 20);
    assert_eq!(chain[1].virtual_size, 1 << 20);
    assert_eq!(chain[1].identity.inode, Some(fs::metadata(&base).unwrap().ino()));

    // Its content is what the host would see, whatever the layers.
    let mut flat = noise(5, 1 << 20);
    flat.resize(2 << 20, 0);
    fs::write(scratch.path("images/flat"), &flat).unwrap();
    let same = |path: &str, format, digest: &str| {
        let wanted = Wanted::new(digest);
        let cancel = CancelToken::new();
        store.same_content(Path::new(path), format, &wanted, &Silent, &cancel).unwrap()
    };
    let digest = tree_hash(&scratch.path("images/flat"));
    assert_eq!(
        same("/images/top", Format::Qcow2, &digest),
        Content::Equal { digest: digest.clone() }
    );
    assert_eq!(same("/images/base", Format::Raw, &digest), Content::Different);
    // While a guest writes to it, nobody can say.
    let holder = Holder::new(&["-f", "raw"], &scratch.path("images/flat"));
    let in_use = same("/images/flat", Format::Raw, &digest);
    assert!(matches!(in_use, Content::Unknown { .. }), "{in_use:?}");
    drop(holder);
}

#[test]
fn a_chain_that_leaves_the_root_is_not_followed() {
    needs_qemu!();
    let host = Host::new();
    let outside = host.dir.path().join("secret");
    fs::write(&outside, vec![1; 4096]).unwrap();
    let top = host.real("/images/top");
    for name in [outside.to_str().unwrap(), "../../secret"] {
        let _ = fs::remove_file(&top);
        qemu_img(&args!["create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", &top, "1M"]);
        host.store.chain(Path::new("/images/top"), None).unwrap_err();
    }
}

#[test]
fn what_is_put_is_an_image_that_qemu_finds_identical() {
    needs_qemu!();
    let host = Host::new();
    let source = host.dir.path().join("source");
    let raw = host.dir.path().join("raw");
    fs::write(&raw, noise(9, 3 << 20)).unwrap();
    qemu_img(&args!["convert", "-f", "raw", "-O", "qcow2", &raw, &source]);
    host.put("/images/disk", &File::open(&source).unwrap()).unwrap();
    let disk = host.real("/images/disk");
    qemu_img(&args!["check", "-q", &disk]);
    assert_eq!(raw_of("qcow2", &disk), fs::read(&raw).unwrap());
    let facts = host.store.look(Path::new("/images/disk")).unwrap().unwrap();
    let image = facts.image.unwrap();
    assert_eq!((image.format, image.virtual_size), (Format::Qcow2, 3 << 20));
}

/// Whether the disk was read.
#[derive(Default)]
struct Reads(std::sync::atomic::AtomicBool);

impl Observer for Reads {
    fn progress(&self, _done: u64, _total: u64) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

#[test]
fn a_manifest_beside_an_image_is_believed_while_nothing_has_changed() {
    use qcow::chain::{Chain, OpenOptions};
    use qcow::ops::digest::Manifest;
    let host = Host::new();
    host.put("/images/disk", &sparse(5 << 20, &[(0, noise(1, 3 << 20))])).unwrap();
    let disk = host.real("/images/disk");
    let compare = |digest: &str| {
        let (wanted, reads, cancel) = (Wanted::new(digest), Reads::default(), CancelToken::new());
        let path = Path::new("/images/disk");
        let content = host.store.same_content(path, Format::Raw, &wanted, &reads, &cancel).unwrap();
        (content, reads.0.into_inner())
    };
    let digest = tree_hash(&disk);
    let equal = Content::Equal { digest: digest.clone() };
    assert_eq!(compare(&digest), (equal.clone(), true));
    // A manifest is only believed if the file had been still for a second when it was made.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let options = OpenOptions::default().format(Format::Raw);
    let chain = Chain::open(&disk, &options).unwrap();
    let manifest = Manifest::take(&chain, None, 1, &Silent, &CancelToken::new()).unwrap();
    manifest.write(&host.real("/images/disk.manifest"), qcow::io::Replace::Never).unwrap();
    assert_eq!(compare(&digest), (equal, false));
    fs::OpenOptions::new().write(true).open(&disk).unwrap().write_all_at(b"other", 0).unwrap();
    assert_eq!(compare(&digest), (Content::Different, true));
}

#[test]
fn the_root_stays_the_same_directory_whatever_it_is_called() {
    let host = Host::new();
    host.put("/images/disk", &sparse(4096, &[(0, noise(1, 4096))])).unwrap();
    fs::rename(host.real("/"), host.dir.path().join("renamed")).unwrap();
    fs::create_dir_all(host.real("/images")).unwrap();
    fs::write(host.real("/images/disk"), "of another host").unwrap();
    let chain = host.store.chain(Path::new("/images/disk"), Some(Format::Raw)).unwrap();
    assert_eq!(chain[0].virtual_size, 4096);
}

#[test]
fn a_fetch_has_a_limit() {
    let host = Host::new();
    let content = sparse(1 << 20, &[(70_000, noise(2, 5000))]);
    host.put("/images/disk", &content).unwrap();
    let path = Path::new("/images/disk");
    let copy = host.store.fetch(path, 1 << 20).unwrap();
    assert_eq!(bytes_of(&copy), bytes_of(&content));
    let error = host.store.fetch(path, (1 << 20) - 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[test]
fn put_away_means_renamed_where_nothing_is() {
    let host = Host::new();
    let made = host.put("/images/disk", &sparse(4096, &[])).unwrap();
    let (from, to) = (Path::new("/images/disk"), Path::new("/images/disk.old"));
    fs::write(host.real("/images/disk.old"), "theirs").unwrap();
    host.store.rename(from, to, &made).unwrap_err();
    assert_eq!(fs::read(host.real("/images/disk.old")).unwrap(), b"theirs");
    fs::remove_file(host.real("/images/disk.old")).unwrap();
    host.store.rename(from, to, &made).unwrap();
    assert_eq!(host.names(), ["disk.old"]);
    fs::write(host.real("/images/disk"), "theirs").unwrap();
    host.store.rename(from, Path::new("/images/other"), &made).unwrap_err();
}

/// Data at odd places of a file of 6 MiB, some of it zeros.
/// `file:` names are relative to QEMU's process, and that of the destination does not run yet.
#[test]
fn a_name_that_depends_on_the_process_is_not_looked_for_where_this_process_works() {
    needs_qemu!();
    let scratch = Scratch::new();
    let top = scratch.path("top.qcow2");
    // It exists in the directory that tests work in.
    qemu_img(&args![
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-F",
        "raw",
        "-b",
        "file:Cargo.toml",
        top,
        "1M"
    ]);
    assert!(Path::new("Cargo.toml").exists());
    let store = LocalStore::new(Path::new("/")).unwrap();
    let error = store.chain(&top, Some(Format::Qcow2)).unwrap_err();
    assert!(error.to_string().contains("Cargo.toml"), "{error}");
}

fn contents() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    let piece = (0u64..6 << 20, 1usize..300_000, any::<bool>(), any::<u64>()).prop_map(
        |(offset, len, zeros, seed)| {
            let len = len.min(((6 << 20) - offset) as usize);
            (offset, if zeros { vec![0; len] } else { noise(seed, len) })
        },
    );
    proptest::collection::vec(piece, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    /// Whatever an interrupted put left, or the disk made of it: the next one ends with the right
    /// bytes.
    #[test]
    fn a_put_that_goes_on_ends_with_the_same_bytes(
        data in contents(),
        left in contents(),
        cut in 0u64..=6 << 20,
    ) {
        let host = Host::new();
        let content = sparse(6 << 20, &data);
        let at = host.store.temporary(Path::new("/images/disk"), &content).unwrap().unwrap();
        let at = host.real(at);
        let unfinished = OpenOptions::new().write(true).create_new(true).open(&at).unwrap();
        unfinished.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        for (offset, bytes) in data.iter().chain(&left) {
            unfinished.write_all_at(bytes, *offset).unwrap();
        }
        unfinished.set_len(cut).unwrap();
        drop(unfinished);
        let inode = fs::metadata(&at).unwrap().ino();
        let made = host.put("/images/disk", &content).unwrap();
        prop_assert_eq!(made.inode, Some(inode), "it was taken up, not made again");
        let bytes = fs::read(host.real("/images/disk")).unwrap();
        prop_assert!(bytes == bytes_of(&content));
        prop_assert_eq!(host.names(), ["disk"]);
    }
}
