use super::*;
use crate::options::{Request, request};

fn parse(format: Format, list: &str) -> Result<ImageOptions> {
    let Request::Options(items) = request(&[list.into()])? else { panic!("help") };
    ImageOptions::parse(format, Purpose::Create, &items)
}

fn qcow2(list: &str) -> Result<Qcow2Options> {
    match parse(Format::Qcow2, list)?.target()? {
        TargetOptions::Qcow2(options) => Ok(options),
        other => panic!("{other:?}"),
    }
}

/// The line for options that are given with `-o`, as `create` makes it.
fn line(format: Format, list: &str) -> String {
    let given = parse(format, list).unwrap();
    let mut all = ImageOptions::of(&given.target().unwrap());
    all.overlay(given);
    all.formatting_line(Path::new("x"))
}

#[test]
fn every_qcow2_option_reaches_the_engine() {
    let list = "cluster_size=2M,compat=v2,refcount_bits=0x20,extended_l2=yes,lazy_refcounts=true,\
                preallocation=falloc,compression_type=zstd,data_file=a,,b,data_file_raw=on";
    let expected = Qcow2Options::default()
        .cluster_size(2 << 20)
        .version(Version::V2)
        .refcount_bits(32)
        .extended_l2(true)
        .lazy_refcounts(true)
        .preallocation(Preallocation::Falloc)
        .compression_type(CompressionType::Zstd)
        .data_file(std::path::PathBuf::from("a,b"))
        .data_file_raw(true);
    assert_eq!(qcow2(list).unwrap(), expected);
}

#[test]
fn compat_has_two_names_for_each_version() {
    for (word, version) in
        [("0.10", Version::V2), ("v2", Version::V2), ("1.1", Version::V3), ("v3", Version::V3)]
    {
        assert_eq!(qcow2(&format!("compat={word}")).unwrap().version, version);
    }
    assert!(qcow2("compat=v4").is_err());
}

#[test]
fn switches_take_the_words_that_qemu_img_takes() {
    for word in ["=on", "=yes", "=true", ""] {
        assert!(qcow2(&format!("lazy_refcounts{word}")).unwrap().lazy_refcounts, "{word}");
    }
    for word in ["off", "no", "false"] {
        assert!(!qcow2(&format!("extended_l2={word}")).unwrap().extended_l2, "{word}");
    }
    for word in ["ON", "1", "maybe", ""] {
        assert!(qcow2(&format!("lazy_refcounts={word}")).is_err(), "{word}");
    }
}

#[test]
fn the_later_of_two_values_counts() {
    assert_eq!(qcow2("cluster_size=64k,cluster_size=4k").unwrap().cluster_size, 4096);
}

#[test]
fn a_value_that_makes_no_sense_is_refused_by_name() {
    for list in [
        "cluster_size=abc",
        "cluster_size",
        "refcount_bits=1.5",
        "preallocation=FULL",
        "compression_type=lz4",
        "data_file=",
    ] {
        let name = list.split('=').next().unwrap();
        let text = qcow2(list).unwrap_err().to_string();
        assert!(text.contains(&format!("option '{name}'")), "{list}: {text}");
    }
}

#[test]
fn a_refcount_width_beyond_32_bits_is_never_cut_to_a_valid_one() {
    assert_eq!(qcow2("refcount_bits=4294967312").unwrap().refcount_bits, u32::MAX);
}

#[test]
fn file_system_options_are_accepted_only_where_they_change_nothing() {
    assert!(parse(Format::Raw, "nocow=off,extent_size_hint=0").is_ok());
    assert!(parse(Format::Raw, "nocow=on").unwrap_err().to_string().contains("nocow"));
    assert!(parse(Format::Qcow2, "extent_size_hint=1M").is_err());
}

#[test]
fn the_formatting_line_is_that_of_qemu_img() {
    assert_eq!(
        line(Format::Qcow2, "size=1.5G"),
        "Formatting 'x', fmt=qcow2 cluster_size=65536 extended_l2=off compression_type=zlib \
         size=1610612736 lazy_refcounts=off refcount_bits=16"
    );
    assert_eq!(
        line(
            Format::Qcow2,
            "compat=1.1,extended_l2=on,preallocation=off,backing_file=b,,b,backing_fmt=raw,\
             nocow=off,refcount_bits=8,lazy_refcounts=on,compression_type=zstd,size=1M"
        ),
        "Formatting 'x', fmt=qcow2 cluster_size=65536 extended_l2=on preallocation=off \
         compression_type=zstd size=1048576 compat=1.1 backing_file=b,,b backing_fmt=raw \
         lazy_refcounts=on refcount_bits=8 nocow=off"
    );
    assert_eq!(
        line(Format::Qcow2, "data_file=y.raw,data_file_raw=off,compat=v3,preallocation=metadata"),
        "Formatting 'x', fmt=qcow2 cluster_size=65536 extended_l2=off preallocation=metadata \
         compression_type=zlib compat=v3 data_file=y.raw data_file_raw=off lazy_refcounts=off \
         refcount_bits=16"
    );
    assert_eq!(
        line(Format::Raw, "extent_size_hint=0,nocow=off,preallocation=full,size=513"),
        "Formatting 'x', fmt=raw size=513 nocow=off preallocation=full extent_size_hint=0"
    );
}

#[test]
fn an_image_like_another_shows_what_is_not_at_its_default() {
    let target = TargetOptions::Qcow2(
        Qcow2Options::default()
            .version(Version::V2)
            .data_file(std::path::PathBuf::from("d"))
            .data_file_raw(true),
    );
    assert_eq!(
        ImageOptions::of(&target).formatting_line(Path::new("x")),
        "Formatting 'x', fmt=qcow2 cluster_size=65536 extended_l2=off compression_type=zlib \
         compat=0.10 data_file=d data_file_raw=on lazy_refcounts=off refcount_bits=16"
    );
}

#[test]
fn trap_139_names_cannot_steer_the_terminal() {
    let options = parse(Format::Qcow2, "data_file=a\x1b[2J").unwrap();
    let line = options.formatting_line(Path::new("b\nc"));
    assert_eq!(line, "Formatting 'b\\nc', fmt=qcow2 data_file=a\\u{1b}[2J");
}
