//! Whole operations in place, and many disks at once.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use fixtures::{args, qemu, qemu_img};

use super::Result;
use super::measure::{Ran, run};

/// A disk of 64 GiB with all its tables, whose place in the file is a hole.
const SIZE: &str = "64G";
const DISKS: u64 = 32;

/// E13: each operation by the library and by `qemu-img`.
pub(crate) fn table(dir: &Path) -> Result<String> {
    let (image, trace) = (dir.join("image"), dir.join("trace"));
    let mut text = String::from(
        "\n## E13 operations on 64 GiB with all tables\n\n| operation | by | time | processor time | syncs | written | peak memory |\n\
         |---|---|--:|--:|--:|--:|--:|\n",
    );
    let own = std::env::current_exe()?;
    let operations: [(&str, Vec<OsString>); 5] = [
        ("snapshot create", args!["snapshot", "-c", "two", image]),
        ("snapshot apply", args!["snapshot", "-a", "one", image]),
        ("snapshot delete", args!["snapshot", "-d", "one", image]),
        ("resize to 128 GiB", args!["resize", "-q", image, "128G"]),
        ("bitmap add", args!["bitmap", "--add", image, "b"]),
    ];
    for (name, words) in operations {
        let ours = args![own, "--contender", "operation", name, image];
        let theirs = [args!["qemu-img"], words].concat();
        for (by, words) in [("qcow", ours), ("qemu-img", theirs)] {
            let again = || -> Result<()> {
                if image.exists() {
                    fs::remove_file(&image)?;
                }
                qemu::create(&image, "preallocation=metadata", SIZE);
                if name.contains("apply") || name.contains("delete") {
                    qemu_img(&args!["snapshot", "-c", "one", image]);
                }
                Ok(())
            };
            again()?;
            let Ran { seconds, processor, written, memory, .. } = run(&words)?;
            again()?;
            let mut counted = args!["strace", "-f", "--seccomp-bpf", "-o", trace];
            counted.extend(args!["-e", "trace=fsync,fdatasync"]);
            counted.extend(words);
            run(&counted)?;
            let lines = fs::read_to_string(&trace)?;
            let syncs = lines.lines().filter(|line| line.contains("sync(")).count();
            text.push_str(&format!(
                "| {name} | {by} | {seconds:.2} s | {processor:.2} s | {syncs} | {:.1} MB | {:.0} MiB |\n",
                written as f64 / 1e6,
                memory as f64 / 1048576.0
            ));
        }
    }
    Ok(text)
}

/// E15: many disks in one process.
pub(crate) fn many(dir: &Path) -> Result<String> {
    let mut memory = Vec::new();
    for count in [1, DISKS] {
        let mut words = args![std::env::current_exe()?, "--contender", "many"];
        let images: Vec<_> = (0..count).map(|number| dir.join(format!("disk{number}"))).collect();
        for image in &images {
            qemu::create(image, "", "1G");
            words.push(image.into());
        }
        memory.push(run(&words)?.memory as f64 / 1048576.0);
        for image in images {
            fs::remove_file(image)?;
        }
    }
    Ok(format!(
        "\n## E15 many disks in one process\n\nA write of 4 KiB to every cluster of a disk of 1 GiB, each by a thread of its own: one disk takes {:.0} MiB \
         at most, {DISKS} disks {:.0} MiB.\n",
        memory[0], memory[1]
    ))
}
