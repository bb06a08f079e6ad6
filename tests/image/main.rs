//! Images and chains through the binary: read, made, flattened, compared and measured, with qemu-img as the judge.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod amend;
mod bitmap;
mod carrying_bitmaps;
mod chains;
mod committing;
mod compare;
mod compressed_runs;
mod converting;
mod create;
mod create_targets;
mod devices;
mod digest;
mod existing;
mod flatten;
mod flatten_devices;
mod flatten_safety;
mod flatten_streams;
mod flatten_ways;
mod foreign_formats;
mod in_place;
mod kept;
mod losses;
mod map;
mod measure;
mod names;
mod property;
mod reading;
mod rebasing;
mod replacing;
mod resize;
mod salvage;
mod serve;
mod serve_tls;
mod snapshot;
mod traps_bitmaps;
mod traps_clusters;
mod traps_compressed;
mod traps_open;
mod traps_snapshots;
mod writing;
mod writing_races;
