//! Every remedy of the library has a test that carries out what its words say, and so has every advice that is no remedy but words.
//! `REMEDIES` and `WORDS` are compared with the sources: what is added there and not here fails.
//!
//! Where an advice has a command in it, that command is taken from the message and run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::binary;
use fixtures::patch::{COPIED, field};
use fixtures::{Holder, Patch, Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};

/// A remedy, what its words are known by, and the test that carries it out, which looks for them.
const REMEDIES: &[(&str, &str, &str)] = &[
    ("Replace", "--force", "advice::advice_about_options_is_right"),
    ("ShareRead", "give -U", "advice::advice_about_images_is_right"),
    ("ReplaceInUse", "--force-in-use", "remedies::what_is_in_use"),
    (
        "WriteInto",
        "flatten -n -O raw",
        "existing::what_is_mounted_cannot_be_replaced_and_the_way_that_is_advised_writes_into_it",
    ),
    ("NewFile", "leave out -n", "existing::what_cannot_be_written_into_is_refused_untouched"),
    ("StopUser", "stop the process that uses it", "remedies::what_is_in_use"),
    ("StopChanges", "no other process changes the image", "remedies::what_changes"),
    ("StateFormat", "-f qcow2", "advice::advice_about_options_is_right"),
    ("StateBackingFormat", "--backing-format", "advice::advice_about_images_is_right"),
    (
        "InsistOnRaw",
        "--raw-despite-magic",
        "chains::raw_over_the_magic_of_an_image_is_believed_only_with_insistence",
    ),
    ("AllowDirectory", "--allow-dir", "advice::advice_about_options_is_right"),
    ("RaiseLimit", "--max-depth", "advice::advice_about_options_is_right"),
    ("RaiseLimit", "--max-virtual-size", "advice::advice_about_options_is_right"),
    ("RaiseLimit", "--max-metadata", "advice::advice_about_options_is_right"),
    ("RestoreBacking", "bring the file back", "remedies::what_is_missing"),
    ("Flatten", "copy the image with", "remedies::what_is_damaged"),
    ("FlattenLower", "copy the lower images", "remedies::a_chain_that_is_too_deep"),
    ("Salvage", "flatten --salvage", "remedies::what_is_damaged"),
    ("Repair", "`qcowtool check -r all`", "advice::advice_about_images_is_right"),
    ("Check", "tells more", "remedies::what_is_damaged"),
    ("DropSnapshots", "removes the snapshots", "remedies::what_is_damaged"),
    ("ListSnapshots", "`qcowtool info` lists", "advice::advice_about_options_is_right"),
    ("ConvertFrom", "convert it with", "remedies::what_is_in_another_format"),
    ("Decompress", "decompress it first", "remedies::what_is_in_another_format"),
    ("Unpack", "take the disk out", "remedies::what_is_in_another_format"),
    ("DecompressStream", "on the way", "remedies::what_comes_as_a_stream"),
    ("SaveStream", "save it to a file", "remedies::what_comes_as_a_stream"),
    ("Decrypt", "decrypt it with", "remedies::what_is_encrypted"),
    ("CopyToLocalFile", "copy it to a local file", "remedies::what_is_no_local_file"),
    ("GiveSize", "give a size", "advice::advice_about_options_is_right"),
    ("DestinationFormat", "use -O qcow2", "advice::advice_about_options_is_right"),
    ("LargerClusters", "use a larger cluster_size", "advice::advice_about_options_is_right"),
    // The parser of the command line is faster.
    (
        "Compress",
        "",
        "compressed_runs::levels_that_the_codec_lacks_are_refused_before_anything_is_written",
    ),
    ("NameFile", "write to a file that has a name", "advice::advice_about_options_is_right"),
    ("OverwriteDevice", "--device", "flatten_devices::"),
    ("NotDevice", "leave out --device", "advice::advice_about_options_is_right"),
    ("BufferedIo", "leave out --direct", "remedies::what_has_no_direct_io"),
    ("CheckStream", "check --size", "remedies::what_comes_as_a_stream"),
    ("FreeSpace", "free some space", "limits::on_a_full"),
    ("NewManifest", "`qcowtool checksum --manifest`", "advice::advice_about_images_is_right"),
    // Nothing to be done by its reader, and nothing that provokes it.
    ("ReportBug", "", ""),
    // `WORDS` has these.
    ("Advice", "", ""),
];

