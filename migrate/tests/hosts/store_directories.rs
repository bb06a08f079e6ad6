//! Directories of a host: made with their rights, named, and removed while they are ours and empty; here, and at the far
//! end of a connection.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use crate::store_common::Host;
use crate::store_remote::{WHOLE, connect};
use migrate::ErrorKind;
use migrate::facts::{DirectoryRights, Identity};
use migrate::store::Store;

/// Those of this user, with a mode that no umask gives.
fn rights(host: &Host) -> DirectoryRights {
    let own = fs::metadata(host.real("/images")).unwrap();
    DirectoryRights { mode: 0o3773, owner: own.uid(), group: own.gid(), label: None }
}

fn kind<T: std::fmt::Debug>(result: migrate::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// All that a store does with directories.
fn made_named_and_removed(host: &Host, store: &dyn Store) {
    let (path, rights) = (Path::new("/images/new"), rights(host));
    assert!(store.is_directory(Path::new("/images")).unwrap());
    assert!(
        !store.is_directory(path).unwrap() && !store.is_directory(&path.join("below")).unwrap()
    );
    let temporary = store.temporary_directory(path).unwrap().unwrap();
    assert_eq!(temporary.parent(), path.parent());
    let made = store.make_directory(&temporary, &rights).unwrap();
    assert_eq!(kind(store.make_directory(&temporary, &rights)), ErrorKind::Refused);
    assert!(store.name_directory(&temporary, path, &made).unwrap());
    assert_eq!(host.names(), ["new"]);
    let is = fs::metadata(host.real(path)).unwrap();
    assert_eq!((is.mode() & 0o7777, is.uid(), is.gid()), (0o3773, rights.owner, rights.group));

    // Another one that is to get the same name does not.
    let second = store.temporary_directory(path).unwrap().unwrap();
    let other = store.make_directory(&second, &rights).unwrap();
    assert!(!store.name_directory(&second, path, &other).unwrap());
    assert_eq!(kind(store.name_directory(path, &second, &other)), ErrorKind::Refused);
    // Where it is not known what was made, its name has to say that it is unfinished.
    assert_eq!(kind(store.remove_directory(path, &Identity::default())), ErrorKind::Refused);
    assert!(store.remove_directory(&second, &Identity::default()).unwrap());

    assert_eq!(kind(store.remove_directory(path, &other)), ErrorKind::Refused);
    fs::write(host.real(path).join("theirs"), "x").unwrap();
    assert_eq!(kind(store.remove_directory(path, &made)), ErrorKind::Refused);
    fs::remove_file(host.real(path).join("theirs")).unwrap();
    assert!(store.remove_directory(path, &made).unwrap());
    assert!(!store.remove_directory(path, &made).unwrap());
    assert!(!store.remove_directory(&path.join("below"), &made).unwrap());
    assert!(host.names().is_empty());
}

#[test]
fn directories_of_this_host_are_made_named_and_removed() {
    let host = Host::new();
    made_named_and_removed(&host, &host.store);
}

#[test]
fn directories_of_the_far_end_are_made_named_and_removed() {
    let far = Host::new();
    let (remote, line) = connect(&far, WHOLE);
    made_named_and_removed(&far, &remote);
    drop(remote);
    line.far.join().unwrap().unwrap();
}

#[test]
fn a_directory_that_took_the_place_of_ours_is_not_removed() {
    let host = Host::new();
    let (path, store) = (Path::new("/images/new"), &host.store);
    let made = store.make_directory(path, &rights(&host)).unwrap();
    fs::rename(host.real(path), host.real("/images/moved")).unwrap();
    symlink("moved", host.real(path)).unwrap();
    assert_eq!(kind(store.remove_directory(path, &made)), ErrorKind::Refused);
    fs::remove_file(host.real(path)).unwrap();
    fs::create_dir(host.real(path)).unwrap();
    assert_eq!(kind(store.remove_directory(path, &made)), ErrorKind::Refused);
    assert_eq!(host.names(), ["moved", "new"]);
}

#[test]
fn nothing_is_made_outside_of_the_root_and_nothing_is_left_of_what_cannot_be_made() {
    let host = Host::new();
    symlink("/../..", host.real("/images/out")).unwrap();
    let rights = rights(&host);
    host.store.make_directory(Path::new("/images/out/qcowtool-made"), &rights).unwrap();
    assert!(host.real("/qcowtool-made").is_dir(), "it led out of the root");
    // No user can set it, and no file system can keep it.
    let impossible = DirectoryRights { label: Some("x".repeat(70_000)), ..rights };
    let failed = host.store.make_directory(Path::new("/images/new"), &impossible);
    assert_eq!(kind(failed), ErrorKind::Environment);
    assert_eq!(host.names(), ["out"]);
}

#[test]
fn a_directory_has_the_label_that_it_shall_have() {
    let host = Host::new();
    let label = "system_u:object_r:virt_image_t:s0";
    let rights = DirectoryRights { label: Some(label.into()), ..rights(&host) };
    let path = Path::new("/images/new");
    if !is_root() {
        println!("SKIPPED a_directory_has_the_label_that_it_shall_have: only root may set labels");
        return;
    }
    host.store.make_directory(path, &rights).unwrap();
    let mut found = vec![0; 100];
    let name = "security.selinux";
    match rustix::fs::getxattr(host.real(path), name, found.as_mut_slice()) {
        Ok(length) => assert_eq!(&found[..length], label.as_bytes()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODATA) => {}
        Err(error) => panic!("{error}"),
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}
