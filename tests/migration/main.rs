//! Live migration between two libvirt hosts that are namespaces of this machine (`tests/rig`).
//!
//! Apart from the others because it mostly waits, for guests and for hosts: `make test-migration` runs this alone.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod annotate;
mod baseline;
mod content;
mod devices;
mod evacuate;
mod evacuate_faults;
mod evacuate_twelve;
mod evacuate_two_hosts;
mod evacuation;
mod faults;
mod flatten;
mod guest_files;
mod hook;
mod live;
mod mkdir;
mod network_disk;
mod opennebula;
mod preflight;
mod relocate;
mod rescue;
mod serving;
mod third_machine;
mod trial;
mod tuning;
mod volumes;
