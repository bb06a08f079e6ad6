//! Errors of the library in the words of `qemu-img`: programs match on them.

use std::path::Path;

use qcow::{Error, ErrorKind};

use super::say::{Stop, system};

/// Why the image that the command line calls `shown`, in the file `top`, cannot be opened.
pub(super) fn not_opened(shown: &str, top: &Path, error: &Error) -> Stop {
    locked(Stop::error(format!("Could not open '{shown}': {}", why(error, top))), shown, error)
}

/// What happened, and to which layer.
pub(super) fn why(error: &Error, top: &Path) -> String {
    let unknown = error.message().strip_prefix("image format '");
    if let Some(driver) = unknown.and_then(|rest| rest.strip_suffix("' is not supported")) {
        // One that an option names is looked up before; this one is in a `json:` name, or recorded in an image.
        let recorded = !top.as_os_str().as_encoded_bytes().starts_with(b"json:");
        let prefix = if recorded { "Could not open backing file: " } else { "" };
        return format!("{prefix}Unknown driver '{driver}'");
    }
    let below = error.place().file.as_deref().is_some_and(|file| !is_same(file, top))
        && error.place().structure != Some("data file");
    let prefix = if below { "Could not open backing file: " } else { "" };
    format!("{prefix}{}", reason(error, top))
}

/// Whether `name`, which may be a `json:` name, means this file.
pub(super) fn is_same(name: &Path, file: &Path) -> bool {
    name == file || qcow::chain::local_path(name).is_ok_and(|path| path == file)
}

