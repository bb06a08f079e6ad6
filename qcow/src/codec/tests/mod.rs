//! Round trips, QEMU's rules for what a compressed cluster may be, and hostile input.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails, as it should"
)]

mod distance;

use flate2::{Compress, Compression, FlushCompress, Status};
use proptest::prelude::*;

use super::{Codec, Compressor, Decompressor, is_zero};
use crate::ErrorKind;

const CODECS: [Codec; 2] = [Codec::Zlib, Codec::Zstd];
const CLUSTER: usize = 65536;

/// Bytes without any pattern.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(len)
    .collect()
}

/// Noise that repeats after `period` bytes, so that only matches at that distance save space.
fn repeating(period: usize, len: usize) -> Vec<u8> {
    noise(period).into_iter().cycle().take(len).collect()
}

fn text(len: usize) -> Vec<u8> {
    (0_u32..).flat_map(|n| format!("line {n} of a log file\n").into_bytes()).take(len).collect()
}

/// Compressed `cluster`, which must be compressible.
fn compressed(codec: Codec, level: Option<i32>, cluster: &[u8]) -> Vec<u8> {
    let mut output = Vec::new();
    assert!(Compressor::new(codec, level).unwrap().compress(cluster, &mut output).unwrap());
    output
}

fn decompressed(codec: Codec, input: &[u8], len: usize) -> crate::Result<Vec<u8>> {
    let mut output = vec![0xaa; len];
    Decompressor::new(codec)?.decompress(input, &mut output).map(|()| output)
}

#[track_caller]
fn assert_corrupt<T: std::fmt::Debug>(result: crate::Result<T>, part: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains(part), "{error} lacks {part:?}");
}

/// A raw deflate stream of `data` made with a window of `bits`.
fn deflate(data: &[u8], level: u32, bits: u8) -> Vec<u8> {
    let mut output = vec![0; data.len() * 2 + 100];
    let mut compress = Compress::new_with_window_bits(Compression::new(level), false, bits);
    let status = compress.compress(data, &mut output, FlushCompress::Finish).unwrap();
    assert_eq!(status, Status::StreamEnd);
    output.truncate(compress.total_out() as usize);
    output
}

/// One zstd frame without content size, with a checksum.
fn streamed_frame(data: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.include_contentsize(false).unwrap();
    std::io::Write::write_all(&mut encoder, data).unwrap();
    encoder.finish().unwrap()
}

