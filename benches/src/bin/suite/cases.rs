//! What is measured, against what, and what this project promises.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;

use crate::Result;
use crate::disks::Disks;
use crate::measure::{Case, Contender, Goal, Verify, must};

/// All cases, in the order of the report.
pub(crate) fn all(qcowtool: &Path, disks: &Disks) -> Result<Vec<Case>> {
    let maker = Maker { qcowtool, disks };
    let flat = maker.flat()?;
    Ok(vec![
        maker.create("1G"),
        maker.create("1T"),
        maker.info(),
        maker.flatten("qcow2", Some(&flat))?,
        maker.flatten("raw", None)?,
        maker.empty(),
        maker.metadata("check", &["check", "--output", "json"], same_json()),
        maker.metadata("map, JSON,", &["map", "--output", "json"], same_json()),
        maker.metadata("measure", &["measure", "-O", "qcow2", "--output", "json"], same_json()),
        maker.compare(&flat),
        maker.checksum(),
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

    fn flatten(&self, format: &str, copied: Option<&Path>) -> Result<Case> {
        let source = &self.disks.chain;
        let mut contenders = vec![
            self.ours(source, format, equal(source.clone())),
            self.qemu_convert(source, format, &["-W", "-m", "16"], equal(source.clone())),
            self.qemu_convert(source, format, &[], equal(source.clone())),
        ];
        if let Some(result) = copied {
            contenders.push(self.plain_copy(result)?);
        }
        Ok(Case {
            name: format!("flatten to {format}, 4 layers, {} MiB", self.disks.data >> 20),
            short: false,
            contenders,
            goal: Some(Goal::Ratio(1.0)),
        })
    }

    /// The chain as one image.
    fn flat(&self) -> Result<PathBuf> {
        let flat = self.disks.target("flat.qcow2");
        let words = ["flatten", "-q", "-O", "qcow2"];
        let flatten = command(self.qcowtool, &words, &[&self.disks.chain, &flat]);
        must(Command::new(&flatten[0]).args(&flatten[1..]))?;
        Ok(flat)
    }

    /// A flattened image, copied byte for byte: what moving this much data costs at the least.
    fn plain_copy(&self, bytes: &Path) -> Result<Contender> {
        let target = self.disks.target("copy.qcow2");
        Ok(Contender {
            name: "plain copy of the result, all cores".to_owned(),
            command: command(&std::env::current_exe()?, &["copy"], &[bytes, &target]),
            target: Some(target),
            verify: equal(bytes.to_owned()),
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

    /// The same words to both programs, about the image that is all metadata.
    fn metadata(&self, what: &str, words: &[&str], verify: [Verify; 2]) -> Case {
        let (image, size) = &self.disks.preallocated;
        Case {
            name: format!("{what} {size} of preallocated metadata"),
            short: false,
            contenders: self.both(words, &[image], verify),
            goal: Some(Goal::Ratio(1.0)),
        }
    }

    fn compare(&self, flat: &Path) -> Case {
        Case {
            name: format!("compare the chain with its copy, {} MiB", self.disks.data >> 20),
            short: false,
            contenders: self.both(&["compare"], &[&self.disks.chain, flat], same_text()),
            goal: Some(Goal::Ratio(1.0)),
        }
    }

    /// qemu-img has no digests and writes to no pipe: it makes a raw file, which is then read.
    fn checksum(&self) -> Case {
        let chain = &self.disks.chain;
        let [ours, theirs] = same_digest();
        let digest = |algorithm: &str, name: &str, verify| Contender {
            name: name.to_owned(),
            command: command(
                self.qcowtool,
                &["checksum", "-q", "--algorithm", algorithm],
                &[chain],
            ),
            target: None,
            verify,
        };
        let raw = self.disks.target("qemu.img");
        let script = r#"qemu-img convert -W -m 16 -O raw "$1" "$2" && sha256sum <"$2""#;
        let converted = Contender {
            name: "qemu-img convert -O raw -W -m 16, sha256sum".to_owned(),
            command: command(Path::new("sh"), &["-c", script, "sh"], &[chain, &raw]),
            target: Some(raw),
            verify: theirs,
        };
        Case {
            name: format!("checksum of the chain, {} MiB, SHA-256", self.disks.data >> 20),
            short: false,
            contenders: vec![
                digest("sha256", "qcowtool", ours),
                converted,
                digest("blake3-tree", "qcowtool, tree hash", Box::new(|_, _| Ok(()))),
            ],
            goal: Some(Goal::Ratio(1.0)),
        }
    }

    fn both(&self, words: &[&str], paths: &[&Path], verify: [Verify; 2]) -> Vec<Contender> {
        let programs = [("qcowtool", self.qcowtool), ("qemu-img", Path::new("qemu-img"))];
        let contenders = programs.into_iter().zip(verify);
        let contenders = contenders.map(|((name, program), verify)| Contender {
            name: name.to_owned(),
            command: command(program, words, paths),
            target: None,
            verify,
        });
        contenders.collect()
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

/// Both print the same JSON, but for the findings that only qcowtool has.
fn same_json() -> [Verify; 2] {
    agree(|printed| {
        let mut value: Value = serde_json::from_str(printed)?;
        if let Some(object) = value.as_object_mut() {
            object.retain(|key, _| !key.starts_with("findings"));
        }
        Ok(value)
    })
}

/// Both print the same.
fn same_text() -> [Verify; 2] {
    agree(|printed| Ok(printed.trim().into()))
}

/// Both print the same digest, and then the name of what they read.
fn same_digest() -> [Verify; 2] {
    agree(|printed| Ok(printed.split_whitespace().next().unwrap_or_default().into()))
}

/// For two contenders: what `read` makes of the second's output is what it made of the first's.
fn agree(read: fn(&str) -> Result<Value>) -> [Verify; 2] {
    let first = Rc::new(RefCell::new(None));
    let said = Rc::clone(&first);
    [
        Box::new(move |_, printed| {
            *said.borrow_mut() = Some(read(printed)?);
            Ok(())
        }),
        Box::new(move |_, printed| {
            let (ours, theirs) = (first.borrow(), read(printed)?);
            if ours.as_ref() == Some(&theirs) {
                return Ok(());
            }
            Err(format!("{theirs} is not what qcowtool says: {ours:?}").into())
        }),
    ]
}