/// Advice in plain words: how it begins, and the test that carries it out or, where it only tells more, sees it.
const WORDS: &[(&str, &str)] = &[
    ("use preallocation=off, falloc or full", "advice::advice_about_options_is_right"),
    ("a comma inside a value", "advice::advice_about_options_is_right"),
    ("it belongs to qcow2", "advice::advice_about_options_is_right"),
    ("did you mean", "advice::advice_about_options_is_right"),
    ("'-o help' lists them all", "remedies::plain_words"),
    ("use a shorter backing file name", "remedies::plain_words"),
    ("give snapshot.id=ID", "remedies::plain_words"),
    ("supported are driver", "remedies::plain_words"),
    ("copy that range into a file", "remedies::plain_words"),
    ("name the format's driver", "remedies::plain_words"),
    ("leave out what is stated", "remedies::plain_words"),
    ("name a backing file of the chain", "remedies::plain_words"),
    ("the file system, or this process's limit", "remedies::plain_words"),
    ("give the name of a file to create", "remedies::plain_words"),
    ("give the name of the file that it leads to", "remedies::plain_words"),
    ("a program that guesses formats", "remedies::plain_words"),
    ("a newer program wrote this image", "remedies::plain_words"),
    ("encrypt inside the guest", "remedies::plain_words"),
    ("set the attribute on the directory", "remedies::plain_words"),
    ("set it on the directory first", "remedies::plain_words"),
    ("its reader ended", "flatten_streams::a_reader_that_goes_away_is_an_error"),
    ("choose a larger {noun}", "existing::what_cannot_be_written_into_is_refused_untouched"),
    ("see --help", "advice::advice_about_options_is_right"),
    ("give bytes, or a number with a suffix", "advice::advice_about_options_is_right"),
    ("leave out --algorithm", "advice::advice_about_options_is_right"),
    ("name it with -b", "advice::advice_about_options_is_right"),
    ("state it with -F qcow2 or -F raw", "advice::advice_about_options_is_right"),
    ("name a file instead of '-'", "advice::advice_about_options_is_right"),
    ("make a qcow2 image: leave out -f raw", "remedies::plain_words"),
    ("a qcow2 image cannot be read sequentially", "remedies::plain_words"),
    ("give --candidates or --manifest", "remedies::plain_words"),
    // Not tried yet, or what no test can do: for callers of the library, about another kernel, a mounted device, a terminal.
    ("take it of the new image", ""),
    ("free some space, then try again", ""),
    ("copy the image to one with wider refcounts", ""),
    ("make a full backup", ""),
    ("use larger clusters or narrower", ""),
    ("the formats are qcow2 and raw", ""),
    ("add its layer", ""),
    ("record an absolute name", ""),
    ("read it with a reader of the chain", ""),
    ("give a buffer of the extent", ""),
    ("the new file is whole", ""),
    ("run it as root", ""),
    ("open it with O_RDWR", ""),
    ("unmount it", ""),
    ("it needs Linux 5.13", ""),
    ("the largest has {} bytes", ""),
    ("install qcowtool-libvirt", ""),
    ("choose another port", ""),
    ("add --method copy", ""),
    ("name a file, or redirect standard output", ""),
    ("remove it by hand if it is not needed", ""),
    ("leave it out, or give --connect dir:", ""),
    ("give the guest's XML with --domain-xml", ""),
    ("build it with the cargo feature 'pictures'", ""),
    ("build it with the cargo feature 'monitor'", ""),
    ("build it with the feature `zstd`", ""),
];

/// Runs a line of shell in the directory, in which `qcowtool` is the binary.
fn shell(scratch: &Scratch, line: &str) -> Output {
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(format!("set -o pipefail; qcowtool() {{ \"$QCOWTOOL\" \"$@\"; }}; {line}"));
    bash.env("QCOWTOOL", binary()).current_dir(scratch.dir());
    bash.output().expect("a shell")
}