fn skippable_frame() -> Vec<u8> {
    [&[0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"skip!"].concat()
}

#[test]
fn clusters_of_every_size_come_back() {
    for codec in CODECS {
        let mut compressor = Compressor::new(codec, None).unwrap();
        let mut decompressor = Decompressor::new(codec).unwrap();
        let (mut packed, mut output) = (Vec::new(), Vec::new());
        for len in [512, 4096, CLUSTER, 2 << 20, 512] {
            for cluster in [vec![0; len], text(len)] {
                assert!(compressor.compress(&cluster, &mut packed).unwrap());
                assert!(packed.len() < len);
                output.clear();
                output.resize(len, 0xaa);
                decompressor.decompress(&packed, &mut output).unwrap();
                assert!(output == cluster, "{codec:?} {len}");
            }
        }
    }
}

#[test]
fn levels_come_back_and_others_are_refused() {
    for (codec, levels) in [(Codec::Zlib, (1..=9).collect()), (Codec::Zstd, vec![-7, 1, 3, 19, 22])]
    {
        for level in levels {
            let packed = compressed(codec, Some(level), &text(8192));
            assert!(decompressed(codec, &packed, 8192).unwrap() == text(8192), "level {level}");
        }
    }
    for (codec, level) in [(Codec::Zlib, 0), (Codec::Zlib, 10), (Codec::Zstd, 23)] {
        assert_eq!(Compressor::new(codec, Some(level)).unwrap_err().kind(), ErrorKind::Usage);
    }
}

#[test]
fn the_same_cluster_compresses_to_the_same_bytes_whatever_came_before() {
    for codec in CODECS {
        let mut used = Compressor::new(codec, None).unwrap();
        let mut output = Vec::new();
        used.compress(&noise(CLUSTER), &mut output).unwrap();
        used.compress(&text(512), &mut output).unwrap();
        used.compress(&text(CLUSTER), &mut output).unwrap();
        assert!(output == compressed(codec, None, &text(CLUSTER)), "{codec:?}");
    }
}

#[test]
fn an_encoder_survives_any_number_of_clusters_that_do_not_shrink() {
    let cluster = noise(1024);
    for codec in [Codec::Zlib, Codec::Zstd] {
        let mut compressor = Compressor::new(codec, None).unwrap();
        let mut output = Vec::new();
        for _ in 0..500 {
            assert!(!compressor.compress(&cluster, &mut output).unwrap());
        }
        assert!(compressor.compress(&[1; 1024], &mut output).unwrap());
        assert_eq!(decompressed(codec, &output, 1024).unwrap(), [1; 1024]);
    }
}

#[test]
fn a_decompressor_works_after_a_damaged_cluster() {
    for codec in CODECS {
        let packed = compressed(codec, None, &text(CLUSTER));
        let mut decompressor = Decompressor::new(codec).unwrap();
        let mut output = vec![0; CLUSTER];
        decompressor.decompress(&packed[..packed.len() / 2], &mut output).unwrap_err();
        decompressor.decompress(&[0xff; 100], &mut output).unwrap_err();
        decompressor.decompress(&packed, &mut output).unwrap();
        assert!(output == text(CLUSTER), "{codec:?}");
    }
}

#[test]
fn trap_46_a_zlib_header_is_an_error() {
    let mut wrapped = vec![0; CLUSTER];
    let mut compress = Compress::new(Compression::new(6), true);
    compress.compress(&text(CLUSTER), &mut wrapped, FlushCompress::Finish).unwrap();
    assert_corrupt(decompressed(Codec::Zlib, &wrapped, CLUSTER), "damaged");
}

#[test]
fn trap_47_distances_up_to_32_kib_are_read() {
    let cluster = repeating(32768 - 512, CLUSTER);
    let packed = deflate(&cluster, 9, 15);
    assert!(packed.len() < CLUSTER * 3 / 4, "the stream should use the distance");
    assert!(decompressed(Codec::Zlib, &packed, CLUSTER).unwrap() == cluster);
}

#[test]
fn trap_47_we_write_no_distance_above_4_kib() {
    let far = repeating(5000, 11_000);
    let (data, distance) = distance::inflate(&deflate(&far, 9, 15));
    assert!(data == far && distance == 5000, "the decoder should see the distance");
    for level in 1..=9 {
        // Periods around the window's size, where an encoder could go wrong by a few bytes.
        for period in [3800, 4095, 4096, 4097, 5000] {
            let mut cluster = repeating(period, 11_000);
            cluster.extend(text(6000));
            let packed = compressed(Codec::Zlib, Some(level), &cluster);
            let (data, distance) = distance::inflate(&packed);
            assert!(data == cluster, "level {level}, period {period}");
            assert!(distance <= 4096, "level {level}, period {period}: {distance}");
        }
    }
}

#[test]
fn trap_47_clusters_of_many_sections_and_kinds_keep_to_the_window() {
    // Text, noise, what was 4 KiB ago, runs, and noise again: blocks of all forms.
    let piece = [text(9000), noise(70_000), repeating(4096, 20_000), vec![0; 40_000]].concat();
    let cluster: Vec<u8> = piece.iter().copied().cycle().take(2 << 20).collect();
    for level in [1, 6, 9] {
        let packed = compressed(Codec::Zlib, Some(level), &cluster);
        let (data, distance) = distance::inflate(&packed);
        assert!(data == cluster, "level {level}");
        assert!((4000..=4096).contains(&distance), "level {level}: {distance}");
    }
}

#[test]
fn higher_levels_take_no_more_room() {
    let cluster = [text(20_000), repeating(3000, 9000), noise(2000), text(34_000)].concat();
    for codec in CODECS {
        let (first, last) = (*super::levels(codec).end(), (*super::levels(codec).start()).max(1));
        assert!(
            compressed(codec, Some(first), &cluster).len()
                < compressed(codec, Some(last), &cluster).len()
        );
    }
}

#[test]
fn trap_48_what_follows_the_stream_is_ignored() {
    for codec in CODECS {
        let mut packed = compressed(codec, None, &text(CLUSTER));
        packed.extend(noise(700));
        assert!(decompressed(codec, &packed, CLUSTER).unwrap() == text(CLUSTER), "{codec:?}");
    }
}

#[test]
fn trap_48_a_stream_that_does_not_fill_the_cluster_is_an_error() {
    let packed = deflate(&text(CLUSTER - 1), 9, 12);
    let expected = "ends after 65535 bytes, expected 65536";
    assert_corrupt(decompressed(Codec::Zlib, &packed, CLUSTER), expected);
    assert_corrupt(decompressed(Codec::Zlib, &packed[..100], CLUSTER), "expected 65536");
    assert_corrupt(decompressed(Codec::Zlib, &[], CLUSTER), "expected 65536");
}

#[test]
fn trap_49_a_stream_that_goes_on_after_the_cluster_is_read() {
    let packed = deflate(&text(2 * CLUSTER), 9, 12);
    assert!(decompressed(Codec::Zlib, &packed, CLUSTER).unwrap() == text(CLUSTER));
}

#[test]
fn trap_50_zstd_clusters_may_have_many_frames() {
    let cluster = text(CLUSTER);
    let (first, second) = cluster.split_at(40_000);
    let packed = [
        skippable_frame(),
        streamed_frame(first),
        streamed_frame(&[]),
        skippable_frame(),
        zstd::bulk::compress(second, 3).unwrap(),
        b"trailing bytes".to_vec(),
    ]
    .concat();
    assert!(decompressed(Codec::Zstd, &packed, CLUSTER).unwrap() == cluster);
}

#[test]
fn trap_50_a_wrong_zstd_checksum_is_an_error() {
    let mut packed = streamed_frame(&text(CLUSTER));
    *packed.last_mut().unwrap() ^= 1;
    assert_corrupt(decompressed(Codec::Zstd, &packed, CLUSTER), "checksum");
}

#[test]
fn trap_51_a_zstd_frame_larger_or_smaller_than_the_cluster_is_an_error() {
    for frame in [|data: &[u8]| zstd::bulk::compress(data, 3).unwrap(), streamed_frame] {
        assert_corrupt(decompressed(Codec::Zstd, &frame(&text(CLUSTER + 1)), CLUSTER), "too long");
        assert_corrupt(
            decompressed(Codec::Zstd, &frame(&text(CLUSTER - 1)), CLUSTER),
            "end 1 bytes before the cluster",
        );
    }
    assert_corrupt(decompressed(Codec::Zstd, &skippable_frame(), CLUSTER), "before the cluster");
}

#[test]
fn trap_51_a_zstd_frame_that_is_cut_short_is_an_error() {
    let packed = streamed_frame(&text(CLUSTER));
    for len in [1, 4, 5, 100, packed.len() - 4, packed.len() - 1] {
        assert_corrupt(decompressed(Codec::Zstd, &packed[..len], CLUSTER), "no whole zstd frame");
    }
}

#[test]
fn trap_52_a_stream_of_a_2_mib_cluster_is_read_whole() {
    let cluster = text(2 << 20);
    for packed in [(Codec::Zlib, deflate(&cluster, 9, 15)), (Codec::Zstd, streamed_frame(&cluster))]
    {
        assert!(decompressed(packed.0, &packed.1, 2 << 20).unwrap() == cluster, "{:?}", packed.0);
    }
}

#[test]
fn trap_56_what_does_not_shrink_is_not_compressed() {
    for codec in CODECS {
        for len in [1, 512, CLUSTER] {
            let mut compressor = Compressor::new(codec, None).unwrap();
            assert!(!compressor.compress(&noise(len), &mut Vec::new()).unwrap(), "{codec:?} {len}");
        }
    }
}

#[test]
fn text_behind_noise_is_found() {
    for level in super::levels(Codec::Zlib) {
        let (noise, text) = (noise(CLUSTER / 4 * 3), text(CLUSTER / 4));
        let alone = compressed(Codec::Zlib, Some(level), &text).len();
        let both = compressed(Codec::Zlib, Some(level), &[&noise[..], &text].concat()).len();
        assert!(both < noise.len() + alone + 100, "level {level}: {both}, alone {alone}");
    }
}

#[test]
fn trap_56_one_byte_saved_is_enough_and_none_is_not() {
    for codec in CODECS {
        let mut compressor = Compressor::new(codec, None).unwrap();
        let (mut none, mut one) = (0, 0);
        // A little noise and a short run: about as long compressed as it was.
        for (random, run) in
            (1..40).step_by(6).flat_map(|random| (0..20).map(move |run| (random, run)))
        {
            let cluster = [noise(random), vec![b'x'; run]].concat();
            let len = match codec {
                Codec::Zlib => deflate(&cluster, 6, 12).len(),
                Codec::Zstd => zstd::bulk::compress(&cluster, 3).unwrap().len(),
            };
            let saved = compressor.compress(&cluster, &mut Vec::new()).unwrap();
            assert_eq!(saved, len < cluster.len(), "{codec:?} {len} of {}", cluster.len());
            none += usize::from(len == cluster.len());
            one += usize::from(len + 1 == cluster.len());
        }
        assert!(none > 0 && one > 0, "{codec:?} should meet both");
    }
}

#[test]
fn zero_detection_sees_one_bit_at_any_place() {
    for len in [1, 255, 256, 257, 512, 1000] {
        let mut bytes = vec![0; len];
        assert!(is_zero(&bytes));
        for at in 0..len {
            bytes[at] = 0x80 >> (at % 8);
            assert!(!is_zero(&bytes), "byte {at} of {len}");
            bytes[at] = 0;
        }
    }
    assert!(is_zero(&[]));
}

proptest! {
    #[test]
    fn arbitrary_clusters_come_back(
        seed in prop::collection::vec(any::<u8>(), 1..300),
        len in 1usize..5000,
        zlib in any::<bool>(),
        level in 1..=9,
    ) {
        let codec = CODECS[usize::from(!zlib)];
        let cluster: Vec<u8> = seed.into_iter().cycle().take(len).collect();
        let mut packed = Vec::new();
        let mut compressor = Compressor::new(codec, Some(level)).unwrap();
        if compressor.compress(&cluster, &mut packed).unwrap() {
            prop_assert!(packed.len() < cluster.len());
            prop_assert_eq!(decompressed(codec, &packed, len).unwrap(), cluster);
        }
    }

    #[test]
    fn arbitrary_input_is_refused_or_fills_the_cluster(
        input in prop::collection::vec(any::<u8>(), 0..600),
        zlib in any::<bool>(),
    ) {
        let codec = CODECS[usize::from(!zlib)];
        if let Err(error) = decompressed(codec, &input, 4096) {
            prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn damaged_streams_are_refused_or_fill_the_cluster(
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
        zlib in any::<bool>(),
    ) {
        let codec = CODECS[usize::from(!zlib)];
        let mut packed = compressed(codec, None, &text(4096));
        let at = at.index(packed.len());
        packed[at] ^= flip;
        if let Err(error) = decompressed(codec, &packed, 4096) {
            prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }
}
