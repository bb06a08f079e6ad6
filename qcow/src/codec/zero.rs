//! Zero detection.

/// Bytes that are looked at together: enough for wide registers, few enough to stop early.
const BLOCK: usize = 256;

/// Whether all bytes are zero. Stops soon after the first that is not; nothing at all is zero.
///
/// ```
/// assert!(qcow::codec::is_zero(&[0; 1000]));
/// assert!(!qcow::codec::is_zero(&[0, 0, 1]));
/// ```
pub fn is_zero(bytes: &[u8]) -> bool {
    // A branch per block and none within, so that the compiler uses vector instructions.
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    blocks.iter().all(|block| or_all(block) == 0) && or_all(rest) == 0
}

fn or_all(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |all, byte| all | byte)
}
