//! Compressed clusters: streams made here with every liberty that encoders have, put into images by
//! hand; qemu-img says, when the test runs, whether they read and as what.

use std::io::Write;

use common::{like_qemu, reads, refuses, small};
use fixtures::patch::{COPIED, field};
use fixtures::pattern::{mixed, noise};
use fixtures::{Patch, Scratch, assert_bytes, needs_qemu};
use flate2::Compression;

const CLUSTER: usize = 4096;

/// A raw deflate stream.
fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A zstd frame.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd_with(bytes, |_| {})
}

fn zstd_with(bytes: &[u8], set: impl FnOnce(&mut zstd::stream::raw::Encoder<'static>)) -> Vec<u8> {
    let mut raw = zstd::stream::raw::Encoder::new(3).unwrap();
    set(&mut raw);
    let mut writer = zstd::stream::zio::Writer::new(Vec::new(), raw);
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap();
    writer.into_inner().0
}

/// `small`, of the zstd kind.
fn small_zstd(scratch: &Scratch) -> Patch {
    small(scratch, "compression_type=zstd")
}

/// What the first cluster should hold after a test's decoding.
fn content() -> Vec<u8> {
    mixed(3, CLUSTER)
}

#[test]
fn trap_29_43_a_stream_may_begin_at_any_byte() {
    needs_qemu!();
    let scratch = Scratch::new();
    // An odd host offset sets bit 0 of the entry, which is no zero flag here.
    for shift in [0, 1, 2, 511, 512, 513, 4095] {
        let mut image = small(&scratch, "");
        image.set_compressed(0, &deflate(&content()), shift);
        assert_bytes!(reads(&image)[..CLUSTER], content(), "shift {shift}");
    }
}

#[test]
fn trap_43_the_descriptor_at_the_smallest_and_largest_cluster_size() {
    needs_qemu!();
    for size in [512, 2 << 20] {
        let scratch = Scratch::new();
        let mut image = small(&scratch, &format!("cluster_size={size}"));
        image.set_u64(field::SIZE, size as u64);
        let content = mixed(4, size);
        image.set_compressed(0, &deflate(&content), 3);
        assert_bytes!(reads(&image), content);
    }
}

#[test]
fn trap_44_the_sector_count_is_an_upper_bound() {
    needs_qemu!();
    let scratch = Scratch::new();
    let stream = deflate(&content());
    let needed = (stream.len() as u64 - 1) / 512;
    let mut image = small(&scratch, "");
    let host = image.append(&stream) as u64;
    // Far more than there is, up to the most that the field holds.
    for sectors in [needed, needed + 1, 15] {
        let entry = image.compressed_entry(host, sectors);
        assert_bytes!(reads(image.set_l2_entry(0, entry))[..CLUSTER], content());
    }
    // One less cuts the stream.
    let entry = image.compressed_entry(host, needed - 1);
    refuses(image.set_l2_entry(0, entry));
}

#[test]
fn trap_36_45_a_stream_may_cross_clusters_and_its_sectors_may_pass_the_end_of_the_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    let stream = deflate(&content());
    let mut image = small(&scratch, "");
    image.set_compressed(0, &stream, CLUSTER - 10);
    // The file ends right after the stream, within its last sector.
    let end = image.bytes.len() - image.bytes.iter().rev().take_while(|&&b| b == 0).count();
    assert_bytes!(reads(image.resize(end))[..CLUSTER], content());
    // Within the stream: what is missing counts as zeros, which may even decode to something.
    for missing in [1, 200, 1000] {
        like_qemu(image.clone().resize(end - missing));
    }
    let far = image.compressed_entry(1 << 40, 3);
    refuses(image.set_l2_entry(0, far));
}

#[test]
fn trap_46_a_zlib_header_is_an_error() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&content()).unwrap();
    refuses(small(&scratch, "").set_compressed(0, &encoder.finish().unwrap(), 0));
}

