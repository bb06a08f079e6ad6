//! What is measured, against what, and what this project promises.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Result;
use crate::disks::Disks;
use crate::measure::{Case, Contender, Goal, Verify, must};

/// All cases, in the order of the report.
pub(crate) fn all(qcowtool: &Path, disks: &Disks) -> Result<Vec<Case>> {
    let maker = Maker { qcowtool, disks };
    Ok(vec![
        maker.create("1G"),
        maker.create("1T"),
        maker.info(),
        maker.flatten("qcow2", true)?,
        maker.flatten("raw", false)?,
        maker.empty(),
    ])
}

struct Maker<'a> {
    qcowtool: &'a Path,
    disks: &'a Disks,
}

impl Maker<'_> {
    fn create(&self, size: &str) -> Case {
        let contender = |name: &str, program: &Path| {
            let target = self.disks.target("created.qcow2");
            let words = ["create", "-q", "-f", "qcow2"];
            Contender {
                name: name.to_owned(),
                command: command(program, &words, &[&target, Path::new(size)]),
                target: Some(target),
                verify: sound(),
            }
        };
        Case {
            name: format!("create qcow2, {size}"),
            short: true,
            contenders: vec![
                contender("qcowtool", self.qcowtool),
                contender("qemu-img", Path::new("qemu-img")),
            ],
            goal: Some(Goal::Ratio(0.25)),
        }
    }

    fn info(&self) -> Case {
        let contender = |name: &str, program: &Path| Contender {
            name: name.to_owned(),
            command: command(program, &["info", "--output", "json"], &[&self.disks.chain]),
            target: None,
            verify: same_facts(self.disks.chain.clone()),
        };
        Case {
            name: "info, JSON".to_owned(),
            short: true,
            contenders: vec![
                contender("qcowtool", self.qcowtool),
                contender("qemu-img", Path::new("qemu-img")),
            ],
            goal: Some(Goal::Ratio(0.25)),
        }
    }

    fn flatten(&self, format: &str, with_copy: bool) -> Result<Case> {
        let source = &self.disks.chain;
        let mut contenders = vec![
            self.ours(source, format, equal(source.clone())),
            self.qemu_convert(source, format, &["-W", "-m", "16"], equal(source.clone())),
            self.qemu_convert(source, format, &[], equal(source.clone())),
        ];
        if with_copy {
            contenders.push(self.plain_copy()?);
        }
        Ok(Case {
            name: format!("flatten to {format}, 4 layers, {} MiB", self.disks.data >> 20),
            short: false,
            contenders,
            goal: Some(Goal::Ratio(1.0)),
        })
    }

    /// A flattened image, copied byte for byte: what moving this much data costs at the least.
    fn plain_copy(&self) -> Result<Contender> {
        let bytes = self.disks.target("flat.qcow2");
        let words = ["flatten", "-q", "-O", "qcow2"];
        let flatten = command(self.qcowtool, &words, &[&self.disks.chain, &bytes]);
        must(Command::new(&flatten[0]).args(&flatten[1..]))?;
        let target = self.disks.target("copy.qcow2");
        Ok(Contender {
            name: "plain copy of the result, all cores".to_owned(),
            command: command(&std::env::current_exe()?, &["copy"], &[&bytes, &target]),
            target: Some(target),
            verify: equal(bytes),
        })
    }

    fn empty(&self) -> Case {
        let source = &self.disks.empty;
        Case {
            name: "flatten an empty disk of 64 TiB".to_owned(),
            short: false,
            contenders: vec![
                self.ours(source, "qcow2", sound()),
                self.qemu_convert(source, "qcow2", &["-W", "-m", "16"], sound()),
            ],
            goal: Some(Goal::Time(Duration::from_millis(100))),
        }
    }

    fn qemu_convert(
        &self,
        source: &Path,
        format: &str,
        flags: &[&str],
        verify: Verify,
    ) -> Contender {
        let target = self.disks.target("qemu.img");
        let words = [&["convert", "-O", format], flags].concat();
        Contender {
            name: ["qemu-img convert", &flags.join(" ")].join(" ").trim_end().to_owned(),
            command: command(Path::new("qemu-img"), &words, &[source, &target]),
            target: Some(target),
            verify,
        }
    }

    fn ours(&self, source: &Path, format: &str, verify: Verify) -> Contender {
        let target = self.disks.target("ours.img");
        let words = ["flatten", "-q", "-O", format];
        Contender {
            name: "qcowtool".to_owned(),
            command: command(self.qcowtool, &words, &[source, &target]),
            target: Some(target),
            verify,
        }
    }
}

fn command(program: &Path, words: &[&str], paths: &[&Path]) -> Vec<PathBuf> {
    let words = words.iter().map(PathBuf::from);
    let paths = paths.iter().map(|path| path.to_path_buf());
    std::iter::once(program.to_owned()).chain(words).chain(paths).collect()
}

/// The file made is a qcow2 image without an error or a leak.
fn sound() -> Verify {
    Box::new(|made, _| {
        let made = made.ok_or("no file to look at")?;
        must(Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(made))?;
        Ok(())
    })
}

/// The file made shows a guest the same disk as `source`, and is sound if it is a qcow2 image.
fn equal(source: PathBuf) -> Verify {
    Box::new(move |made, printed| {
        let path = made.ok_or("no file to look at")?;
        must(Command::new("qemu-img").args(["compare", "-q"]).args([&source, path]))?;
        let facts = must(Command::new("qemu-img").args(["info", "--output", "json"]).arg(path))?;
        let facts: Value = serde_json::from_str(&facts)?;
        if facts.get("format").and_then(Value::as_str) == Some("qcow2") {
            sound()(made, printed)?;
        }
        Ok(())
    })
}

/// The JSON printed says the same as `qemu-img info` does.
fn same_facts(image: PathBuf) -> Verify {
    Box::new(move |_, printed| {
        let theirs = must(Command::new("qemu-img").args(["info", "--output", "json"]).arg(&image))?;
        let (ours, theirs): (Value, Value) =
            (serde_json::from_str(printed)?, serde_json::from_str(&theirs)?);
        if ours != theirs {
            return Err(format!("{ours} is not what qemu-img says: {theirs}").into());
        }
        Ok(())
    })
}
