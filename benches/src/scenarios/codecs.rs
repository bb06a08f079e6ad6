//! A real file system, compressed and decompressed.

use super::{Made, said};
use crate::contender::Kind;
use crate::disks;
use crate::failure::Result;
use crate::measure::{Case, Goal};
use crate::setting::Setting;

const ZLIB: [&str; 3] = ["-O", "qcow2", "-c"];
const ZSTD: [&str; 5] = ["-O", "qcow2", "-c", "-o", "compression_type=zstd"];

pub(super) fn make(setting: &Setting) -> Result<Made> {
    let data = setting.sizes.tree;
    let raw = disks::file_system(&setting.dir, data)?;
    let plain = disks::converted(&raw, "tree.qcow2", &["-O", "qcow2"])?;
    let zlib = disks::converted(&raw, "zlib.qcow2", &ZLIB)?;
    let zstd = disks::converted(&raw, "zstd.qcow2", &ZSTD)?;
    let case = |what: &str, source, words: &[&str], bytes, goals| -> Result<Case> {
        Ok(Case {
            name: format!("{what}, a file system with {} of files", said(data)),
            moved: Some(data),
            contenders: setting.four_ways(source, words, bytes)?,
            goals,
        })
    };
    let to = |speed, size| vec![Goal::Faster(Kind::Best, speed), Goal::Size(Kind::Best, size)];
    let cases = vec![
        case("flatten to qcow2", &plain, &["-O", "qcow2"], &plain, super::disks::uncompressed())?,
        case("flatten -c (zlib)", &plain, &ZLIB, &zlib, to(3.0, 1.02))?,
        case("flatten -c (zstd)", &plain, &ZSTD, &zstd, to(1.5, 1.0))?,
        case(
            "flatten to raw, from zlib",
            &zlib,
            &["-O", "raw"],
            &raw,
            vec![Goal::Faster(Kind::Best, 2.0)],
        )?,
        case(
            "flatten to raw, from zstd",
            &zstd,
            &["-O", "raw"],
            &raw,
            vec![Goal::Faster(Kind::Best, 1.0)],
        )?,
    ];
    let remark = format!(
        "The file system is ext4 with the first {} of this machine's /usr, by name: the files differ between machines.",
        said(data)
    );
    Ok(Made::Cases { cases, remark: Some(remark), mount: None })
}