/// What the line prints on standard error; it must be refused.
#[track_caller]
fn refused(scratch: &Scratch, line: &str, advice: &str) -> String {
    let output = shell(scratch, line);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Of `check`, 63 says that there is nothing to check; of `compare`, 2 that it could not compare.
    let refusals: &[i32] = match () {
        () if line.contains("qcowtool check ") => &[1, 63],
        () if line.contains("qcowtool compare ") => &[2],
        () => &[1],
    };
    let code = output.status.code().unwrap_or_default();
    assert!(refusals.contains(&code), "{line}: {code}: {said}");
    assert!(said.contains(advice), "{line}: {said}");
    said
}

/// Runs a line that must end with `code`.
#[track_caller]
fn ends(scratch: &Scratch, line: &str, code: i32) {
    let output = shell(scratch, line);
    assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
}

#[track_caller]
fn works(scratch: &Scratch, line: &str) {
    ends(scratch, line, 0);
}

/// The command between backquotes in what was said that begins with `start`, with names for what it leaves open.
#[track_caller]
fn advised(said: &str, start: &str, names: &[(&str, &str)]) -> String {
    let command = said.split('`').skip(1).step_by(2).find(|command| command.starts_with(start));
    let command = command.unwrap_or_else(|| panic!("no `{start}`: {said}"));
    let named = |word: &str| {
        names.iter().fold(word.to_owned(), |word, (open, name)| word.replace(open, name))
    };
    command.split(' ').map(named).collect::<Vec<_>>().join(" ")
}

/// An image of 1 MiB with data.
fn image(scratch: &Scratch, name: &str, options: &str) -> PathBuf {
    let path = scratch.path(name);
    qemu::create(&path, options, "1M");
    qemu_io("qcow2", &path, &["write -P 1 0 64k"]);
    path
}

#[test]
fn what_is_in_use() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    let old = image(&scratch, "old", "");
    let guest = Holder::new(&[], &old);
    refused(&scratch, "qcowtool flatten --force image old", "stop what uses it");
    let into = "qcowtool flatten -n -O raw image old";
    refused(&scratch, into, "stop the process that uses it");
    refused(&scratch, "qcowtool check -r all old", "stop the process that uses it");
    works(&scratch, "cp old other");
    drop(guest);
    works(&scratch, "qcowtool check -r all old");
    works(&scratch, "qcowtool flatten --force image old");
    works(&scratch, "truncate -s 2M old");
    works(&scratch, into);
    // Replaced while it is in use.
    let guest = Holder::new(&[], &scratch.path("other"));
    let line = "qcowtool flatten --force image other";
    refused(&scratch, line, "give --force-in-use");
    works(&scratch, &line.replace("--force", "--force-in-use"));
    drop(guest);
}

#[test]
fn what_changes() {
    needs_qemu!();
    let scratch = Scratch::new();
    fs::write(scratch.path("disk"), fixtures::pattern::noise(1, 4 << 20)).unwrap();
    // The pipe is full before the end of the disk is read.
    let copy = "qcowtool flatten -f raw -O qcow2 disk -";
    let line = format!("{copy} | {{ head -c 1; echo >> disk; cat; }} > copy");
    refused(&scratch, &line, "make sure that no other process changes the image");
    works(&scratch, &format!("{copy} > copy"));
    works(&scratch, "qemu-img compare -f raw -F qcow2 disk copy");
}

#[test]
fn what_is_missing() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "base", "");
    qemu::overlay(scratch.path("top"), "base", "qcow2", "", "");
    works(&scratch, "mv base away");
    for command in ["checksum", "check"] {
        let said = refused(&scratch, &format!("qcowtool {command} top"), "bring the file back");
        assert!(said.contains("give --alone"), "{said}");
        works(&scratch, &format!("qcowtool {command} --alone top"));
    }
    works(&scratch, "mv away base && qcowtool checksum top && qcowtool check top");
}

