//! Chains whose formats are not recorded, whose base is left out, or whose names mean more than a file.

use std::path::{Path, PathBuf};

use common::{checksum, flattened, qcowtool, qcowtool_in};
use fixtures::patch::magic;
use fixtures::{
    Patch, Scratch, args, assert_bytes, crc32_hex, needs_qemu, qemu, qemu_img, qemu_io,
};

const MIB: usize = 1 << 20;

/// Removes what an image records of its backing file's format, as QEMU before 6.1 left it out.
fn forget_format(image: &Path) {
    let mut patch = Patch::open(image);
    let name = patch.u64(8) as usize;
    let length = patch.u32(16) as usize;
    let backing = patch.bytes[name..][..length].to_vec();
    patch.set_header_area(112, &[], true);
    patch.set_backing(256, &backing).save();
}

/// `top` over `mid.qcow2` over `base.raw`, no format recorded; and what the guest sees.
fn unrecorded(scratch: &Scratch) -> (PathBuf, Vec<u8>) {
    let path = |name: &str| scratch.path(name);
    scratch.file("base.raw", &vec![1; 4 * MIB]);
    qemu::overlay(path("mid.qcow2"), "base.raw", "raw", "", "");
    qemu_io("qcow2", path("mid.qcow2"), &["write -P 2 1M 1M"]);
    qemu::overlay(path("top.qcow2"), "mid.qcow2", "qcow2", "", "");
    qemu_io("qcow2", path("top.qcow2"), &["write -P 3 2M 1M"]);
    let content = qemu::raw_of("qcow2", path("top.qcow2"));
    forget_format(&path("mid.qcow2"));
    forget_format(&path("top.qcow2"));
    (path("top.qcow2"), content)
}

/// The options that a refusal advises, without the program's quotes; each `FMT` is `format`.
fn advised(message: &str, format: &str) -> Vec<String> {
    let words = message.split_whitespace().map(|word| word.trim_end_matches([',', ')', ';']));
    let words: Vec<_> = words.map(|word| word.replace('\'', "").replace("FMT", format)).collect();
    let pairs = words.windows(2).filter(|pair| pair[0].ends_with("--backing-format"));
    pairs.flat_map(|pair| ["--backing-format".to_owned(), pair[1].clone()]).collect()
}

#[test]
fn each_layer_of_unrecorded_format_is_stated_by_its_name() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, content) = unrecorded(&scratch);
    let base = scratch.path("base.raw").display().to_string();
    for names in [["mid.qcow2", "base.raw"], ["mid.qcow2", &base]] {
        let [mid, base] = names;
        let (mid, base) = (format!("{mid}=qcow2"), format!("{base}=raw"));
        let options = ["--backing-format", &mid, "--backing-format", &base];
        assert_bytes!(flattened(&top, &options), content);
        assert_eq!(checksum(&top, &options), crc32_hex(&content));
    }
    // One value is for one layer: no order of events makes it content.
    for format in ["qcow2", "raw"] {
        let run = qcowtool(args!["checksum", "--backing-format", format, top]);
        run.refused_naming(&["mid.qcow2"]);
    }
    let both = qcowtool(args!["checksum", "--backing-format", "qcow2", top]);
    both.refused_naming(&["mid.qcow2", "base.raw"]);
    // A name that no layer has is a mistake.
    let wrong = args![
        "--backing-format",
        "mid.qcow2=qcow2",
        "--backing-format",
        "base.raw=raw",
        "--backing-format",
        "bas.raw=raw"
    ];
    qcowtool([args!["checksum"], wrong, args![top]].concat()).refused_naming(&["bas.raw"]);
    // So is a format other than the recorded one.
    let sound = scratch.path("sound.qcow2");
    qemu::overlay(&sound, "base.raw", "raw", "", "");
    let options = args!["checksum", "--backing-format", "base.raw=qcow2", sound];
    qcowtool(options).refused_naming(&["recorded to be raw"]);
}

#[test]
fn the_advised_options_open_the_chain() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, content) = unrecorded(&scratch);
    // One layer after the other, as the messages say.
    let mut options: Vec<String> = Vec::new();
    for format in ["qcow2", "raw"] {
        let words: Vec<_> = options.iter().map(String::as_str).collect();
        let mut arguments = args!["checksum"];
        arguments.extend(words.iter().map(Into::into));
        arguments.push(top.clone().into());
        let message = qcowtool(arguments).refused();
        let advice = advised(&message, format);
        let name = advice[1].rsplit_once('=').unwrap().0.to_owned();
        options.extend(["--backing-format".to_owned(), format!("{name}={format}")]);
    }
    let words: Vec<_> = options.iter().map(String::as_str).collect();
    assert_eq!(checksum(&top, &words), crc32_hex(&content));
    // Of two layers, both are listed with what to write for each.
    let message = qcowtool(args!["checksum", "--backing-format", "qcow2", top]).refused();
    let advice = advised(&message, "qcow2");
    assert_eq!(advice.len(), 4, "{message}");
    let mut words: Vec<_> = advice.iter().map(String::as_str).collect();
    let base = words[3].replace("=qcow2", "=raw");
    words[3] = &base;
    assert_eq!(checksum(&top, &words), crc32_hex(&content));
}

