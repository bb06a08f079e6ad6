//! Holes that others had in the handling of images: each attack by its number, and its refusal.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{qcowtool, refused_by_us};
use fixtures::patch::{field, magic};
use fixtures::{Patch, Scratch, args, assert_bytes, needs_qemu, qemu, qemu_img, qemu_io};

/// A file of the host that no tenant may see.
fn secret(scratch: &Scratch) -> std::path::PathBuf {
    scratch.file("secret", b"root:$6$secret".repeat(5000).as_slice())
}

/// A raw disk on which a guest has written a QCOW2 header that stands on the secret.
fn header_by_the_guest(scratch: &Scratch) -> std::path::PathBuf {
    let disk = scratch.path("disk.raw");
    qemu_img(&args!["create", "-q", "-f", "qcow2", "-b", secret(scratch), "-F", "raw", disk]);
    // A disk of whole sectors.
    fs::OpenOptions::new().write(true).open(&disk).unwrap().set_len(1 << 20).unwrap();
    disk
}

/// Also CVE-2011-3147, CVE-2013-1922, CVE-2014-0134, CVE-2015-1850, CVE-2015-1851 and CVE-2015-5163: what
/// is said to be raw is never looked at for another format.
#[test]
fn cve_2008_2004_a_raw_disk_stays_raw_whatever_the_guest_wrote_on_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    let disk = header_by_the_guest(&scratch);
    let target = scratch.path("flat.raw");
    qcowtool(args!["flatten", "-f", "raw", "-O", "raw", disk, target]).ok();
    assert_bytes!(fs::read(&target).unwrap(), fs::read(&disk).unwrap());
    let info = qcowtool(args!["info", "-f", "raw", "--output", "json", disk]).json();
    assert_eq!((&info["format"], &info["backing-filename"]), (&"raw".into(), &().into()));
    qcowtool(args!["flatten", "-f", "raw", "--untrusted", disk, scratch.path("x")]).refused();
}

/// Also CVE-2010-2238 and CVE-2010-2239.
#[test]
fn cve_2010_2237_the_format_of_a_backing_file_is_never_guessed() {
    needs_qemu!();
    let scratch = Scratch::new();
    let disk = header_by_the_guest(&scratch);
    let overlay = scratch.path("overlay.qcow2");
    let base = disk.file_name().unwrap();
    qemu_img(&args!["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay]);
    let mut image = Patch::open(&overlay);
    image.set_header_area(112, &[], true).set_backing(512, base.as_encoded_bytes()).save();
    let line = refused_by_us(&overlay, &[]);
    assert!(line.contains("never guessed"), "{line}");
}

#[test]
fn cve_2026_24708_nothing_is_changed_in_an_image_whose_stated_format_cannot_be_repaired() {
    needs_qemu!();
    let scratch = Scratch::new();
    let disk = header_by_the_guest(&scratch);
    let before = fs::read(&disk).unwrap();
    let run = qcowtool(args!["check", "-r", "all", "-f", "raw", disk]);
    assert_eq!(run.code(), Some(63), "{}", run.stderr());
    assert_bytes!(fs::read(&disk).unwrap(), before);
}

/// Also CVE-2013-4463 and CVE-2013-4469.
#[test]
fn cve_2013_2096_a_huge_disk_takes_no_space_and_can_be_refused() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (image, flat) = (scratch.path("disk.qcow2"), scratch.path("flat.raw"));
    qemu::create(&image, "", "1T");
    qcowtool(args!["flatten", "-O", "raw", image, flat]).ok();
    let made = fs::metadata(&flat).unwrap();
    assert_eq!(made.len(), 1 << 40);
    assert!(std::os::unix::fs::MetadataExt::blocks(&made) < 64, "space is taken");
    fs::remove_file(&flat).unwrap();
    let limit = args!["flatten", "--max-virtual-size", "10G", image, flat];
    qcowtool(limit).refused_naming(&["virtual size"]);
    assert!(!flat.exists());
}

#[test]
fn cve_2014_0143_to_0147_tables_that_claim_too_much() {
    needs_qemu!();
    let scratch = Scratch::new();
    let fields: &[(&str, &[(usize, u32)])] = &[
        ("0143: an L1 table whose length overflows", &[(field::L1_SIZE, 0x7fff_ffff)]),
        ("0143: a refcount table whose length overflows", &[(field::REFTABLE_CLUSTERS, u32::MAX)]),
        ("0143: more refcount table than there may be", &[(field::REFTABLE_CLUSTERS, 1 << 20)]),
        ("0144: clusters of 2^63 bytes", &[(field::CLUSTER_BITS, 63)]),
        ("0144: more snapshots than there may be", &[(field::SNAPSHOTS, 65_537)]),
        (
            "0144: a snapshot table past the end of any file",
            &[(field::SNAPSHOTS, 1), (field::SNAPSHOTS_OFFSET, 0xffff_ffff)],
        ),
        ("0146: no L1 table", &[(field::L1_SIZE, 0)]),
        ("0147: refcounts of 2^64 bits", &[(field::REFCOUNT_ORDER, 64)]),
    ];
    for (what, changes) in fields {
        let path = scratch.path("disk.qcow2");
        qemu::create(&path, "", "1G");
        let mut image = Patch::open(&path);
        for (at, value) in *changes {
            image.set_u32(*at, *value);
        }
        image.save();
        assert!(qemu::try_raw_of("qcow2", &path, None).is_err(), "{what}: QEMU reads it");
        qcowtool(args!["info", path]).refused();
        refused_by_us(&path, &[]);
        assert_eq!(qcowtool(args!["check", path]).code(), Some(1), "{what}");
    }
}

#[test]
fn cve_2014_0145_a_snapshot_whose_l1_table_is_too_long() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("disk.qcow2");
    qemu::create(&path, "", "1M");
    qemu_io("qcow2", &path, &["write 0 64k"]);
    qemu_img(&args!["snapshot", "-c", "one", path]);
    let mut image = Patch::open(&path);
    let table = usize::try_from(image.u64(field::SNAPSHOTS_OFFSET)).unwrap();
    image.set_u32(table + 8, 0x1000_0000).save();
    refused_by_us(&path, &["--snapshot", "one"]);
}