#[test]
fn a_data_file_that_is_missing_fails_the_check_as_that_of_qemu_img() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "base", &format!("data_file={}", scratch.path("data").display()));
    qemu::overlay(scratch.path("top"), "base", "qcow2", "", "");
    works(&scratch, "qcowtool check base && qcowtool check top");
    works(&scratch, "mv data away");
    for image in ["base", "top"] {
        ends(&scratch, &format!("qemu-img check {image}"), 1);
        for line in [format!("qcowtool check {image}"), format!("qcowtool check -r all {image}")] {
            let said = refused(&scratch, &line, "bring the file back");
            assert!(said.contains("data: data file: could not open"), "{said}");
            works(&scratch, &line.replace("check", "check --alone"));
        }
    }
    works(&scratch, "mv away data && qcowtool check base && qcowtool check top");
}

#[test]
fn what_is_damaged() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = image(&scratch, "image", "cluster_size=4k");
    let damaged = |name: &str, change: fn(&mut Patch)| {
        let mut patch = Patch::open(&path);
        change(&mut patch);
        patch.save_as(scratch.path(name));
    };
    // Not aligned.
    damaged("unaligned", |image| {
        image.set_l2_entry(8 << 10, image.l2_entry(8 << 10) + 0x200);
    });
    for line in ["qcowtool check -r all unaligned", "qcowtool flatten unaligned copy"] {
        let said = refused(&scratch, line, "`qcowtool flatten --salvage`");
        works(&scratch, "rm -f copy");
        let salvage = advised(&said, "qcowtool flatten --salvage", &[]);
        ends(&scratch, &format!("{salvage} unaligned copy"), 7);
        works(&scratch, "qcowtool check copy");
        let check = advised(&said, "qcowtool check", &[]);
        ends(&scratch, &format!("{check} unaligned"), 2);
        works(&scratch, "rm -f copy");
    }
    // One cluster is in use twice.
    damaged("twice", |image| {
        image.set_l2_entry(8 << 10, image.l2_entry(0));
    });
    let said = refused(&scratch, "qcowtool checksum --untrusted -f qcow2 twice", "tells more");
    ends(&scratch, &format!("{} twice", advised(&said, "qcowtool check", &[])), 2);
    // That are more references than a refcount of one bit can express.
    let path = image(&scratch, "narrow", "cluster_size=4k,refcount_bits=1");
    let mut narrow = Patch::open(&path);
    let entry = narrow.l2_entry(0) & !COPIED;
    narrow.set_l2_entry(0, entry);
    narrow.set_l2_entry(4 << 10, entry);
    narrow.save();
    let said = refused(&scratch, "qcowtool check -r all narrow", "copy the image with");
    works(&scratch, &format!("{} narrow copy", advised(&said, "qcowtool flatten", &[])));
    works(&scratch, "qcowtool check copy");
    // More snapshots than there may be.
    let path = image(&scratch, "snapshots", "cluster_size=4k");
    qemu_img(&args!["snapshot", "-c", "before", path]);
    let mut patch = Patch::open(&path);
    patch.set_u32(field::SNAPSHOTS, 65_537).set(8 << 20, &[0]).save();
    let said = refused(&scratch, "qcowtool checksum snapshots", "removes the snapshots");
    works(&scratch, &format!("{} snapshots", advised(&said, "qemu-img check", &[])));
    works(&scratch, "qcowtool checksum snapshots");
}

#[test]
fn a_chain_that_is_too_deep() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "n000", "cluster_size=4k");
    qemu::overlay(scratch.path("n001"), "n000", "qcow2", "cluster_size=4k", "");
    let overlay = fs::read(scratch.path("n001")).unwrap();
    let at = overlay.windows(4).position(|name| name == b"n000").unwrap();
    for number in 2..=200 {
        let mut overlay = overlay.clone();
        overlay[at..at + 4].copy_from_slice(format!("n{:03}", number - 1).as_bytes());
        fs::write(scratch.path(format!("n{number:03}")), overlay).unwrap();
    }
    let said = refused(&scratch, "qcowtool checksum n200", "copy the lower images of the chain");
    let flatten = advised(&said, "qcowtool flatten", &[]);
    works(&scratch, &format!("{flatten} n100 lower && mv lower n100"));
    works(&scratch, "qcowtool compare n200 n000");
}