#[test]
fn raw_over_the_magic_of_an_image_is_believed_only_with_insistence() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, _) = unrecorded(&scratch);
    let named = ["--backing-format", "mid.qcow2=raw"];
    let message = qcowtool(args!["checksum", named[0], named[1], top]).refused();
    assert!(message.contains("--raw-despite-magic"), "{message}");
    let insisting = ["--backing-format", "mid.qcow2=raw", "--raw-despite-magic"];
    // As QEMU reads it where the header says raw.
    let recorded = scratch.path("recorded.qcow2");
    std::fs::copy(&top, &recorded).unwrap();
    qemu_img(&args!["rebase", "-u", "-f", "qcow2", "-b", "mid.qcow2", "-F", "raw", recorded]);
    let expected = qemu::raw_of("qcow2", &recorded);
    assert_eq!(checksum(&top, &insisting), crc32_hex(&expected));
    // Not without the layer's name.
    let unnamed = args!["checksum", "--backing-format", "raw", "--raw-despite-magic", top];
    qcowtool(unnamed).refused();
}

#[test]
fn compare_takes_formats_for_each_image() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, content) = unrecorded(&scratch);
    let other = scratch.path("other.qcow2");
    scratch.file("flat.img", &content);
    qemu::overlay(&other, "flat.img", "raw", "", "");
    forget_format(&other);
    let first = args!["--backing-format", "mid.qcow2=qcow2", "--backing-format", "base.raw=raw"];
    let images = args![top, other];
    let second = args!["--second-backing-format", "raw"];
    qcowtool([args!["compare"], first.clone(), second, images.clone()].concat()).ok();
    let run = qcowtool([args!["compare"], first, images].concat());
    assert_eq!(run.code(), Some(2), "{}", run.stderr());
    assert!(run.stderr().contains("flat.img"), "{}", run.stderr());
}

#[test]
fn an_image_alone_is_read_as_qemu_reads_it_without_its_backing_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, _) = unrecorded(&scratch);
    let theirs = qemu::try_raw_of("qcow2", qemu::alone(&top), None).unwrap();
    for name in ["base.raw", "mid.qcow2"] {
        assert_bytes!(flattened(&top, &["--alone"]), theirs);
        assert_eq!(checksum(&top, &["--alone"]), crc32_hex(&theirs));
        // The base's being gone is no hindrance.
        std::fs::remove_file(scratch.path(name)).unwrap();
    }
    let message = qcowtool(args!["checksum", "--backing-format", "qcow2", top]).refused();
    assert!(message.contains("--alone"), "{message}");
    let lost = serde_json::json!([
        {"start": 0, "length": 2 * MIB}, {"start": 3 * MIB, "length": MIB}
    ]);
    let target = scratch.path("left.qcow2");
    for command in [args!["checksum"], args!["measure", "-O", "qcow2"], args!["flatten"]] {
        let mut arguments = [command, args!["--output", "json", "--alone", top]].concat();
        if arguments[0] == "flatten" {
            arguments.push(target.clone().into());
        }
        let run = qcowtool(arguments);
        assert!(run.stderr().contains("warning: the backing file 'mid.qcow2'"), "{}", run.stderr());
        let outcome = run.json();
        assert_eq!(outcome["left-out"]["bytes"], 3 * MIB, "{outcome}");
        assert_eq!(outcome["left-out"]["ranges"], lost, "{outcome}");
    }
    assert_bytes!(qemu::raw_of("qcow2", &target), theirs);
    let run = qcowtool(args!["map", "--alone", top]);
    run.ok();
    assert!(run.stderr().contains("left out: offset 3145728, 1048576 bytes"), "{}", run.stderr());
    let map = qcowtool(args!["map", "--alone", "--output", "json", top]).json();
    let theirs = qemu_img(&args!["map", "--output", "json", qemu::alone(&top)]);
    let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
    assert_eq!(map[1]["start"], theirs[1]["start"]);
    assert_eq!(map[0]["present"], false);
}

