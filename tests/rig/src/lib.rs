//! Two real libvirt hosts on one machine, and guests that check their own disks.
//!
//! Each host, `a` and `b`, and `c` where three are asked for, is a set of Linux namespaces with its own libvirtd, network, process numbers,
//! name and UUID, and its own `/etc/libvirt`, `/run`, `/var/lib/libvirt`, `/var/log/libvirt`. Both thus have
//! local storage at the same path with nothing shared behind it, as two machines have. Everything else
//! (a checkout, a build, `/tmp`) is the same in both and outside. A veth pair joins them; no port is opened
//! on the machine. Guests run without KVM.
//!
//! | module | what it gives |
//! |---|---|
//! | [`rig`] | both hosts: starting, joining, and taking them away whatever happens |
//! | [`host`] | one host: running programs in it, its daemon, its storage, its death |
//! | [`guest`] | a guest: its XML, its disks, what it reports, where it runs |
//! | [`disk`] | what every sector of a guest's disk must hold |
//!
//! The binary `rig` gives the same to shell scripts. Everything here panics when it fails.

pub mod disk;
pub mod guest;
pub mod host;
pub mod rig;

pub use disk::{Kind, Template};
pub use guest::{Disk, Guest};
pub use host::{Host, Ran};
pub use rig::Rig;

/// Returns from a test, with a visible line, where there can be no rig.
#[macro_export]
macro_rules! needs_rig {
    () => {
        if let Some(why) = $crate::rig::missing() {
            $crate::rig::skipped(&format!("no two hosts here: {why}"));
            return;
        }
    };
}

/// Waits until `done` gives something; says what was waited for if that takes more than `seconds`.
#[track_caller]
pub fn wait_for<T>(seconds: u64, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    wait_until(seconds, || done().ok_or_else(|| format!("no {what}")))
}

/// The same where `done` says what is still wrong.
#[track_caller]
pub fn wait_until<T>(seconds: u64, mut done: impl FnMut() -> Result<T, String>) -> T {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    loop {
        match done() {
            Ok(value) => return value,
            Err(wrong) => {
                assert!(std::time::Instant::now() < end, "{wrong} within {seconds} seconds");
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