#[test]
fn trap_47_distances_up_to_32_kib_decode() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "cluster_size=64k");
    let content = noise(5, 32 << 10)[..32_500].repeat(3)[..64 << 10].to_vec();
    let stream = deflate(&content);
    assert!(stream.len() < 40_000, "what repeats is found at a distance of 32,500");
    assert_bytes!(reads(image.set_compressed(0, &stream, 0)), content);
}

#[test]
fn trap_48_49_decoding_stops_at_a_full_cluster_and_fails_before_it() {
    needs_qemu!();
    let scratch = Scratch::new();
    // Exactly a cluster, with and without something after the stream; more than a cluster.
    let mut trailing = deflate(&content());
    trailing.extend(noise(6, 300));
    let longer = deflate(&[content(), noise(7, 100)].concat());
    for stream in [deflate(&content()), trailing, longer] {
        let mut image = small(&scratch, "");
        assert_bytes!(reads(image.set_compressed(0, &stream, 0))[..CLUSTER], content());
    }
    refuses(small(&scratch, "").set_compressed(0, &deflate(&content()[..CLUSTER - 1]), 0));
    refuses(small(&scratch, "").set_compressed(0, &deflate(&[]), 0));
    refuses(small(&scratch, "").set_compressed(0, &noise(8, 500), 0));
}

#[test]
fn trap_48_49_the_block_that_fills_the_cluster_need_not_be_the_last() {
    needs_qemu!();
    let scratch = Scratch::new();
    let stored = |bytes: &[u8]| {
        let len = u16::try_from(bytes.len()).unwrap();
        [&[0], &len.to_le_bytes()[..], &(!len).to_le_bytes(), bytes].concat()
    };
    let mut image = small(&scratch, "");
    image.set_compressed(0, &[stored(&content()), stored(&noise(1, 100))].concat(), 0);
    assert_bytes!(reads(&image)[..CLUSTER], content());
    let mut image = small(&scratch, "");
    refuses(image.set_compressed(0, &stored(&content()[..CLUSTER - 101]), 0));
}

#[test]
fn trap_50_zstd_frames_of_every_kind_decode() {
    needs_qemu!();
    use zstd::zstd_safe::CParameter::{ChecksumFlag, ContentSizeFlag, WindowLog};
    let scratch = Scratch::new();
    let skippable = b"\x5a\x2a\x4d\x18\x05\0\0\0hello";
    let halves = content();
    let (one, two) = halves.split_at(1000);
    let streams = [
        ("plain", zstd(&content())),
        ("checksum", zstd_with(&content(), |e| e.set_parameter(ChecksumFlag(true)).unwrap())),
        ("no size", zstd_with(&content(), |e| e.set_parameter(ContentSizeFlag(false)).unwrap())),
        ("wide window", zstd_with(&content(), |e| e.set_parameter(WindowLog(20)).unwrap())),
        ("two frames", [zstd(one), zstd(two)].concat()),
        ("an empty frame first", [zstd(&[]), zstd(&content())].concat()),
        ("a skippable frame first", [skippable.to_vec(), zstd(&content())].concat()),
        ("a skippable frame between", [zstd(one), skippable.to_vec(), zstd(two)].concat()),
        ("trailing bytes", [zstd(&content()), noise(9, 200)].concat()),
        ("trailing frame", [zstd(&content()), zstd(&content())].concat()),
    ];
    for (kind, stream) in streams {
        let mut image = small_zstd(&scratch);
        image.set_compressed(0, &stream, 1);
        assert_bytes!(reads(&image)[..CLUSTER], content(), "{kind}");
    }
}

#[test]
fn trap_51_a_zstd_frame_of_more_or_less_than_a_cluster_is_an_error() {
    needs_qemu!();
    let scratch = Scratch::new();
    let longer = zstd(&[content(), noise(7, 100)].concat());
    let shorter = zstd(&content()[..CLUSTER - 1]);
    let halves = [zstd(&content()[..1000]), zstd(&content()[1001..])].concat();
    let cut = zstd(&content())[..500].to_vec();
    for stream in [longer, shorter, halves, cut, deflate(&content()), zstd(&[]), noise(8, 500)] {
        refuses(small_zstd(&scratch).set_compressed(0, &stream, 0));
    }
}

