//! External data files that an option names in place of the header.

use std::fs;

use fixtures::needs_qemu;

use crate::beside::Beside;

/// `image`, whose header names `recorded`; `other` has something else in the same place.
fn set_up() -> Beside {
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 plain 1M
         qemu-img create -q -f qcow2 -o data_file=recorded image 1M
         qemu-io -f qcow2 -c 'write -P 1 0 128k' image >/dev/null
         cp recorded other; qemu-io -f raw -c 'write -P 9 0 64k' other >/dev/null
         qemu-img create -q -f qcow2 -b image -F qcow2 top
         qemu-img create -q -f raw source 1M; qemu-io -f raw -c 'write -P 5 64k 256k' source >/dev/null",
    );
    beside
}

const OTHER: &str = "driver=qcow2,file.filename=image,data-file.filename=other";
const JSON: &str = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"image"},"data-file":{"driver":"file","filename":"other"}}"#;

/// The recorded data file is as it was.
fn assert_untouched(beside: &Beside) {
    let recorded = fs::read(beside.ours_dir().join("recorded")).unwrap();
    let (data, zeros) = recorded.split_at(128 << 10);
    assert!(data.iter().all(|byte| *byte == 1) && zeros.iter().all(|byte| *byte == 0));
}

#[test]
fn a_data_file_that_an_option_names_is_read_in_place_of_the_recorded_one() {
    needs_qemu!();
    let beside = set_up();
    let dotted = r#"json:{"driver":"qcow2","file.filename":"image","data-file.driver":"raw","data-file.file.filename":"other"}"#;
    let reads_other = |source: &[&str]| {
        beside.both(&[&["convert", "-O", "raw"], source, &["copy"]].concat()).ok();
        let copy = fs::read(beside.ours_dir().join("copy")).unwrap();
        assert_eq!((copy[0], copy[65536], copy[131_072]), (9, 1, 0), "{source:?}");
    };
    for source in [&["--image-opts", OTHER][..], &[JSON], &[dotted]] {
        reads_other(source);
        for command in [&["map", "--output", "json"][..], &["map"], &["check"], &["measure"]] {
            beside.both(&[command, source].concat()).ok();
        }
        // What is told of an image is what its header has, whatever the option says.
        assert!(
            beside.both(&[&["info"][..], source].concat()).ok().contains("data file: recorded\n")
        );
    }
    let list = ["--image-opts", OTHER];
    assert!(beside.both(&[&["map"][..], &list].concat()).ok().contains(" other\n"));
    let below = "driver=qcow2,file.filename=top,backing.data-file.filename=other";
    reads_other(&["--image-opts", below]);
    let whole = "driver=qcow2,file.filename=top,backing.driver=qcow2,backing.file.filename=image,backing.data-file.filename=other";
    reads_other(&["--image-opts", whole]);
    beside
        .both(&["compare", "--image-opts", OTHER, &format!("{OTHER},data-file.read-only=on")])
        .ok();
    assert_untouched(&beside);
}

#[test]
fn what_is_written_goes_to_the_data_file_that_an_option_names() {
    needs_qemu!();
    let beside = set_up();
    let same_other = || {
        beside.both(&["convert", "-O", "raw", "--image-opts", OTHER, "copy"]).ok();
        beside.same_content("copy", "raw");
        assert_untouched(&beside);
    };
    let onto = ["convert", "-n", "--target-image-opts", "-f", "raw", "source", OTHER];
    beside.both(&onto).ok();
    same_other();
    beside.both(&["convert", "-n", "-f", "raw", "-O", "qcow2", "source", JSON]).ok();
    same_other();
    beside.both(&["resize", "--image-opts", OTHER, "2M"]).ok();
    same_other();
    beside.both(&["amend", "-o", "size=3M", "--image-opts", OTHER]).ok();
    same_other();
    beside.both(&["rebase", "-f", "qcow2", "-b", "plain", "-F", "qcow2", "top"]).ok();
    assert_untouched(&beside);
    let written = beside.ours(&["bench", "-w", "-c", "4", "--image-opts", OTHER]);
    assert!(written.out.contains("Run completed"), "{written:?}");
    assert_untouched(&beside);
    assert_ne!(fs::read(beside.ours_dir().join("other")).unwrap()[65536], 1);
    // What is written would change what is read.
    for target in [&["-O", "qcow2", "other", JSON][..], &["-O", "qcow2", "recorded", "image"]] {
        beside.both(&[&["convert", "-n", "-f", "raw"], target].concat()).refused();
    }
    beside.ours(&["convert", "-n", "-U", "-f", "qcow2", "-O", "qcow2", "image", JSON]).refused();
    assert_untouched(&beside);
    // The base would be opened by its own name, and what is written go to the data file of its header.
    let top = "driver=qcow2,file.filename=top,backing.driver=qcow2,backing.file.filename=image,backing.data-file.filename=other";
    let refused = beside.ours(&["commit", "--image-opts", top]).refused();
    assert!(refused.contains("data file"), "{refused}");
    assert_untouched(&beside);
}

