//! Whole operations in place, and many disks at once.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use fixtures::{args, qemu};

use super::Result;
use super::measure::{Ran, run};

/// A disk of 64 GiB with all its tables, whose place in the file is a hole.
const SIZE: &str = "64G";
const DISKS: u64 = 32;

/// E13: each operation by `qcowtool`, if it is built beside this program, and by `qemu-img`.
pub(crate) fn table(dir: &Path) -> Result<String> {
    let image = dir.join("image");
    let own = std::env::current_exe()?;
    let own = own.ancestors().map(|path| path.join("qcowtool")).find(|path| path.is_file());
    let mut text = String::from(
        "\n## E13 operations on 64 GiB with all tables\n\n| operation | by | time | processor time | syncs | written | peak memory |\n|---|---|--:|--:|--:|--:|--:|\n",
    );
    let operations: [(&str, Vec<OsString>); 5] = [
        ("snapshot create", args!["snapshot", "-c", "two"]),
        ("snapshot apply", args!["snapshot", "-a", "one"]),
        ("snapshot delete", args!["snapshot", "-d", "one"]),
        ("resize to 128 GiB", args!["resize"]),
        ("bitmap add", args!["bitmap", "--add"]),
    ];
    for (name, words) in operations {
        for program in [own.clone(), Some("qemu-img".into())].into_iter().flatten() {
            if image.exists() {
                fs::remove_file(&image)?;
            }
            qemu::create(&image, "preallocation=metadata", SIZE);
            if name.contains("apply") || name.contains("delete") {
                fixtures::qemu_img(&args!["snapshot", "-c", "one", image]);
            }
            let mut all = vec![program.clone().into_os_string()];
            all.extend(words.iter().cloned());
            all.push(image.clone().into());
            match name {
                "resize to 128 GiB" => all.push("128G".into()),
                "bitmap add" => all.push("b".into()),
                _ => {}
            }
            let Ran { seconds, processor, written, memory, .. } = run(&all)?;
            // Once more, to count.
            fs::remove_file(&image)?;
            qemu::create(&image, "preallocation=metadata", SIZE);
            if name.contains("apply") || name.contains("delete") {
                fixtures::qemu_img(&args!["snapshot", "-c", "one", image]);
            }
            let trace = dir.join("trace");
            all.splice(0..0, args!["strace", "-f", "-o", trace, "-e", "trace=fsync,fdatasync"]);
            run(&all)?;
            let syncs = fs::read_to_string(trace)?;
            let syncs = syncs.lines().filter(|line| line.contains("sync(")).count();
            let by = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
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
    let words = args![std::env::current_exe()?, "--contender", "many"];
    let mut memory = Vec::new();
    for count in [1, DISKS] {
        let mut all = words.clone();
        for number in 0..count {
            let image = dir.join(format!("disk{number}"));
            qemu::create(&image, "", "1G");
            all.push(image.into());
        }
        memory.push(run(&all)?.memory as f64 / 1048576.0);
        for number in 0..count {
            fs::remove_file(dir.join(format!("disk{number}")))?;
        }
    }
    Ok(format!(
        "\n## E15 many disks in one process\n\nA write of 4 KiB to every cluster of a disk of 1 GiB, each by a thread of its own: one disk takes {:.0} MiB at most, {DISKS} disks {:.0} MiB.\n",
        memory[0], memory[1]
    ))
}