/// Also CVE-2014-0223: the first version of the format is not read at all.
#[test]
fn cve_2014_0222_the_first_version_is_refused_by_its_name() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = scratch.path("disk.qcow");
    qemu_img(&args!["create", "-q", "-f", "qcow", path, "1M"]);
    qcowtool(args!["info", path]).refused_naming(&["version"]);
}

/// An image whose data file is said to be a file of the host.
fn points_to(scratch: &Scratch, file: &str) -> std::path::PathBuf {
    let path = scratch.path("upload.qcow2");
    qemu::create(&path, &format!("data_file={}", scratch.path("data").display()), "64k");
    let mut image = Patch::open(&path);
    let extensions = [(magic::DATA_FILE, file.as_bytes())];
    image.set_header_area(112, &extensions, true).save();
    path
}

/// Also CVE-2024-40767.
#[test]
fn cve_2024_32498_a_data_file_is_not_opened_for_an_image_that_is_not_trusted() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = points_to(&scratch, secret(&scratch).to_str().unwrap());
    for options in [&["--untrusted", "-f", "qcow2"][..], &["--allow-dir", "/nowhere"]] {
        let line = refused_by_us(&image, options);
        assert!(line.contains("data file") || line.contains("outside"), "{line}");
    }
}

#[test]
fn cve_2024_4467_info_opens_nothing_that_the_header_names() {
    needs_qemu!();
    let scratch = Scratch::new();
    let unreadable = secret(&scratch);
    fs::remove_file(&unreadable).unwrap();
    let json = format!(r#"json:{{"driver":"raw","file.filename":"{}"}}"#, unreadable.display());
    for name in [unreadable.to_str().unwrap(), &json] {
        let image = points_to(&scratch, name);
        let info = qcowtool(args!["info", "--output", "json", image]).json();
        assert_eq!(info["format-specific"]["data"]["data-file"], name);
        qcowtool(args!["info", "--untrusted", "-f", "qcow2", image]).refused_naming(&["data file"]);
        refused_by_us(&image, &[]);
    }
}

#[test]
fn cve_2025_13193_new_images_are_private() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (made, flat) = (scratch.path("made.qcow2"), scratch.path("flat.qcow2"));
    qcowtool(args!["create", "-q", "-f", "qcow2", made, "1M"]).ok();
    qcowtool(args!["flatten", "-q", made, flat]).ok();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&made), mode(&flat)), (0o600, 0o600));
}
