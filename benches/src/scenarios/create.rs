//! New images, and commands that read nothing but metadata.

use std::path::Path;

use super::Made;
use crate::contender::{Contender, Kind, line};
use crate::disks;
use crate::failure::Result;
use crate::measure::{Case, Goal};
use crate::setting::Setting;
use crate::verify::{self, Verify};

/// Room that `preallocation=falloc` and `full` are to take.
const ROOM: &str = "1G";

/// `create` with nothing, with all metadata, and with all room.
pub(super) fn make(setting: &Setting) -> Result<Made> {
    let [large, small] = setting.sizes.metadata;
    let all = "preallocation=metadata";
    let fine = "preallocation=metadata,cluster_size=4k";
    let cases = [
        create(setting, "1G", &[], [verify::sound(), verify::sound()], 4.0),
        create(setting, "1T", &[], [verify::sound(), verify::sound()], 4.0),
        with_copy(setting, create(setting, large, &["-o", all], allocated(), 10.0))?,
        with_copy(setting, create(setting, small, &["-o", fine], allocated(), 50.0))?,
        room(setting, "falloc", "fallocate -l 1G \"$1\""),
        room(setting, "full", "dd if=/dev/zero of=\"$1\" bs=2M count=512 status=none"),
    ];
    Ok(Vec::from(cases).into())
}

fn allocated() -> [Verify; 2] {
    [verify::all_allocated(), verify::all_allocated()]
}

fn create(setting: &Setting, size: &str, options: &[&str], verify: [Verify; 2], goal: f64) -> Case {
    let target = setting.dir.join("created.qcow2");
    let words = [&["create", "-q", "-f", "qcow2"], options].concat();
    Case {
        name: ["create", &disk(size), options.last().unwrap_or(&"")]
            .join(" ")
            .trim_end()
            .to_owned(),
        moved: None,
        contenders: setting.both(&words, &[&target, Path::new(size)], Some(&target), verify),
        goals: vec![Goal::Faster(Kind::Best, goal)],
    }
}

/// Beside it, the copy of such an image: what writing that much costs at the least.
fn with_copy(setting: &Setting, mut case: Case) -> Result<Case> {
    let made = setting.dir.join(format!("{}.qcow2", case.name));
    // Made by what is measured, because qemu-img takes a minute for the second; verified like its runs.
    let mut command = case.contenders[0].command();
    crate::command::must(&mut command)?;
    std::fs::rename(setting.dir.join("created.qcow2"), &made)?;
    case.contenders.push(setting.copy(&made)?);
    Ok(case)
}

/// The system's own way to take that much room stands beside it.
fn room(setting: &Setting, how: &str, script: &str) -> Case {
    let verify = [verify::sound(), verify::sound()];
    let option = format!("preallocation={how}");
    let mut case = create(setting, ROOM, &["-o", &option], verify, 1.0);
    let target = setting.dir.join("room.img");
    case.contenders.push(Contender {
        kind: Kind::Aside,
        name: script.replace(" of=\"$1\"", "").replace(" \"$1\"", ""),
        command: line(Path::new("sh"), &["-c", script, "sh"], &[&target]),
        target: Some(target),
        verify: verify::nothing(),
    });
    case
}

/// `check`, `map` and `measure` of an image that is all metadata.
pub(super) fn metadata(setting: &Setting) -> Result<Made> {
    let [size, _] = setting.sizes.metadata;
    let image = disks::empty(&setting.dir, &["-o", "preallocation=metadata"], size)?;
    let case = |what: &str, words: &[&str]| Case {
        name: format!("{what} {} of preallocated metadata", disk(size)),
        moved: None,
        contenders: setting.both(words, &[&image], None, verify::same_json()),
        goals: vec![Goal::Faster(Kind::Best, 1.0)],
    };
    let cases = vec![
        case("check", &["check", "--output", "json"]),
        case("map, JSON,", &["map", "--output", "json"]),
        case("measure", &["measure", "-O", "qcow2", "--output", "json"]),
    ];
    Ok(cases.into())
}

/// A size as qemu-img takes it, as people say it.
fn disk(size: &str) -> String {
    let (number, unit) = size.split_at(size.len() - 1);
    format!("{number} {unit}iB")
}
