//! Sizes: read as `qemu-img` reads them, shown as it shows them.

pub(crate) use migrate::plan::human;
use qcow::{Error, Result};

/// Bytes from text: a whole number, or a number with a suffix `b`, `k`, `M`, `G`, `T`, `P` or `E`
/// in either case, each 1024 times the one before. A fraction needs a suffix from `k` up and is
/// rounded to the nearest byte; hexadecimal (`0x..`) takes no suffix.
///
/// # Errors
/// `Usage` if the text is no size or does not fit in 64 bits.
pub(crate) fn parse(text: &str) -> Result<u64> {
    let number = text.trim_ascii_start();
    let number = number.strip_prefix('+').unwrap_or(number);
    let bytes = match number.strip_prefix("0x").or_else(|| number.strip_prefix("0X")) {
        Some(digits) => hexadecimal(digits),
        None => decimal(number),
    };
    bytes.map_err(|wrong| match wrong {
        Wrong::NotASize => Error::usage(format!("'{text}' is not a size"))
            .hint("give bytes, or a number with a suffix k, M, G, T, P or E, as in 1.5G"),
        Wrong::TooLarge => Error::usage(format!("'{text}' is larger than 64 bits can hold")),
    })
}

/// Whether `text` is a size that does not fit in 64 bits.
pub(crate) fn is_too_large(text: &str) -> bool {
    let number = text.trim_ascii_start();
    let number = number.strip_prefix('+').unwrap_or(number);
    let bytes = match number.strip_prefix("0x").or_else(|| number.strip_prefix("0X")) {
        Some(digits) => hexadecimal(digits),
        None => decimal(number),
    };
    matches!(bytes, Err(Wrong::TooLarge))
}

/// The largest disk: whole sectors, below 2^63 bytes.
const LARGEST: u64 = (1 << 63) - 512;

/// The size of a disk: as [`parse`], and at most 2^63 - 1.
///
/// # Errors
/// `Usage`, as [`parse`].
pub(crate) fn parse_disk(text: &str) -> Result<u64> {
    let bytes = parse(text)?;
    if i64::try_from(bytes).is_err() {
        return Err(Error::usage(format!("a disk of '{text}' is too large"))
            .hint(format!("the largest has {LARGEST} bytes")));
    }
    Ok(bytes)
}

enum Wrong {
    NotASize,
    TooLarge,
}

fn hexadecimal(digits: &str) -> Result<u64, Wrong> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Wrong::NotASize);
    }
    u64::from_str_radix(digits, 16).map_err(|_| Wrong::TooLarge)
}

fn decimal(number: &str) -> Result<u64, Wrong> {
    let (whole, rest) = split_digits(number);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(Wrong::NotASize);
    }
    let unit = unit(suffix)?;
    if unit == 1 && fraction.bytes().any(|digit| digit != b'0') {
        return Err(Wrong::NotASize);
    }
    let part = fraction_of(fraction, unit);
    let whole = if whole.is_empty() { "0" } else { whole };
    whole
        .parse::<u64>()
        .ok()
        .and_then(|whole| whole.checked_mul(unit))
        .and_then(|bytes| bytes.checked_add(part))
        .ok_or(Wrong::TooLarge)
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

fn unit(suffix: &str) -> Result<u64, Wrong> {
    let exponent = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(Wrong::NotASize),
    };
    Ok(1 << exponent)
}

/// `0.DIGITS` of `unit`, to the nearest byte.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the product is at most one unit, and units are at most 2^60"
)]
fn fraction_of(digits: &str, unit: u64) -> u64 {
    let fraction: f64 = format!("0.{digits}0").parse().unwrap_or(0.0);
    (fraction * unit as f64).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text, and the bytes that qemu-img 10.0 reads in it.
    const SIZES: [(&str, u64); 27] = [
        ("0", 0),
        ("513", 513),
        ("00012", 12),
        (" 1", 1),
        (" +1", 1),
        ("1.", 1),
        ("1.0", 1),
        ("1.0b", 1),
        ("1b", 1),
        ("0x1f", 31),
        ("0X1F", 31),
        ("0x1B", 27),
        ("0x1e", 30),
        ("1k", 1 << 10),
        ("1K", 1 << 10),
        ("1.k", 1 << 10),
        (".5k", 512),
        ("0.3K", 307),
        ("0.9999k", 1024),
        ("1.99999999999999999999999k", 2048),
        ("0.0000000001k", 0),
        ("1.0000001M", 1_048_576),
        ("1.5G", 1_610_612_736),
        ("1t", 1 << 40),
        ("1p", 1 << 50),
        ("0.1E", 115_292_150_460_684_704),
        ("15E", 15 << 60),
    ];

    #[test]
    fn sizes_are_read_as_qemu_img_reads_them() {
        for (text, bytes) in SIZES {
            assert_eq!(parse(text).unwrap(), bytes, "{text:?}");
        }
    }

    #[test]
    fn what_qemu_img_refuses_as_a_size_is_refused() {
        let refused = [
            "", "k", ".", ".k", "1e3", "0x10k", "0x", "00x1", "1kb", "1.5", "1.5b", "1M5", "1MiB",
            "1.5.2k", "inf", "nan", "1,5k", "1 ", "--1", "+-1", "-1", "1k.", "0x1.8k",
        ];
        for text in refused {
            assert!(parse(text).unwrap_err().to_string().contains("is not a size"), "{text:?}");
        }
    }

    #[test]
    fn a_size_that_does_not_fit_is_refused_and_never_wraps() {
        for text in
            ["16E", "18446744073709551616", "15.9999999999999999999E", "0x10000000000000000"]
        {
            assert!(parse(text).unwrap_err().to_string().contains("64 bits"), "{text:?}");
        }
        assert_eq!(parse("18446744073709551615").unwrap(), u64::MAX);
    }

    #[test]
    fn a_disk_has_at_most_two_to_the_63_minus_one_bytes() {
        assert_eq!(parse_disk("9223372036854775807").unwrap(), i64::MAX as u64);
        assert!(parse_disk("8E").is_err());
    }

    #[test]
    fn trap_138_sizes_are_shown_with_three_significant_digits() {
        let shown = [
            (0, "0 B"),
            (512, "512 B"),
            (1000, "0.977 KiB"),
            (1536, "1.5 KiB"),
            (1_022_976, "999 KiB"),
            (1_023_488, "1000 KiB"),
            (102_400, "100 KiB"),
            (1_024_000, "0.977 MiB"),
            (1_043_456, "0.995 MiB"),
            (1_234_944, "1.18 MiB"),
            (12_345_856, "11.8 MiB"),
            (123_457_024, "118 MiB"),
            (1_030_792_151_040, "960 GiB"),
            (64 << 40, "64 TiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, text) in shown {
            assert_eq!(human(bytes), text);
        }
    }
}
