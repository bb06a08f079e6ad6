//! What is printed, as the tests compare it.

use std::time::Duration;

/// Prints an error, the first line of it with the program's name.
pub(crate) fn complain(text: &str) {
    eprintln!("qemu-io: {text}");
}

/// A number of bytes with a unit, and three digits behind the point if it is not whole.
pub(crate) fn size(bytes: u64) -> String {
    scaled(bytes as f64)
}

fn scaled(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["EiB", "PiB", "TiB", "GiB", "MiB", "KiB"];
    for (nth, unit) in UNITS.iter().enumerate() {
        let one = 2_f64.powi(10 * (6 - nth as i32));
        if bytes >= one {
            let text = format!("{:.3}", bytes / one);
            return format!("{} {unit}", text.strip_suffix(".000").unwrap_or(&text));
        }
    }
    if bytes.fract() == 0.0 { format!("{bytes} bytes") } else { format!("{bytes:.6} bytes") }
}

/// The two lines about a request that was carried out.
pub(crate) fn done(verb: &str, done: u64, at: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(1e-6);
    format!(
        "{verb} {done}/{done} bytes at offset {at}\n{}, 1 ops; {seconds:05.2} sec ({}/sec and {:.4} ops/sec)\n",
        size(done),
        scaled(done as f64 / seconds),
        1.0 / seconds
    )
}

/// Sixteen bytes a line, in hexadecimal and as text.
pub(crate) fn dump(bytes: &[u8], at: u64) -> String {
    let mut lines = String::new();
    for (line, at) in bytes.chunks(16).zip((at..).step_by(16)) {
        let hex: String = line.iter().map(|byte| format!("{byte:02x} ")).collect();
        let text = line.iter().map(|&byte| match byte {
            0x20..0x7f => char::from(byte),
            _ => '.',
        });
        lines += &format!("{at:08x}:  {hex} {}\n", text.collect::<String>());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_only_where_they_are_not_whole() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(64 << 10), "64 KiB");
        assert_eq!(size(0x3f_0000), "3.938 MiB");
        assert_eq!(size(1 << 40), "1 TiB");
    }
}