#[test]
fn what_is_in_another_format() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    works(&scratch, "qemu-img convert -O vmdk image vmdk; qemu-img convert -O vdi image vdi");
    works(&scratch, "qemu-img convert -O raw image raw");
    for name in ["vmdk", "vdi"] {
        let said = refused(&scratch, &format!("qcowtool checksum {name}"), "convert it with");
        works(&scratch, &advised(&said, "qemu-img convert", &[("FILE", name), ("NEW", "new")]));
        works(&scratch, "qcowtool compare new image");
        assert!(said.contains("give -f raw"), "{said}");
        works(&scratch, &format!("qcowtool checksum -f raw {name}"));
    }
    for program in ["gzip", "bzip2", "xz", "zstd"] {
        works(&scratch, &format!("{program} -c < image > packed"));
        let said = refused(&scratch, "qcowtool checksum packed", "decompress it first");
        works(&scratch, &advised(&said, program, &[("FILE", "packed"), ("NEW", "new")]));
        works(&scratch, "qcowtool compare new image");
    }
    for (packs, program) in [
        ("tar -cf ar image", "tar"),
        ("rm -f ar.zip; zip -q ar.zip image && mv ar.zip ar", "unzip"),
    ] {
        works(&scratch, packs);
        let said = refused(&scratch, "qcowtool checksum ar", "take the disk out");
        works(&scratch, "mv image away");
        works(&scratch, &advised(&said, program, &[("FILE", "ar")]));
        works(&scratch, "qcowtool compare image away");
    }
    // Of the second image, the option is another one.
    let said = refused(&scratch, "qcowtool compare -f raw vmdk vmdk", "-F raw");
    assert!(said.contains("-F raw for the second image"), "{said}");
    works(&scratch, "qcowtool compare -f raw -F raw vmdk vmdk");
}

#[test]
fn what_is_shown_as_raw_as_stated_is_warned_of() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    let output = shell(&scratch, "qcowtool info -f raw --output json image");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let words = "'image' is read as raw, as stated, although it looks like a QCOW2 image\n";
    assert!(said.ends_with(words) && said.lines().count() == 1, "{said}");
    let said = shell(&scratch, "qcowtool info image").stderr;
    assert_eq!(String::from_utf8_lossy(&said), "");
}

#[test]
fn what_comes_as_a_stream() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    works(&scratch, "qcowtool flatten -O raw image raw && gzip -k raw");
    let said = refused(&scratch, "qcowtool flatten - new < raw.gz", "decompress it on the way");
    let names = [("FILE", "raw.gz"), ("DST", "new")];
    works(&scratch, &advised(&said, "gzip", &names));
    works(&scratch, "qcowtool compare image new && rm new");
    works(&scratch, "qcowtool flatten -f raw - new < raw.gz && rm new");
    refused(&scratch, "qcowtool flatten - new < image", "save it to a file and name that");
    works(&scratch, "cat < image > saved && qcowtool flatten saved new && rm new");
    refused(&scratch, "qcowtool flatten --size 2M - new < raw", "check --size");
    works(&scratch, "qcowtool flatten --size 1M - new < raw");
}

#[test]
fn what_is_encrypted() {
    needs_qemu!();
    let scratch = Scratch::new();
    fs::write(scratch.path("secret"), "secret").unwrap();
    let create = "qemu-img create -q --object secret,id=key,file=secret";
    works(&scratch, &format!("{create} -f luks -o key-secret=key volume 1M"));
    let options = "encrypt.format=luks,encrypt.key-secret=key";
    works(&scratch, &format!("{create} -f qcow2 -o {options} image 1M"));
    for name in ["volume", "image"] {
        let said = refused(&scratch, &format!("qcowtool checksum {name}"), "decrypt it with");
        let names = [("FILE", name), ("PASSWORD", "secret"), ("NEW", "new")];
        works(&scratch, &advised(&said, "qemu-img convert", &names));
        works(&scratch, "qcowtool checksum new");
    }
}

