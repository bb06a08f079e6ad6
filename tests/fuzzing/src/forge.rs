//! Images out of arbitrary bytes: whole and mostly valid, then damaged in a few fields, so that what reads
//! them gets past the header.

mod build;

use arbitrary::{Result, Unstructured};

pub use build::{BASE_NAME, DATA_NAME, Forged, Structure};

/// How an image is damaged after it was made.
const MOST_DAMAGES: u8 = 4;

/// The image that `data` stands for: itself if it begins as an image does, else one that is built from it.
pub fn image(data: &[u8]) -> Forged {
    if data.starts_with(b"QFI\xfb") {
        return Forged::as_it_is(data.to_vec());
    }
    from_choices(&mut Unstructured::new(data))
}

/// An image built from `choices`; when they run out, everything else is as simple as it can be.
pub fn from_choices(choices: &mut Unstructured<'_>) -> Forged {
    let mut image = build::build(choices);
    // An error means that there are no more choices.
    let _ = damage(&mut image, choices);
    image
}

/// An image without damage.
pub fn sound(choices: &mut Unstructured<'_>) -> Forged {
    build::build(choices)
}

fn damage(image: &mut Forged, choices: &mut Unstructured<'_>) -> Result<()> {
    if choices.ratio(1, 4)? {
        return Ok(());
    }
    for _ in 0..choices.int_in_range(1..=MOST_DAMAGES)? {
        image.damaged = true;
        if choices.ratio(1, 12)? {
            resize(image, choices)?;
            continue;
        }
        let (at, width) = place(image, choices)?;
        let value = value(image, choices, at, width)?;
        let bytes = value.to_be_bytes();
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        if let Some(there) = image.bytes.get_mut(at..at + width) {
            there.copy_from_slice(&bytes[8 - width..]);
        }
    }
    Ok(())
}

/// Cuts the file or makes it longer.
fn resize(image: &mut Forged, choices: &mut Unstructured<'_>) -> Result<()> {
    let len = image.bytes.len();
    let new = match choices.int_in_range(0..=2)? {
        0 => choices.int_in_range(0..=len)?,
        1 => len.saturating_sub(choices.int_in_range(1..=2048)?),
        _ => len + choices.int_in_range(1..=3 * image.cluster())?,
    };
    image.bytes.resize(new, 0);
    Ok(())
}

/// Header fields as offset and width in bytes.
const FIELDS: [(u64, usize); 22] = [
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
    (105, 1),
    (112, 4),
    (116, 4),
    (120, 8),
];

/// Where to put something: a field of the header, a word of a structure, any byte.
fn place(image: &Forged, choices: &mut Unstructured<'_>) -> Result<(u64, usize)> {
    let last = (image.bytes.len() as u64).saturating_sub(1);
    match choices.int_in_range(0..=9)? {
        0..=2 => choices.choose(&FIELDS).copied(),
        3..=8 if !image.structures.is_empty() => {
            let structure = choices.choose(&image.structures)?;
            let words = (structure.len / structure.width as u64).max(1);
            let word = choices.int_in_range(0..=words - 1)?;
            Ok((structure.at + word * structure.width as u64, structure.width))
        }
        _ => Ok((choices.int_in_range(0..=last)?, 1)),
    }
}

/// What to put there: near what was there, an offset that means something, a limit, anything.
fn value(image: &Forged, choices: &mut Unstructured<'_>, at: u64, width: usize) -> Result<u64> {
    let before = crate::reference::u64_at(&image.bytes, at) >> (64 - 8 * width as u32);
    let cluster = image.cluster() as u64;
    Ok(match choices.int_in_range(0..=9)? {
        0 | 1 => before ^ 1 << choices.int_in_range(0..=8 * width as u32 - 1)?,
        2 => before.wrapping_add(1),
        3 => before.wrapping_sub(1),
        4 => 0,
        5 | 6 if !image.structures.is_empty() => {
            let to = choices.choose(&image.structures)?.at / cluster * cluster;
            to | *choices.choose(&[0, 1 << 63, 1 << 63 | 1, 1, 1 << 62])?
        }
        7 => {
            let end = image.bytes.len() as u64;
            *choices.choose(&[end, end / cluster * cluster, end.next_multiple_of(cluster)])?
        }
        8 => *choices.choose(&[
            u64::MAX,
            u64::MAX >> 1,
            1 << 56,
            (1 << 56) - cluster,
            1 << 32,
            (1 << 32) - 1,
            (1 << 63) - cluster,
            65_536,
            65_535,
            1024,
            4 << 20,
        ])?,
        _ => choices.arbitrary()?,
    })
}