#[test]
fn trap_50_a_wrong_checksum_in_a_zstd_frame() {
    needs_qemu!();
    use zstd::zstd_safe::CParameter::ChecksumFlag;
    let scratch = Scratch::new();
    let mut stream = zstd_with(&content(), |e| e.set_parameter(ChecksumFlag(true)).unwrap());
    *stream.last_mut().unwrap() ^= 1;
    like_qemu(small_zstd(&scratch).set_compressed(0, &stream, 0));
}

#[test]
fn trap_50_a_zstd_window_beyond_the_usual_limit() {
    needs_qemu!();
    let scratch = Scratch::new();
    // One RLE block of 4096 zero bytes in a frame that asks for a window of 1 KiB << n.
    // (A window smaller than a block, which QEMU refuses, is read: every byte is known all the same.)
    for exponent in [10_u8, 17, 18, 31] {
        let mut stream = b"\x28\xb5\x2f\xfd\0".to_vec();
        stream.push(exponent << 3);
        let block = 1 | 1 << 1 | (CLUSTER as u32) << 3;
        stream.extend(&block.to_le_bytes()[..3]);
        stream.push(0xcc);
        like_qemu(small_zstd(&scratch).set_compressed(0, &stream, 0));
    }
}

#[test]
fn trap_53_the_copied_flag_on_a_compressed_entry_does_not_stop_a_read() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    image.set_compressed(0, &deflate(&content()), 0);
    let at = image.l2_entry_at(0);
    assert_bytes!(reads(image.or_u64(at, COPIED))[..CLUSTER], content());
}

#[test]
fn trap_54_many_streams_share_a_host_cluster() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    let streams: Vec<_> = (0..16_u8).map(|n| deflate(&[n ^ 0x55; CLUSTER])).collect();
    let mut host = image.append(&streams.concat()) as u64;
    for (n, stream) in streams.iter().enumerate() {
        let entry = image.compressed_entry(host, (host % 512 + stream.len() as u64 - 1) / 512);
        image.set_l2_entry((n * CLUSTER) as u64, entry);
        host += stream.len() as u64;
    }
    let content = reads(&image);
    for (n, cluster) in content.chunks(CLUSTER).enumerate() {
        assert_bytes!(cluster, [n as u8 ^ 0x55; CLUSTER]);
    }
}

#[test]
fn trap_57_a_compressed_last_cluster_is_cut_at_the_virtual_size() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "");
    image.set_compressed(0, &deflate(&content()), 0).set_u64(field::SIZE, 1536);
    assert_bytes!(reads(&image), content()[..1536]);
    // A stream of only the visible part does not fill the cluster.
    refuses(image.set_compressed(0, &deflate(&content()[..1536]), 0));
}

#[test]
fn trap_52_143_clusters_of_2_mib_out_of_a_few_bytes() {
    needs_qemu!();
    const BIG: usize = 2 << 20;
    let scratch = Scratch::new();
    for (kind, stream) in [("zlib", deflate(&vec![0; BIG])), ("zstd", zstd(&vec![0xaa; BIG]))] {
        let mut image = small(&scratch, &format!("cluster_size=2M,compression_type={kind}"));
        image.set_u64(field::SIZE, 32 << 20).set_compressed(0, &stream, 77);
        let entry = image.l2_entry(0);
        for n in 0..16 {
            image.set_l2_entry(n * BIG as u64, entry);
        }
        let expected = if kind == "zlib" { 0 } else { 0xaa };
        assert!(reads(&image).iter().all(|&b| b == expected));
    }
}

#[test]
fn compressed_entries_with_a_data_file_or_in_version_2() {
    needs_qemu!();
    let scratch = Scratch::new();
    let mut image = small(&scratch, "compat=0.10");
    image.set_compressed(0, &deflate(&content()), 0);
    assert_bytes!(reads(&image)[..CLUSTER], content());
    let mut image = small(&scratch, &format!("data_file={}", scratch.path("data").display()));
    like_qemu(image.set_compressed(0, &deflate(&content()), 0));
}
