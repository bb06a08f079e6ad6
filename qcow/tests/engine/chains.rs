//! Chains that are opened in unusual ways.

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use qcow::chain::{Chain, Format, OpenOptions};
use qcow::ops::create::{Backing, CreateOptions, create};

#[test]
fn a_deleted_layer_is_read_through_a_descriptor_and_what_it_stands_on_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let on = |name: &str| Some(Backing::new(name, Format::Qcow2));
    let make = |name: &str, backing, size| {
        let options = CreateOptions::default().backing(backing).size(size);
        create(&path(name), &options).unwrap();
    };
    make("base", None, Some(1 << 20));
    make("middle", on("base"), None);
    make("top", on("middle"), None);
    let held = std::fs::File::open(path("middle")).unwrap();
    std::fs::remove_file(path("middle")).unwrap();
    let mut options = OpenOptions::default();
    Chain::open(&path("top"), &options).unwrap_err();
    let descriptor = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    options.overrides = vec![(path("middle"), descriptor)];
    let chain = Chain::open(&path("top"), &options).unwrap();
    let names: Vec<_> = chain.layers().iter().map(|layer| layer.path().to_owned()).collect();
    assert_eq!(names, [path("top"), path("middle"), path("base")]);
}
