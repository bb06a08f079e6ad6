//! Small images that ask for much: no input of at most 1 MiB makes a command that reads take more than
//! 512 MiB, or work that nobody waits for.
//!
//! Memory is asserted, and that each run ends by itself. Times depend on the machine. The table in
//! `docs/security.md` comes from a release build, on bombs that go to the limit (here they have a sixty-fourth of that to decode):
//!
//! ```sh
//! QCOWTOOL_LIMITS=all QCOWTOOL_BIN=$PWD/target/release/qcowtool cargo test --test limits -- --nocapture
//! ```

mod bombs;
mod streams;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bombs::Bomb;
use common::binary;
use fixtures::{Scratch, args};
use tempfile::TempDir;
use wait4::Wait4 as _;

const MEMORY: u64 = 512 << 20;
/// In seconds. Nothing takes so long, on the slowest machine and without optimisation: it hangs.
const HANGS: &str = "600";

/// Commands that read: what is before the image, and behind it. `TARGET`, `PICTURE` and `TWIN` are files.
const COMMANDS: [(&[&str], &[&str]); 17] = [
    (&["info"], &[]),
    (&["info", "--backing-chain"], &[]),
    (&["check"], &[]),
    (&["map"], &[]),
    (&["map", "--output", "json"], &[]),
    (&["map", "--force", "--picture", "PICTURE"], &[]),
    (&["measure"], &[]),
    (&["measure", "-O", "raw"], &[]),
    (&["measure", "--exact", "-O", "qcow2"], &[]),
    (&["measure", "--exact", "-c", "-O", "qcow2"], &[]),
    (&["checksum"], &[]),
    (&["checksum", "--algorithm", "blake3-tree"], &[]),
    (&["checksum", "--algorithm", "sha256"], &[]),
    (&["compare", "-F", "qcow2"], &["TWIN"]),
    (&["flatten", "-q", "--force", "-O", "raw"], &["TARGET"]),
    (&["flatten", "-q", "--force"], &["TARGET"]),
    (&["flatten", "-q", "--force", "-c"], &["TARGET"]),
];
/// Those that look at no more than headers, or at every table whatever it is.
const LOOK: [&str; 2] = ["info", "check"];

#[test]
fn small_images_take_neither_memory_nor_time_without_end() {
    let scratch = Scratch::new();
    // Where files may be as long as the disks that these images claim; ext4 ends at 16 TiB.
    let outputs = TempDir::with_prefix_in("qcowtool-", "/dev/shm").unwrap();
    let whole = std::env::var_os("QCOWTOOL_LIMITS").is_some();
    let mut worst: BTreeMap<String, (Used, &str)> = BTreeMap::new();
    for bomb in bombs::all(&scratch, if whole { 1 } else { 64 }) {
        fs::copy(&bomb.image, bomb.image.with_file_name("twin")).unwrap();
        for (before, behind) in COMMANDS {
            let used = run(outputs.path(), &bomb, before, behind);
            let (name, told) = (before.join(" "), used.told());
            println!("{:24} {name:36} {told}, exit code {}", bomb.name, used.code);
            assert!(used.peak < MEMORY, "{} {name}: {} bytes", bomb.name, used.peak);
            // What is refused is refused by all that read. A check says what is wrong, or that it cannot be done.
            let expected: &[i32] = match () {
                () if before[0] == "check" => &[0, 1, 2, 3],
                () if LOOK.contains(&before[0]) || bomb.reads => &[0],
                () => &[1, 2],
            };
            // Zeros cost SHA-256 as much as data: disks beyond 4 GiB are refused.
            let hashed = before.contains(&"sha256") && used.code == 1;
            assert!(expected.contains(&used.code) || hashed, "{} {name}: {told}", bomb.name);
            let entry = worst.entry(name).or_insert((used, bomb.name));
            if used.wall > entry.0.wall {
                *entry = (used, bomb.name);
            }
        }
        let _ = fs::remove_file(outputs.path().join("flat"));
    }
    println!("\nThe longest of each command:");
    for (name, (used, bomb)) in worst {
        println!("| `{}` | {bomb} | {} |", name.replace("-q --force ", ""), used.told());
    }
}

/// Runs a command, with `--untrusted`; it ends by itself, or is told by its exit code.
fn run(outputs: &Path, bomb: &Bomb, before: &[&str], behind: &[&str]) -> Used {
    let word = |word: &&str| -> OsString {
        match *word {
            "TARGET" => outputs.join("flat").into(),
            "PICTURE" => outputs.join("map.svg").into(),
            "TWIN" => bomb.image.with_file_name("twin").into(),
            word => word.into(),
        }
    };
    let mut all: Vec<OsString> = before.iter().map(word).collect();
    all.extend(args!["--untrusted", "-f", "qcow2"]);
    if bomb.chain && before[0] != "check" {
        all.extend(args!["--allow-dir", bomb.image.parent().unwrap()]);
    }
    if bomb.snapshot && !LOOK.contains(&before[0]) && before[0] != "compare" {
        all.extend(args!["--snapshot", "1"]);
    }
    all.push(bomb.image.clone().into());
    all.extend(behind.iter().map(word));

    let begin = Instant::now();
    let mut guarded = Command::new("timeout");
    guarded.args(["-s", "KILL", HANGS]).arg(binary()).args(all);
    let child = guarded.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    // What the program used is counted for whoever waited for it.
    let used = child.unwrap().wait4().unwrap();
    Used {
        peak: used.rusage.maxrss,
        wall: begin.elapsed(),
        cpu: used.rusage.utime + used.rusage.stime,
        code: used.status.code().unwrap_or(-1),
    }
}

#[derive(Clone, Copy)]
struct Used {
    peak: u64,
    wall: Duration,
    cpu: Duration,
    code: i32,
}

impl Used {
    fn told(&self) -> String {
        let (wall, cpu) = (self.wall.as_secs_f64(), self.cpu.as_secs_f64());
        format!("{wall:.1} s | {cpu:.1} s of processors | {} MiB", self.peak >> 20)
    }
}
