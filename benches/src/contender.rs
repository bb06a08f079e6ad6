//! The ways to do a piece of work: the commands that compete.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Result;
use crate::setting::Setting;
use crate::verify::{self, Verify};

/// One way to do a case's work.
pub(crate) struct Contender {
    /// Whose way it is.
    pub(crate) kind: Kind,
    /// How it is called in the report.
    pub(crate) name: String,
    /// The program and its arguments.
    pub(crate) command: Vec<PathBuf>,
    /// The file it makes, removed after each run.
    pub(crate) target: Option<PathBuf>,
    /// Looks at what it made or printed, once, after the clock has stopped.
    pub(crate) verify: Verify,
}

/// Whose way it is, which is also its colour in charts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What is judged.
    Qcowtool,
    /// `qemu-img` with the flags that make it fastest.
    Best,
    /// `qemu-img` as one would type it.
    Default,
    /// The kernel's own copy of the same bytes.
    Copy,
    /// Something else worth knowing, which no chart shows.
    Aside,
}

/// The flags that make `qemu-img convert` fastest.
pub(crate) const BEST: [&str; 3] = ["-W", "-m", "16"];

impl Contender {
    /// The command, ready to run.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        command
    }

    /// The same with another name, that no chart shows.
    pub(crate) fn aside(self, name: &str) -> Self {
        Self { kind: Kind::Aside, name: name.to_owned(), ..self }
    }
}

impl Setting {
    /// `qcowtool flatten`, verified against `source`.
    pub(crate) fn ours(&self, source: &Path, words: &[&str], verify: Verify) -> Contender {
        let target = self.dir.join("ours.img");
        let words = [&["flatten", "-q"], words].concat();
        Contender {
            kind: Kind::Qcowtool,
            name: "qcowtool".to_owned(),
            command: line(&self.qcowtool, &words, &[source, &target]),
            target: Some(target),
            verify,
        }
    }

    /// `qemu-img convert` with `flags` of its own before the `words` that say what to make.
    pub(crate) fn convert(
        &self,
        source: &Path,
        flags: &[&str],
        words: &[&str],
        verify: Verify,
    ) -> Contender {
        let target = self.dir.join("qemu.img");
        Contender {
            kind: if flags.is_empty() { Kind::Default } else { Kind::Best },
            name: ["qemu-img convert", &flags.join(" ")].join(" ").trim_end().to_owned(),
            command: line(
                Path::new("qemu-img"),
                &[&["convert"], flags, words].concat(),
                &[source, &target],
            ),
            target: Some(target),
            verify,
        }
    }

    /// What moving the bytes of `file` costs at the least.
    pub(crate) fn copy(&self, file: &Path) -> Result<Contender> {
        let target = self.dir.join("copy.img");
        let threads = std::thread::available_parallelism()?;
        Ok(Contender {
            kind: Kind::Copy,
            name: format!("plain copy, {threads} threads"),
            command: line(&std::env::current_exe()?, &["copy"], &[file, &target]),
            target: Some(target),
            verify: verify::same_bytes(file.to_owned()),
        })
    }

    /// All four ways to write `source` as a new image: ours, qemu-img's two, and the copy of `bytes`.
    pub(crate) fn four_ways(
        &self,
        source: &Path,
        words: &[&str],
        bytes: &Path,
    ) -> Result<Vec<Contender>> {
        let equal = || verify::equal(source.to_owned());
        Ok(vec![
            self.ours(source, words, equal()),
            self.convert(source, &BEST, words, equal()),
            self.convert(source, &[], words, equal()),
            self.copy(bytes)?,
        ])
    }

    /// The same words to both programs, which make `target` or print.
    pub(crate) fn both(
        &self,
        words: &[&str],
        paths: &[&Path],
        target: Option<&Path>,
        verify: [Verify; 2],
    ) -> Vec<Contender> {
        let programs = [
            (Kind::Qcowtool, "qcowtool", self.qcowtool.as_path()),
            (Kind::Best, "qemu-img", Path::new("qemu-img")),
        ];
        let contenders = programs.into_iter().zip(verify);
        let contenders = contenders.map(|((kind, name, program), verify)| Contender {
            kind,
            name: name.to_owned(),
            command: line(program, words, paths),
            target: target.map(Path::to_owned),
            verify,
        });
        contenders.collect()
    }
}

/// A program with words and then paths.
pub(crate) fn line(program: &Path, words: &[&str], paths: &[&Path]) -> Vec<PathBuf> {
    let words = words.iter().map(PathBuf::from);
    let paths = paths.iter().map(|path| path.to_path_buf());
    std::iter::once(program.to_owned()).chain(words).chain(paths).collect()
}
