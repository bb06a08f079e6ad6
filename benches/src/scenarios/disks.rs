//! Cases about whole disks: flatten, and what reads all of one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Made, said};
use crate::contender::{BEST, Contender, Kind, line};
use crate::disks;
use crate::failure::Result;
use crate::measure::{Case, Goal};
use crate::setting::Setting;
use crate::verify;

/// What is promised of every flatten that does not compress.
pub(super) fn uncompressed() -> Vec<Goal> {
    vec![Goal::Faster(Kind::Copy, 0.9), Goal::Faster(Kind::Best, 1.3)]
}

/// A chain of four layers with fragmented data.
pub(super) fn chain(setting: &Setting) -> Result<Made> {
    let data = setting.sizes.chain;
    let chain = disks::chain(&setting.dir, 4, data)?;
    let flat = disks::converted(&chain, "flat.qcow2", &["-O", "qcow2"])?;
    let flatten = |format: &str| -> Result<Case> {
        Ok(Case {
            name: format!("flatten to {format}, 4 fragmented layers, {}", said(data)),
            moved: Some(data),
            contenders: setting.four_ways(&chain, &["-O", format], &flat)?,
            goals: uncompressed(),
        })
    };
    let equally_fast = || vec![Goal::Faster(Kind::Best, 1.0)];
    let info = &["info", "--output", "json"];
    let cases = vec![
        flatten("qcow2")?,
        flatten("raw")?,
        Case {
            name: format!("compare the chain with its copy, {}", said(data)),
            moved: None,
            contenders: setting.both(&["compare"], &[&chain, &flat], None, verify::same_text()),
            goals: equally_fast(),
        },
        Case {
            name: format!("checksum of the chain, {}, SHA-256", said(data)),
            moved: None,
            contenders: checksums(setting, &chain),
            goals: equally_fast(),
        },
        Case {
            name: "info, JSON".to_owned(),
            moved: None,
            contenders: setting.both(info, &[&chain], None, verify::same_facts(&chain)),
            goals: vec![Goal::Faster(Kind::Best, 4.0)],
        },
    ];
    Ok(cases.into())
}

/// qemu-img has no digests and writes to no pipe: it makes a raw file, which is then read.
fn checksums(setting: &Setting, chain: &Path) -> Vec<Contender> {
    let [ours, theirs] = verify::same_digest();
    let digest = |algorithm: &str, verify| Contender {
        kind: Kind::Qcowtool,
        name: "qcowtool".to_owned(),
        command: line(&setting.qcowtool, &["checksum", "-q", "--algorithm", algorithm], &[chain]),
        target: None,
        verify,
    };
    let raw = setting.dir.join("qemu.img");
    let script = r#"qemu-img convert -W -m 16 -O raw "$1" "$2" && sha256sum <"$2""#;
    let converted = Contender {
        kind: Kind::Best,
        name: "qemu-img convert -O raw -W -m 16, sha256sum".to_owned(),
        command: line(Path::new("sh"), &["-c", script, "sh"], &[chain, &raw]),
        target: Some(raw),
        verify: theirs,
    };
    let tree = digest("blake3-tree", verify::nothing()).aside("qcowtool, tree hash");
    vec![digest("sha256", ours), converted, tree]
}

/// A raw disk without a hole.
pub(super) fn dense(setting: &Setting) -> Result<Made> {
    let data = setting.sizes.dense;
    let (disk, part) = (disks::dense(&setting.dir, data)?, disks::dense(&setting.dir, data / 64)?);
    let words = ["-O", "qcow2"];
    let mut contenders = setting.four_ways(&disk, &words, &disk)?;
    let ours = setting.ours(&part, &words, verify::equal(part.clone()));
    contenders.push(ours.aside("qcowtool, a 64th of the data"));
    let cases = vec![Case {
        name: format!("flatten to qcow2, a raw disk full of data, {}", said(data)),
        moved: Some(data),
        // 64 times the data take 64 times as long; a tenth for what cannot be measured better.
        goals: [vec![Goal::AtMost(contenders.len() - 1, 70.0)], uncompressed()].concat(),
        contenders,
    }];
    Ok(cases.into())
}

/// 32 layers, and one with as much data.
pub(super) fn depth(setting: &Setting) -> Result<Made> {
    let data = setting.sizes.chain;
    let deep = disks::chain(&setting.dir, 32, data)?;
    let single = disks::chain(&setting.dir, 1, data)?;
    let words = ["-O", "qcow2"];
    let equal = |source: &PathBuf| verify::equal(source.clone());
    let cases = vec![Case {
        name: format!("flatten to qcow2, 32 fragmented layers, {}", said(data)),
        moved: Some(data),
        contenders: vec![
            setting.ours(&deep, &words, equal(&deep)),
            setting.ours(&single, &words, equal(&single)).aside("qcowtool, one layer"),
            setting.convert(&deep, &BEST, &words, equal(&deep)),
            setting.convert(&deep, &[], &words, equal(&deep)),
            setting.convert(&single, &BEST, &words, equal(&single)).aside("qemu-img, one layer"),
            setting.copy(&single)?,
        ],
        goals: [vec![Goal::AtMost(1, 1.3)], uncompressed()].concat(),
    }];
    Ok(cases.into())
}

/// Small clusters and large ones.
pub(super) fn clusters(setting: &Setting) -> Result<Made> {
    let data = setting.sizes.tree;
    let source = disks::chain(&setting.dir, 1, data)?;
    let cases = [("4 KiB", "4k"), ("2 MiB", "2M")].map(|(name, size)| -> Result<Case> {
        let option = format!("cluster_size={size}");
        let words = ["-O", "qcow2", "-o", &option];
        let image = disks::converted(&source, &format!("{size}.qcow2"), &words)?;
        Ok(Case {
            name: format!("flatten to qcow2, clusters of {name} on both sides, {}", said(data)),
            moved: Some(data),
            contenders: setting.four_ways(&image, &words, &image)?,
            goals: uncompressed(),
        })
    });
    Ok(cases.into_iter().collect::<Result<Vec<_>>>()?.into())
}

/// Little data strewn over large disks.
pub(super) fn sparse(setting: &Setting) -> Result<Made> {
    let writes = setting.sizes.strewn;
    let cases = [1 << 40, 64 << 40].map(|size: u64| -> Result<Case> {
        let disk = disks::strewn(&setting.dir, size, writes)?;
        Ok(Case {
            name: format!(
                "flatten to qcow2, a sparse disk of {} TiB, {writes} writes of 256 KiB",
                size >> 40
            ),
            moved: None,
            contenders: setting.four_ways(&disk, &["-O", "qcow2"], &disk)?,
            goals: vec![Goal::Faster(Kind::Best, 1.3)],
        })
    });
    Ok(cases.into_iter().collect::<Result<Vec<_>>>()?.into())
}

/// Large disks that hold nothing.
pub(super) fn empty(setting: &Setting) -> Result<Made> {
    let cases = [("1 TiB", "1T"), ("64 TiB", "64T")].map(|(name, size)| -> Result<Case> {
        let disk = disks::empty(&setting.dir, &[], size)?;
        Ok(Case {
            name: format!("flatten an empty disk of {name}"),
            moved: None,
            contenders: vec![
                setting.ours(&disk, &["-O", "qcow2"], verify::sound()),
                setting.convert(&disk, &BEST, &["-O", "qcow2"], verify::sound()),
                setting.convert(&disk, &[], &["-O", "qcow2"], verify::sound()),
            ],
            goals: vec![Goal::Below(Duration::from_millis(20))],
        })
    });
    Ok(cases.into_iter().collect::<Result<Vec<_>>>()?.into())
}