/// As [`not_opened`], where the image was to be written to.
pub(super) fn not_writable(shown: &str, top: &Path, error: &Error) -> Stop {
    let stop = Stop::error(format!(r#"Could not open '{shown}': Failed to get "write" lock"#));
    if error.kind() == ErrorKind::InUse {
        locked(stop, shown, error)
    } else {
        not_opened(shown, top, error)
    }
}

/// Adds who may be in the way, if a lock is.
fn locked(stop: Stop, shown: &str, error: &Error) -> Stop {
    if error.kind() != ErrorKind::InUse {
        return stop;
    }
    let file = error.place().file.as_ref().map(|file| file.to_string_lossy().into_owned());
    let file = file.unwrap_or_else(|| shown.to_owned());
    stop.hint(format!("Is another process using the image [{file}]?"))
}

/// What happened, without the file that the command line names.
pub(super) fn reason(error: &Error, top: &Path) -> String {
    let file = error.place().file.as_deref().unwrap_or(top).to_string_lossy();
    if let Some(source) = error.io_source() {
        let text = system(source);
        return match error.message() {
            "could not open" | "could not open for writing" if file.is_empty() => {
                "The 'file' block driver requires a file name".to_owned()
            }
            "could not open" | "could not open for writing" => {
                format!("Could not open '{file}': {text}")
            }
            _ => text,
        };
    }
    match error.kind() {
        ErrorKind::InUse => r#"Failed to get shared "write" lock"#.to_owned(),
        ErrorKind::Denied if error.message().starts_with("neither") => {
            format!("'file' driver requires '{file}' to be a regular file")
        }
        ErrorKind::Usage if error.message().starts_with("the image has no external data file") => {
            "'data-file' can only be set for images with an external data file".to_owned()
        }
        ErrorKind::Corrupt if error.message().ends_with("data file but does not name it") => {
            "'data-file' is required for this image".to_owned()
        }
        ErrorKind::Encrypted => "Parameter 'encrypt.key-secret' is required for cipher".to_owned(),
        _ => header(error).unwrap_or_else(|| error.message().to_owned()),
    }
}

/// The line for a field of the header.
fn header(error: &Error) -> Option<String> {
    let message = error.message();
    let too_large = error.kind() == ErrorKind::Limit;
    let number = || message.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
    let number = || number().unwrap_or_default();
    let choose = |large: &str, invalid: &str| if too_large { large } else { invalid }.to_owned();
    match error.place().structure {
        Some("header") => {}
        Some("bitmap directory") => {
            let (name, _) = message.strip_prefix("bitmap '")?.rsplit_once("': ")?;
            return Some(format!("Bitmap '{name}' doesn't satisfy the constraints"));
        }
        Some("snapshot table") if too_large => return Some("Snapshot table too large".to_owned()),
        _ => return None,
    }
    Some(match error.place().host_offset? {
        0 => "Image is not in qcow2 format".to_owned(),
        4 => format!("Unsupported qcow2 version {}", number()),
        8 => "Invalid backing file offset".to_owned(),
        16 => "Backing file name too long".to_owned(),
        20 => format!("Unsupported cluster size: 2^{}", cluster_bits(message)),
        36 if needs_too_many(message) => "Image is too big".to_owned(),
        36 => "L1 table is too small".to_owned(),
        40 => choose("Active L1 table too large", "Active L1 table offset invalid"),
        48 => choose("Reference count table too large", "Reference count table offset invalid"),
        56 => "Image does not contain a reference count table".to_owned(),
        64 => choose("Snapshot table too large", "Snapshot table offset invalid"),
        72 => features(message),
        96 => "Reference count entry width too large; may not exceed 64 bits".to_owned(),
        100 if message.contains("at most") => "qcow2 header exceeds cluster size".to_owned(),
        100 => "qcow2 header too short".to_owned(),
        _ => return None,
    })
}

/// Whether the disk needs more L1 entries than QEMU reads.
fn needs_too_many(message: &str) -> bool {
    const MOST: u64 = 32 << 17;
    let needed = message.split("expected at least ").nth(1).and_then(|rest| rest.split(' ').next());
    needed.and_then(|needed| needed.parse::<u64>().ok()).is_some_and(|needed| needed > MOST)
}

fn cluster_bits(message: &str) -> String {
    let digits = message.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
    digits.unwrap_or_default().to_owned()
}

/// `unknown incompatible features: 'NAME' (bit N), bit M` as names, and what has none as a number.
fn features(message: &str) -> String {
    let list = message.rsplit(": ").next().unwrap_or_default();
    let (mut names, mut rest) = (Vec::new(), 0_u64);
    for feature in list.split(", ") {
        match feature.strip_prefix('\'').and_then(|text| text.split_once("' (bit ")) {
            Some((name, _)) => names.push(name.to_owned()),
            None => {
                let bit = feature.strip_prefix("bit ").and_then(|bit| bit.parse().ok());
                rest |= bit.and_then(|bit| 1_u64.checked_shl(bit)).unwrap_or(0);
            }
        }
    }
    if rest != 0 {
        names.push(format!("Unknown incompatible feature: {rest:x}"));
    }
    format!("Unsupported qcow2 feature(s): {}", names.join(", "))
}

/// What a failed system call says, or else the library.
pub(super) fn plain(error: &Error) -> String {
    error.io_source().map_or_else(|| error.message().to_owned(), system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_features_are_named_as_the_image_names_them() {
        let text = "unknown incompatible features: 'Test' (bit 63)";
        assert_eq!(features(text), "Unsupported qcow2 feature(s): Test");
        let text = "unknown incompatible features: 'a, b' (bit 3), bit 61, bit 62";
        assert!(features(text).ends_with("Unknown incompatible feature: 6000000000000000"));
    }

    #[test]
    fn a_missing_file_is_named_twice_and_one_below_is_said_to_be_so() {
        let gone = |name: &str| {
            Error::io("could not open", std::io::Error::from_raw_os_error(2)).file(name)
        };
        assert_eq!(
            not_opened("f", Path::new("f"), &gone("f")).lines(),
            ["Could not open 'f': Could not open 'f': No such file or directory"]
        );
        assert_eq!(
            not_opened("f", Path::new("f"), &gone("b")).lines(),
            [
                "Could not open 'f': Could not open backing file: Could not open 'b': No such file or directory"
            ]
        );
    }
}