#[test]
fn what_is_no_local_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    works(&scratch, "cp image nbd:image");
    let said = refused(&scratch, "qcowtool checksum nbd:image", "copy it to a local file first");
    assert!(said.contains("./NAME"), "{said}");
    works(&scratch, "qcowtool checksum ./nbd:image");
    let convert = advised(&said, "qemu-img convert", &[]);
    let line = format!(
        "qemu-nbd --fork -r -f qcow2 -k $PWD/socket image && \
         {convert} -O qcow2 'nbd+unix:///?socket=socket' copy && qcowtool compare image copy"
    );
    works(&scratch, &line);
}

#[test]
fn what_has_no_direct_io() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    let copied = shell(&scratch, "qcowtool flatten --direct image new");
    let said = String::from_utf8_lossy(&copied.stderr).into_owned();
    // Most file systems have it.
    assert!(copied.status.success() || said.contains("leave out --direct"), "{said}");
    works(&scratch, "rm -f new; qcowtool flatten image new");
}

#[test]
fn plain_words() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = image(&scratch, "image", "");
    qemu_img(&args!["snapshot", "-c", "before", path]);
    qemu::overlay(scratch.path("top"), "image", "qcow2", "", "");
    let mut newer = Patch::open(&path);
    newer.set_u8(field::INCOMPATIBLE, 0x40).save_as(scratch.path("newer"));
    works(&scratch, "ln -s image link; mkdir directory");
    let long = "x".repeat(500);
    let json = r#"'{"driver":"qcow2","file":{"driver":"file","filename":"image"}}'"#;
    let json = json.replacen('{', "json:{", 1);
    let extra = json.replace(r#""qcow2","#, r#""qcow2","cache":"x","#);
    let range = json.replace(r#""qcow2","#, r#""raw","offset":512,"size":512,"#);
    let own = r#"-f qcow2 'json:{"driver":"file","filename":"image"}'"#;
    // What is refused, what the message advises, and what works; "" where there is nothing to be done here.
    let rows = [
        ("create -o foo=1 n1 1M", "'-o help' lists them all", "create -o help"),
        (
            &format!("create -u -o cluster_size=512 -b {long} -F qcow2 n2 1M"),
            "use a shorter backing file name or larger clusters",
            &format!("create -u -o cluster_size=4k -b {long} -F qcow2 n2 1M"),
        ),
        (
            "checksum --snapshot snapshot.foo=1 image",
            "snapshot.name=NAME",
            "checksum --snapshot snapshot.name=before image",
        ),
        (&format!("checksum {extra}"), "supported are driver", &format!("checksum {json}")),
        (&format!("check {range}"), "copy that range into a file", ""),
        (&format!("checksum {own}"), "name the format's driver", &format!("checksum {json}")),
        ("checksum --backing-format image=raw top", "leave out what is stated", "checksum top"),
        ("checksum --backing-format x=raw top", "or leave it out", "checksum top"),
        (
            "flatten image directory",
            "give the name of a file to create",
            "flatten image directory/n3",
        ),
        (
            "flatten --force image directory",
            "give the name of a file",
            "flatten image directory/n4",
        ),
        (
            "checksum --untrusted -f qcow2 link",
            "the name of the file that it leads to",
            "checksum --untrusted -f qcow2 image",
        ),
        ("checksum --untrusted -f raw image", "a program that guesses formats", ""),
        ("create -f raw -b image -F qcow2 n9", "leave out -f raw", "create -b image -F qcow2 n9"),
        ("flatten -f qcow2 - n10 < image", "Name a file", "flatten -f qcow2 image n10"),
        ("rescue -f qcow2 image", "give --candidates or --manifest", ""),
        ("checksum newer", "a newer program wrote this image", ""),
        ("create -o encrypt.format=luks n5 1M", "encrypt inside the guest", "create n5 1M"),
        ("create -o nocow=on n6 1M", "on the directory first: chattr", "create n6 1M"),
        ("create -o extent_size_hint=1M n7 1M", "on the directory first: xfs_io", "create n7 1M"),
    ];
    for (wrong, advice, right) in rows {
        refused(&scratch, &format!("qcowtool {wrong}"), advice);
        if !right.is_empty() {
            works(&scratch, &format!("qcowtool {right}"));
        }
    }
    let line = "qcowtool flatten -O raw image n8";
    let limit = "this process's limit for the size of files";
    refused(&scratch, &format!("(ulimit -f 100; {line})"), limit);
    works(&scratch, line);
}

/// All Rust files below a directory of the repository, and their text.
fn sources(directories: &[&str]) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<_> = directories.iter().map(|directory| root.join(directory)).collect();
    let mut found = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

/// The body of the test that is called `file::function`; all of the file if no function is named.
fn body(name: &str) -> String {
    let (file, function) = name.split_once("::").unwrap();
    let file = format!("{file}.rs");
    let files = sources(&["tests"]);
    let found = files.iter().find(|(path, text)| {
        path.file_name().is_some_and(|name| *name == *file)
            && text.contains(&format!("fn {function}"))
    });
    let (_, text) = found.unwrap_or_else(|| panic!("no test {name}"));
    let start = text.find(&format!("fn {function}")).unwrap();
    let text = &text[start..];
    let end = if function.is_empty() { text.len() } else { text.find("\n}\n").unwrap() };
    text[..end].to_owned()
}

#[test]
fn every_remedy_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = fs::read_to_string(root.join("qcow/src/remedy.rs")).unwrap();
    let (_, list) = library.split_once("pub enum Remedy {\n").unwrap();
    let (list, _) = list.split_once("\n}\n").unwrap();
    let named = |line: &str| {
        let line = line.trim();
        let end = line.find(|c: char| !c.is_alphanumeric()).unwrap_or(line.len());
        (!line.starts_with("//") && end > 0).then(|| line[..end].to_owned())
    };
    let remedies: BTreeSet<_> = list.lines().filter_map(named).collect();
    assert!(remedies.len() > 35, "{remedies:?}");
    let listed: BTreeSet<_> = REMEDIES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(remedies, listed, "REMEDIES lists all, and nothing else");
    let wording = fs::read_to_string(root.join("src/remedies.rs")).unwrap();
    let (wording, tests) = wording.split_once("#[cfg(test)]").unwrap();
    for (name, words, test) in REMEDIES {
        assert!(tests.contains(&format!("Remedy::{name}")) || *name == "Advice", "{name}");
        let products = wording.contains(words) || library.contains(words);
        assert!(products, "{name}: no such words: {words}");
        if !test.is_empty() {
            assert!(body(test).contains(words), "{test} does not look for {words}");
        }
    }
}

