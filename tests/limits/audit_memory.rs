//! `audit`: memory grows by some kilobytes for each image.

use common::{peak, ten_thousand};
use fixtures::{Scratch, args, needs_qemu};

#[test]
fn an_audit_of_ten_thousand_images_takes_bounded_memory() {
    needs_qemu!();
    let scratch = Scratch::new();
    ten_thousand(scratch.dir());
    let used = peak(args!["audit", scratch.dir()]);
    assert!(used < 96 << 20, "{used} bytes");
}
