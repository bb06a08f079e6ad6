//! Every remedy of the libraries has a test that carries out what its words say, and so has every advice that is no remedy but
//! words. `REMEDIES` and `WORDS` are compared with the sources: what is added there and not here fails.
//!
//! Where an advice has a command in it, that command is taken from the message and run.

mod foreign;
mod images;
mod migration;
mod shell;
mod words;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A remedy, what its words are known by, and the test that carries it out, which looks for them.
const REMEDIES: &[(&str, &str, &str)] = &[
    ("Replace", "--force", "advice::advice_about_options_is_right"),
    ("ShareRead", "give -U", "advice::advice_about_images_is_right"),
    ("ReplaceInUse", "--force-in-use", "images::what_is_in_use"),
    (
        "ChangeShared",
        "give --shared",
        "committing::another_overlay_of_the_base_is_not_changed_unasked",
    ),
    ("ChangeSnapshots", "--change-snapshots", "committing::snapshots_are_not_changed_unasked"),
    ("KeepOverlay", "give -d", "committing::what_cannot_be_committed_is_refused"),
    (
        "WriteInto",
        "flatten -n -O raw",
        "existing::what_is_mounted_cannot_be_replaced_and_the_way_that_is_advised_writes_into_it",
    ),
    ("NewFile", "leave out -n", "existing::what_cannot_be_written_into_is_refused_untouched"),
    ("StopUser", "stop the process that uses it", "images::what_is_in_use"),
    ("StopChanges", "no other process changes the image", "images::what_changes"),
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
    ("RestoreBacking", "restore the file", "images::what_is_missing"),
    ("Flatten", "copy the image with", "images::what_is_damaged"),
    ("FlattenLower", "copy the lower images", "images::a_chain_that_is_too_deep"),
    ("Salvage", "flatten --salvage", "images::what_is_damaged"),
    ("Repair", "`qcowtool check -r all`", "advice::advice_about_images_is_right"),
    ("Check", "tells more", "images::what_is_damaged"),
    ("DropSnapshots", "removes the snapshots", "images::what_is_damaged"),
    ("Shrink", "then give --shrink", "resize::a_smaller_disk_is_asked_for_and_what_goes_is_said"),
    (
        "DropBitmaps",
        "give --bitmaps drop",
        "snapshot::a_bitmap_that_was_not_stored_cleanly_does_not_get_another_size",
    ),
    (
        "MarkBitmaps",
        "give --bitmaps mark",
        "snapshot::bitmaps_are_kept_and_an_image_with_some_is_not_changed_behind_their_backs",
    ),
    (
        "SkipBrokenBitmaps",
        "give --skip-broken-bitmaps",
        "carrying_bitmaps::one_that_was_not_stored_cleanly_is_refused_by_name_or_left_out_and_said",
    ),
    ("ListSnapshots", "`qcowtool info` lists", "advice::advice_about_options_is_right"),
    ("ConvertFrom", "convert it with", "foreign::what_is_in_another_format"),
    ("Decompress", "decompress it first", "foreign::what_is_in_another_format"),
    ("Unpack", "take the disk out", "foreign::what_is_in_another_format"),
    ("DecompressStream", "on the way", "foreign::what_comes_as_a_stream"),
    ("SaveStream", "save it to a file", "foreign::what_comes_as_a_stream"),
    ("Decrypt", "decrypt it with", "foreign::what_is_encrypted"),
    ("CopyToLocalFile", "copy it to a local file", "foreign::what_is_no_local_file"),
    ("GiveSize", "give a size", "advice::advice_about_options_is_right"),
    ("DestinationFormat", "use -O qcow2", "advice::advice_about_options_is_right"),
    ("LargerClusters", "use a larger cluster_size", "advice::advice_about_options_is_right"),
    // The parser of the command line is faster, so the library's test asks for it.
    ("Compress", "", "advice::options_that_need_others"),
    ("NameFile", "write to a file that has a name", "advice::advice_about_options_is_right"),
    ("OverwriteDevice", "--device", "flatten_devices::"),
    ("NotDevice", "leave out --device", "advice::advice_about_options_is_right"),
    ("BufferedIo", "leave out --direct", "images::what_has_no_direct_io"),
    ("CheckStream", "check --size", "foreign::what_comes_as_a_stream"),
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
    ("'-o help' lists them all", "words::plain_words"),
    ("use a shorter backing file name", "words::plain_words"),
    ("write {host} for the host's name", "words::plain_words"),
    ("migrate one guest at a time", "words::plain_words"),
    ("give snapshot.id=ID", "words::plain_words"),
    ("choose another name", "snapshot::a_snapshot_that_another_could_be_meant_by_is_named_exactly"),
    ("say snapshot.id=ID", "snapshot::a_snapshot_that_another_could_be_meant_by_is_named_exactly"),
    (
        "use off, metadata, falloc or full",
        "resize::a_smaller_disk_is_asked_for_and_what_goes_is_said",
    ),
    ("change the size of the partition", "devices::a_block_device_keeps_its_size"),
    ("supported are driver", "words::plain_words"),
    ("copy that range into a file", "words::plain_words"),
    ("name the format's driver", "words::plain_words"),
    ("leave out what is stated", "words::plain_words"),
    ("name a backing file of the chain", "words::plain_words"),
    ("the file system, or this process's limit", "words::plain_words"),
    ("give the name of a file to create", "words::plain_words"),
    ("give the name of the link's target", "words::plain_words"),
    (
        "use a coarser granularity",
        "bitmap::a_plan_writes_nothing_and_what_is_in_use_or_not_understood_is_refused",
    ),
    (
        "raise the image's version to 3",
        "bitmap::a_plan_writes_nothing_and_what_is_in_use_or_not_understood_is_refused",
    ),
    (
        "see 'qcowtool bitmap --help'",
        "bitmap::a_plan_writes_nothing_and_what_is_in_use_or_not_understood_is_refused",
    ),
    ("give space back without moving clusters", "sparsify::data_files_and_raw_disks_get_holes"),
    (
        "delete the snapshot first",
        "amend::what_cannot_be_amended_is_refused_with_the_reason_and_what_is_advised_works",
    ),
    (
        "remove the bitmaps first",
        "amend::what_cannot_be_amended_is_refused_with_the_reason_and_what_is_advised_works",
    ),
    (
        "ask for version 3, or for 16 bits",
        "amend::what_cannot_be_amended_is_refused_with_the_reason_and_what_is_advised_works",
    ),
    (
        "ask for version 3",
        "amend::what_cannot_be_amended_is_refused_with_the_reason_and_what_is_advised_works",
    ),
    (
        "name a copy of the old data file",
        "amend::what_cannot_be_amended_is_refused_with_the_reason_and_what_is_advised_works",
    ),
    (
        "`qcowtool flatten -o OPTIONS` writes",
        "amend::what_cannot_be_amended_is_refused_with_the_reason_and_what_is_advised_works",
    ),
    ("add --read-only", "serve::what_cannot_be_served_is_refused_with_a_reason"),
    (
        "serve one by another process, with --export",
        "serve::what_cannot_be_served_is_refused_with_a_reason",
    ),
    (
        "give --socket PATH or --listen ADDRESS:PORT",
        "serve::what_cannot_be_served_is_refused_with_a_reason",
    ),
    ("see 'qcowtool io --help'", "words::plain_words"),
    (
        "close the disk, look after the storage",
        "faults::after_a_failed_sync_nothing_is_written_any_more_and_all_can_be_read",
    ),
    ("a program that guesses formats", "words::plain_words"),
    ("a newer program wrote this image", "words::plain_words"),
    ("encrypt inside the guest", "words::plain_words"),
    ("set the attribute on the directory", "words::plain_words"),
    ("set it on the directory first", "words::plain_words"),
    ("its reader ended", "flatten_streams::a_reader_that_goes_away_is_an_error"),
    ("choose a larger {noun}", "existing::what_cannot_be_written_into_is_refused_untouched"),
    ("see --help", "advice::advice_about_options_is_right"),
    ("give bytes, or a number with a suffix", "advice::advice_about_options_is_right"),
    ("leave out --algorithm", "advice::advice_about_options_is_right"),
    ("name it with -b", "advice::advice_about_options_is_right"),
    ("state it with -F qcow2 or -F raw", "advice::advice_about_options_is_right"),
    ("name a file instead of '-'", "advice::advice_about_options_is_right"),
    ("make a qcow2 image: leave out -f raw", "words::plain_words"),
    ("a qcow2 image cannot be read sequentially", "words::plain_words"),
    ("give --candidates or --manifest", "words::plain_words"),
    ("take it of the new image", "advice::options_that_need_others"),
    ("free some space, then try again", "limits::on_a_full"),
    (
        "make a full backup",
        "advice::a_bitmap_that_was_not_stored_cleanly_is_removed_after_a_full_backup",
    ),
    ("the formats are qcow2 and raw", "advice::options_that_need_others"),
    ("add its layer", "advice::layers_and_extents_of_a_chain"),
    ("record an absolute name", "advice::names_and_descriptors"),
    ("read it with a reader of the chain", "advice::layers_and_extents_of_a_chain"),
    ("give a buffer of the extent", "advice::layers_and_extents_of_a_chain"),
    (
        "the new file is whole",
        "errnos::a_name_is_given_in_the_next_way_and_a_whole_result_is_never_removed",
    ),
    ("run it as root", "words::what_only_root_can_keep"),
    ("open it with O_RDWR", "advice::names_and_descriptors"),
    ("unmount it", "flatten_devices::a_mounted_device_is_refused"),
    (
        "it needs Linux 5.13",
        "sandbox::where_the_kernel_cannot_who_insists_is_refused_and_who_does_not_is_served",
    ),
    ("the largest has {", "words::plain_words"),
    ("install qcowtool-libvirt", "directories::the_program_without_libvirt_says_what_is_missing"),
    ("choose another port", "words::a_port_that_is_taken"),
    ("add --method copy", "flatten::too_little_room_is_refused"),
    ("name a file, or redirect standard output", "words::an_image_is_not_written_to_a_terminal"),
    (
        "remove it by hand if it is not needed",
        "ways_out::what_is_left_of_a_transaction_is_removed_and_the_transaction_ended",
    ),
    (
        "leave it out, or give --connect dir:",
        "ways_out::what_plan_and_preflight_want_of_a_guest_in_a_directory",
    ),
    (
        "give the guest's XML with --domain-xml",
        "ways_out::what_plan_and_preflight_want_of_a_guest_in_a_directory",
    ),
    ("build it with the cargo feature 'pictures'", "no_picture::without_pictures_none_is_drawn"),
    ("build it with the cargo feature 'monitor'", "no_monitor::without_the_monitor_it_is_refused"),
    (
        "build it with the feature `zstd`",
        "advice::without_the_feature_zstd_such_clusters_are_refused_and_all_else_is_read",
    ),
];

/// All Rust files below directories of the repository, and their text.
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
    let files = sources(&["tests", "qcow/tests"]);
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
        // Under the name qemu-img the words are that program's; tests/qemu_img compares them.
        if path.components().any(|part| part.as_os_str() == "qemu_img") {
            continue;
        }
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
        assert!(!body_of_any(test).is_empty(), "{test}");
    }
}

/// The file of a test, which may be beside the code.
fn body_of_any(name: &str) -> String {
    let (file, function) = name.split_once("::").unwrap();
    let (file, function) = (format!("{file}.rs"), format!("fn {function}("));
    let files = sources(&["tests", "qcow/src", "qcow/tests", "src"]);
    let found = files.iter().find(|(path, text)| path.ends_with(&file) && text.contains(&function));
    found.map(|(_, text)| text.clone()).unwrap_or_else(|| panic!("no test {name}"))
}
