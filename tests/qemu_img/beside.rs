//! Two directories in which the same commands run: ours under the name `qemu-img`, and QEMU's own.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::binary;
use fixtures::{Scratch, qemu};

/// What a program said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// Standard output of a run that succeeded in silence.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, &*self.err), (Some(0), ""), "{self:?}");
        self.out
    }

    /// Standard error of a run that failed with 1 and printed nothing else.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_eq!((self.code, &*self.out), (Some(1), ""), "{self:?}");
        self.err
    }
}

/// Both directories.
pub(crate) struct Beside {
    scratch: Scratch,
}

impl Beside {
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new();
        for side in ["ours", "theirs"] {
            std::fs::create_dir(scratch.path(side)).unwrap();
        }
        symlink(binary(), scratch.path("qemu-img")).unwrap();
        Self { scratch }
    }

    /// Two new directories with the same files.
    pub(crate) fn like(other: &Self) -> Self {
        let new = Self::new();
        for (from, to) in other.dirs().into_iter().zip(new.dirs()) {
            let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
            assert!(status.unwrap().success());
        }
        new
    }

    pub(crate) fn ours_dir(&self) -> PathBuf {
        self.scratch.path("ours")
    }

    pub(crate) fn theirs_dir(&self) -> PathBuf {
        self.scratch.path("theirs")
    }

    pub(crate) fn dirs(&self) -> [PathBuf; 2] {
        [self.ours_dir(), self.theirs_dir()]
    }

    /// Runs a shell command in both, for what a test starts from.
    #[track_caller]
    pub(crate) fn set_up(&self, script: &str) {
        for dir in self.dirs() {
            let status = Command::new("sh").args(["-ec", script]).current_dir(dir).status();
            assert!(status.unwrap().success(), "{script}");
        }
    }

    /// Runs only ours.
    pub(crate) fn ours(&self, words: &[&str]) -> Said {
        run(&self.scratch.path("qemu-img"), &self.ours_dir(), words)
    }

    pub(crate) fn theirs(&self, words: &[&str]) -> Said {
        run(Path::new("qemu-img"), &self.theirs_dir(), words)
    }

    /// Runs a line of a shell with each program under the names that it is called by. Both end alike and print the same.
    #[track_caller]
    pub(crate) fn shell(&self, script: &str) -> Said {
        let ours = self.our_shell(script);
        let real = Command::new("sh").args(["-c", "command -v qemu-img"]).output().unwrap();
        let real = String::from_utf8(real.stdout).unwrap();
        let theirs = self.in_shell("their-bin", Path::new(real.trim()), &self.theirs_dir(), script);
        assert_eq!(ours.code, theirs.code, "{script}: {ours:?} {theirs:?}");
        assert_eq!(masked(&ours.out), masked(&theirs.out), "{script}");
        ours
    }

    /// As [`shell`](Self::shell), only ours.
    pub(crate) fn our_shell(&self, script: &str) -> Said {
        self.in_shell("our-bin", &binary(), &self.ours_dir(), script)
    }

    fn in_shell(&self, bin: &str, program: &Path, dir: &Path, script: &str) -> Said {
        let bin = self.scratch.path(bin);
        if !bin.exists() {
            std::fs::create_dir(&bin).unwrap();
            for name in ["qemu-img", "cloud-qemu-img", "ccp-qemu-img"] {
                symlink(program, bin.join(name)).unwrap();
            }
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(dir).env("PATH", path).stdin(Stdio::null());
        said(command.output().unwrap())
    }

    /// Runs both; they end alike and print the same on standard output. Gives back what ours said.
    #[track_caller]
    pub(crate) fn both(&self, words: &[&str]) -> Said {
        let (ours, theirs) = (self.ours(words), self.theirs(words));
        assert_eq!(ours.code, theirs.code, "{words:?}: {ours:?} {theirs:?}");
        assert_eq!(masked(&ours.out), masked(&theirs.out), "{words:?}");
        assert_eq!(ours.err.is_empty(), theirs.err.is_empty(), "{words:?}: {ours:?} {theirs:?}");
        ours
    }

    /// As [`both`](Self::both), of one file: for what only reads.
    #[track_caller]
    pub(crate) fn both_read_ours(&self, words: &[&str]) -> Said {
        let ours = self.ours(words);
        let theirs = run(Path::new("qemu-img"), &self.ours_dir(), words);
        assert_eq!((ours.code, &ours.out), (theirs.code, &theirs.out), "{words:?}");
        ours
    }

    /// Runs both, which succeed and say nothing on standard error: programs take any text there for a failure.
    #[track_caller]
    pub(crate) fn same(&self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.both(&words).ok()
    }

    /// The file `name` holds the same for a guest in both, and is sound.
    #[track_caller]
    pub(crate) fn same_content(&self, name: &str, format: &str) {
        let [ours, theirs] = self.dirs().map(|dir| dir.join(name));
        let compared = Command::new("qemu-img")
            .args(["compare", "-f", format, "-F", format])
            .args([&ours, &theirs])
            .output()
            .unwrap();
        assert!(compared.status.success(), "{name}: {compared:?}");
        if format == "qcow2" {
            qemu::assert_clean(&ours);
        }
    }
}

fn run(program: &Path, dir: &Path, words: &[&str]) -> Said {
    let output = Command::new(program)
        .args(words)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .env_remove("POSIXLY_CORRECT")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    said(output)
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Without what depends on the file system, the layout of what was written, the time, and how often progress is
/// shown.
pub(crate) fn masked(text: &str) -> String {
    let depends = ["disk size:", "\"actual-size\":", "file length:", "\"date-", "/100%)"];
    // Of the file below an image.
    let length = "                \"virtual-size\":";
    let kept =
        |line: &&str| !line.starts_with(length) && !depends.iter().any(|word| line.contains(word));
    text.replace('\r', "\r\n").lines().filter(kept).map(|line| dateless(line) + "\n").collect()
}

/// Without a date and a time of a list of snapshots.
fn dateless(line: &str) -> String {
    let is_date = |word: &&str| word.len() == 10 && word.matches('-').count() == 2;
    match line.split(' ').find(is_date).and_then(|date| line.split_once(date)) {
        Some((before, after)) => format!("{before}DATE{}", after.get(9..).unwrap_or_default()),
        None => line.to_owned(),
    }
}

impl Beside {
    /// What QEMU's own program prints.
    #[track_caller]
    pub(crate) fn theirs_says(&self, words: &[&str]) -> String {
        self.theirs(words).ok()
    }
}