#[test]
fn the_upper_layers_of_a_cut_chain_are_read_together() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (top, mut content) = unrecorded(&scratch);
    std::fs::remove_file(scratch.path("base.raw")).unwrap();
    content[..MIB].fill(0);
    content[3 * MIB..].fill(0);
    let options = ["--alone=2", "--backing-format", "mid.qcow2=qcow2"];
    assert_bytes!(flattened(&top, &options), content);
}

/// `json:` names of an image, with what they hold in common: `FILE` is the qcow2 image `ov.qcow2` over
/// `base.raw`, `PAT` a raw file of 4708 bytes.
const NAMES: &[&str] = &[
    r#"{"driver":"raw",PAT}"#,
    r#"{'driver':'raw','file':{'driver':'file','filename':'@/pat.raw'}}"#,
    r#"{'driver':"raw",'file.filename':'@/pat.raw',"offset":'512'}"#,
    r#"{'driver':'raw','file.filename':'@/it\'s "quoted".raw'}"#,
    r#"{"driver":"raw","file.filename":"@/it\'s \"quoted\".raw"}"#,
    r#"{"driver":"raw","file.filename":"@/it's \"quoted\".raw"}"#,
    r#"{"driver":"raw",'file.filename':'@/it\u0027s \u0022quoted\".raw'}"#,
    r#"{'driver':'raw","file.filename":"@/pat.raw"}"#,
    r#"{"driver":'raw","file.filename":"@/pat.raw'}"#,
    r#"{"driver":"raw",'file.filename':'@/pat.raw}"#,
    r#"{"driver":"raw",'file.filename':'@/pat.raw\'}"#,
    r#"{"driver":"raw",PAT,"offset":512}"#,
    r#"{"driver":"raw",PAT,"offset":"512"}"#,
    r#"{"driver":"raw",PAT,"offset":100}"#,
    r#"{"driver":"raw",PAT,"size":1024}"#,
    r#"{"driver":"raw",PAT,"size":1000}"#,
    r#"{"driver":"raw",PAT,"offset":512,"size":1024}"#,
    r#"{"driver":"raw",PAT,"offset":512,"size":8192}"#,
    r#"{"driver":"raw",PAT,"offset":4608}"#,
    r#"{"driver":"raw",PAT,"offset":5120}"#,
    r#"{"driver":"raw",PAT,"offset":6000}"#,
    r#"{"driver":"raw",PAT,"size":512,"offset":4096}"#,
    r#"{"driver":"raw",PAT,"offset":"1k"}"#,
    r#"{"driver":"raw",PAT,"offset":"0x200"}"#,
    r#"{"driver":"raw",PAT,"offset":-1}"#,
    r#"{"driver":"raw",PAT,"offset":null}"#,
    r#"{"driver":"raw",PAT,"offset":18446744073709551615}"#,
    r#"{PAT,"offset":512}"#,
    r#"{PAT}"#,
    r#"{"file.filename":"@/pat.raw"}"#,
    r#"{"driver":"file","filename":"@/ov.qcow2"}"#,
    r#"{"driver":"file","filename":"@/pat.raw","offset":512}"#,
    r#"{"driver":"raw","filename":"@/pat.raw"}"#,
    r#"{"filename":"@/pat.raw"}"#,
    r#"{"driver":"raw","file":"@/pat.raw"}"#,
    r#"{"driver":"raw","file":{"driver":"raw",PAT,"offset":512},"offset":512}"#,
    r#"{"driver":"raw","file":{"driver":"raw",PAT,"size":2048},"offset":1024}"#,
    r#"{"driver":"raw","file":{"driver":"raw","filename":"@/pat.raw"}}"#,
    r#"{"driver":"raw","file":{"driver":"file","filename":"file:@/pat.raw"}}"#,
    r#"{"driver":"raw",PAT,"backing":null}"#,
    r#"{"driver":"raw",PAT,"backing":{"driver":"raw",PAT}}"#,
    r#"{"driver":"raw",PAT,"foo":1}"#,
    r#"{"driver":"qcow2",FILE}"#,
    r#"{"driver":"qcow2","file":{"driver":"raw","offset":524288,"file":{"driver":"file","filename":"@/cont.bin"}}}"#,
    r#"{"driver":"qcow2","offset":524288,"file":{"driver":"file","filename":"@/cont.bin"}}"#,
    r#"{"offset":524288,"file":{"driver":"file","filename":"@/cont.bin"}}"#,
    r#"{"driver":"qcow2","file":{"driver":"raw",FILE}}"#,
    r#"{"driver":"qcow2",FILE,"lazy-refcounts":true,"l2-cache-size":65536}"#,
    r#"{"driver":"qcow2",FILE,"backing":null}"#,
    r#"{"driver":"qcow2",FILE,"backing":""}"#,
    r#"{"driver":"qcow2",FILE,"backing":{}}"#,
    r#"{"driver":"qcow2",FILE,"backing":"name"}"#,
    r#"{"driver":"qcow2",FILE,"backing":{"driver":"raw",PAT}}"#,
    r#"{"driver":"qcow2",FILE,"backing":{"driver":"raw",PAT,"offset":512}}"#,
    r#"{"driver":"qcow2",FILE,"backing":{"driver":"raw","offset":512}}"#,
    r#"{"driver":"qcow2",FILE,"backing":{"offset":512}}"#,
    r#"{"driver":"qcow2",FILE,"backing.driver":"raw","backing.file.filename":"@/pat.raw"}"#,
    r#"{"driver":"qcow2",FILE,"backing":{"driver":"qcow2","file":{"driver":"file","filename":"@/mid.qcow2"},"backing":null}}"#,
    r#"{"driver":"qcow2",FILE,"backing":{"driver":"qcow2","file":{"driver":"file","filename":"@/mid.qcow2"},"backing":{"driver":"raw",PAT}}}"#,
];