#[test]
fn options_about_data_files_are_refused_as_qemu_refuses_them() {
    needs_qemu!();
    let beside = set_up();
    let same_refusal = |words: &[&str]| {
        let said = [beside.both(words).refused(), beside.theirs(words).refused()];
        let lines = said.each_ref().map(|text| text.lines().last().unwrap_or_default());
        assert_eq!(lines[0], lines[1], "{words:?}");
    };
    for options in [
        "driver=qcow2,file.filename=plain,data-file.filename=other",
        "driver=qcow2,file.filename=image,data-file.filename=gone",
        "driver=qcow2,file.filename=image,data-file.filename=file:other",
        "driver=qcow2,file.filename=image,data-file=other",
        "driver=raw,file.filename=image,data-file.filename=other",
    ] {
        same_refusal(&["map", "--image-opts", options]);
        same_refusal(&["check", "-r", "all", "--image-opts", options]);
        same_refusal(&["resize", "--image-opts", options, "2M"]);
    }
    let directory = "driver=qcow2,file.filename=image,data-file.filename=.";
    same_refusal(&["map", "--image-opts", directory]);
    let plain = "driver=qcow2,file.filename=plain,data-file.filename=other";
    for command in
        [&["snapshot", "-c", "s"][..], &["bench", "-c", "1"], &["amend", "-o", "size=2M"]]
    {
        same_refusal(&[command, &["--image-opts", plain]].concat());
    }
    same_refusal(&["bitmap", "--add", "--image-opts", plain, "b"]);
    // Here ours is stricter: a data file is a whole file, and no image.
    for node in [
        r#"{"driver":"raw","offset":512,"file":{"driver":"file","filename":"other"}}"#,
        r#"{"driver":"qcow2","file":{"driver":"file","filename":"plain"}}"#,
    ] {
        let name = format!(
            r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"image"}},"data-file":{node}}}"#
        );
        beside.theirs(&["map", &name]).ok();
        beside.ours(&["map", &name]).refused();
        beside.ours(&["convert", "-n", "-f", "raw", "-O", "qcow2", "source", &name]).refused();
    }
    assert_untouched(&beside);
}

#[test]
fn an_image_that_names_no_data_file_is_opened_where_an_option_names_one() {
    needs_qemu!();
    let beside = set_up();
    beside.same("amend -o data_file= image");
    let told = beside.same("info image");
    assert!(told.contains("data file raw: false") && !told.contains("data file:"), "{told}");
    for line in ["check image", "map image", "resize image 2M", "amend -o data_file=x image"] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let said = [beside.both(&words).refused(), beside.theirs(&words).refused()];
        assert_eq!(said[0], said[1], "{line}");
    }
    beside.both(&["check", "--image-opts", OTHER]).ok();
    beside.both(&["convert", "-n", "--target-image-opts", "-f", "raw", "source", OTHER]).ok();
    beside.both(&["resize", "--image-opts", OTHER, "2M"]).ok();
    beside.both(&["convert", "-O", "raw", "--image-opts", OTHER, "copy"]).ok();
    beside.same_content("copy", "raw");
    beside.both(&["amend", "-o", "data_file=other", "--image-opts", OTHER]).ok();
    assert!(beside.same("info image").contains("data file: other\n"));
    beside.same("convert -O raw image copy");
    beside.same_content("copy", "raw");
    assert_untouched(&beside);
}