#[test]
fn every_advice_in_plain_words_has_its_test() {
    let mut unused: BTreeSet<_> = WORDS.iter().map(|(words, _)| *words).collect();
    let mut unlisted = Vec::new();
    for (path, text) in sources(&["qcow/src", "src"]) {
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for call in text.split(".hint(").skip(1) {
            let call = call.trim_start().trim_start_matches("format!(").trim_start();
            let Some(words) = call.strip_prefix('"') else { continue };
            match WORDS.iter().find(|(known, _)| words.starts_with(known)) {
                Some((known, _)) => drop(unused.remove(known)),
                None => {
                    unlisted.push(format!("{}: {}", path.display(), words.lines().next().unwrap()))
                }
            }
        }
    }
    assert!(unlisted.is_empty(), "not in WORDS:\n{}", unlisted.join("\n"));
    assert!(unused.is_empty(), "in WORDS, and not in the product: {unused:?}");
    for (_, test) in WORDS {
        if let Some((file, _)) = test.split_once("::") {
            assert!(!file.is_empty() && !body_of_any(test).is_empty(), "{test}");
        }
    }
}

/// As `body`, also of a test beside the code.
fn body_of_any(name: &str) -> String {
    let function = format!("fn {}(", name.rsplit("::").next().unwrap_or_default());
    let files = sources(&["tests", "qcow/src", "qcow/tests", "src"]);
    let found = files.iter().find(|(_, text)| text.contains(&function));
    found.map(|(_, text)| text.clone()).unwrap_or_else(|| panic!("no test {name}"))
}