#[test]
fn json_names_are_read_exactly_where_qemu_reads_them() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path(name);
    let pattern: Vec<u8> = (0..4708).map(|at| (at / 100 + 1) as u8).collect();
    scratch.file("pat.raw", &pattern);
    scratch.file(r#"it's "quoted".raw"#, &pattern);
    scratch.file("base.raw", &fixtures::pattern::noise(7, MIB));
    let base = path("base.raw");
    for name in ["ov.qcow2", "mid.qcow2"] {
        qemu::overlay(path(name), &base, "raw", "", "");
        qemu_io("qcow2", path(name), &["write -P 7 64k 64k"]);
    }
    // An image within another file.
    let mut container = vec![0; 512 << 10];
    container.extend(std::fs::read(path("ov.qcow2")).unwrap());
    scratch.file("cont.bin", &container);
    let dir = scratch.dir().display().to_string();
    let (mut read, mut refused) = (0, 0);
    for name in NAMES {
        let name = name
            .replace("PAT", r#""file":{"driver":"file","filename":"@/pat.raw"}"#)
            .replace("FILE", r#""file":{"driver":"file","filename":"@/ov.qcow2"}"#)
            .replace('@', &dir);
        let name = format!("json:{name}");
        let raw = path("theirs.raw");
        let theirs = qemu::try_qemu_img(&args!["convert", "-O", "raw", name, raw]);
        let ours = qcowtool(args!["checksum", "--output", "json", name]);
        match theirs {
            Ok(_) => {
                let expected = crc32_hex(&std::fs::read(&raw).unwrap());
                assert!(ours.succeeded(), "{name}: only QEMU reads it: {}", ours.stderr());
                assert_eq!(ours.json()["crc32"], expected, "{name}");
                assert_bytes!(flattened(Path::new(&name), &[]), std::fs::read(&raw).unwrap());
                read += 1;
            }
            Err(why) => {
                assert!(!ours.succeeded(), "{name}: only QEMU refuses it: {why}");
                refused += 1;
            }
        }
        // As the name of a backing file, with the format beside it and without.
        for format in ["raw", "qcow2", ""] {
            as_backing(&scratch, &name, format);
        }
    }
    assert!(read > 20 && refused > 10, "{read} read, {refused} refused");
}

fn as_backing(scratch: &Scratch, name: &str, format: &str) {
    let overlay = scratch.path("as-backing.qcow2");
    qemu::create(&overlay, "", "1M");
    let mut patch = Patch::open(&overlay);
    let recorded = [(magic::BACKING_FORMAT, format.as_bytes())];
    patch.set_header_area(112, if format.is_empty() { &[] } else { &recorded }, true);
    patch.set_backing(1024, name.as_bytes()).save();
    let ours = qcowtool(args!["checksum", "--output", "json", overlay]);
    if !ours.succeeded() {
        return;
    }
    let theirs = qemu::try_raw_of("qcow2", &overlay, None);
    match theirs {
        Ok(theirs) => assert_eq!(ours.json()["crc32"], crc32_hex(&theirs), "{name} {format}"),
        // The bytes of a file need no raw driver, and an empty `backing` asks for nothing, although QEMU
        // refuses both.
        Err(why) => {
            let harmless = ["must be specified for", "'raw' does not support the option 'backing'"];
            let harmless = harmless.iter().any(|part| why.contains(part));
            assert!(harmless, "{name} {format}: {why}");
        }
    }
}

#[test]
fn relative_names_behind_json_and_file_start_in_the_working_directory() {
    needs_qemu!();
    let scratch = Scratch::new();
    let images = scratch.subdir("images");
    scratch.file("base.raw", &vec![1; MIB]);
    std::fs::write(images.join("base.raw"), vec![2; MIB]).unwrap();
    let json = r#"json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}"#;
    for name in ["base.raw", "file:base.raw", json] {
        let top = images.join("top.qcow2");
        let create = args!["create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", top, "1M"];
        qemu_img(&create);
        for dir in [scratch.dir(), &images] {
            let top = if dir == images { "top.qcow2" } else { "images/top.qcow2" };
            let convert = std::process::Command::new("qemu-img")
                .args(["convert", "-O", "raw", top, "theirs.raw"])
                .current_dir(dir)
                .status();
            assert!(convert.unwrap().success());
            let theirs = std::fs::read(dir.join("theirs.raw")).unwrap();
            let run = qcowtool_in(dir, args!["checksum", "--output", "json", top]);
            assert_eq!(run.json()["crc32"], crc32_hex(&theirs), "{name} in {}", dir.display());
            let warned = run.stderr().contains("working directory");
            assert_eq!(warned, name != "base.raw", "{}", run.stderr());
        }
    }
}

#[test]
fn the_chain_is_shown_down_to_where_it_breaks() {
    needs_qemu!();
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path(name);
    qemu_img(&args!["create", "-q", "-f", "vmdk", path("v.vmdk"), "8M"]);
    let over_vmdk = path("hda.qcow2");
    qemu_img(&args!["create", "-q", "-f", "qcow2", "-b", "v.vmdk", "-F", "vmdk", over_vmdk]);
    let (top, _) = unrecorded(&scratch);
    std::fs::remove_file(path("base.raw")).unwrap();
    let stated = ["mid.qcow2=qcow2", "base.raw=raw"].map(|it| ["--backing-format", it]).concat();
    for (image, options, shown) in [(&over_vmdk, &[][..], 1), (&top, &stated, 2), (&top, &[], 1)] {
        let mut arguments = args!["info", "--backing-chain", "--output", "json"];
        arguments.extend(options.iter().map(Into::into));
        arguments.push(image.into());
        let run = qcowtool(arguments);
        assert_eq!(run.code(), Some(1), "{}", run.stderr());
        let told: serde_json::Value = serde_json::from_str(&run.stdout()).unwrap();
        assert_eq!(told.as_array().unwrap().len(), shown, "{told}");
        let error: serde_json::Value = serde_json::from_str(&run.stderr()).unwrap();
        assert!(error["error"]["message"].is_string(), "{error}");
    }
}

#[test]
fn names_of_other_protocols_are_refused_as_such() {
    let scratch = Scratch::new();
    for name in
        ["https://example.invalid/x.qcow2", "nbd://localhost/x", "rbd:pool/img", "ssh://h/x"]
    {
        let protocol = name.split(':').next().unwrap();
        for command in [args!["info"], args!["checksum"]] {
            let run = qcowtool_in(scratch.dir(), [command, args![name]].concat());
            run.refused_naming(&["protocol", protocol]);
        }
        let check = qcowtool_in(scratch.dir(), args!["check", name]);
        assert!(!check.succeeded() && check.stderr().contains("protocol"), "{}", check.stderr());
    }
    // A file of such a name is read as the message says.
    scratch.subdir("rbd:pool");
    scratch.file("rbd:pool/img", &[5; 512]);
    qcowtool_in(scratch.dir(), args!["info", "./rbd:pool/img"]).ok();
}

#[test]
fn an_option_whose_value_begins_with_a_dash_is_advised_to_take_it_behind_an_equals_sign() {
    let scratch = Scratch::new();
    let before = args!["create", "-f", "qcow2"];
    let after = args!["-F", "raw", "new.qcow2"];
    scratch.file("-x.raw", &[5; 65536]);
    for option in ["-b", "--backing"] {
        let run = [before.clone(), args![option, "-x.raw"], after.clone()].concat();
        let message = qcowtool_in(scratch.dir(), run).refused();
        let advice = format!("{option}=-x.raw");
        assert!(message.contains(&advice) && !message.contains("-- -x"), "{message}");
        let run = [before.clone(), args![advice], after.clone()].concat();
        qcowtool_in(scratch.dir(), run).ok();
        std::fs::remove_file(scratch.path("new.qcow2")).unwrap();
    }
}
