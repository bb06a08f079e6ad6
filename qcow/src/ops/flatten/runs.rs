//! Runs of pieces that are written.

/// Consecutive pieces of `bytes`, each `size` long (the last may be shorter), for which `keep`
/// says yes, joined: start and end of each run.
pub(super) fn runs_of(
    bytes: &[u8],
    size: usize,
    mut keep: impl FnMut(&[u8]) -> bool,
) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut at: usize = 0;
    for piece in bytes.chunks(size.max(1)) {
        // Both are within `bytes`.
        let end = at.wrapping_add(piece.len());
        if keep(piece) {
            match runs.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => runs.push((at, end)),
            }
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_and_the_short_tail_counts() {
        let bytes = [1, 1, 0, 0, 1, 1, 1, 1, 1];
        let runs = runs_of(&bytes, 2, |piece| piece.iter().any(|&byte| byte != 0));
        assert_eq!(runs, [(0, 2), (4, 9)]);
    }
}
