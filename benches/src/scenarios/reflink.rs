//! Flatten where the file system can share blocks: on an XFS of our own.

use super::{Made, said};
use crate::contender::Kind;
use crate::disks;
use crate::failure::Result;
use crate::measure::{Case, Goal};
use crate::mount::Mount;
use crate::setting::Setting;
use crate::verify;

pub(super) fn make(setting: &Setting) -> Result<Made> {
    let data = setting.sizes.chain;
    let (image, point) = (setting.dir.join("xfs"), setting.dir.join("mounted"));
    let mount = match Mount::xfs(&image, data / 2 * 7 + (512 << 20), &point) {
        Ok(mount) => mount,
        Err(why) => return Ok(Made::Skipped(format!("no XFS on a loop device here: {why}"))),
    };
    let (qcowtool, sizes) = (setting.qcowtool.clone(), setting.sizes);
    let setting = Setting { qcowtool, dir: point, sizes };
    let chain = disks::chain(&setting.dir, 4, data)?;
    let flat = disks::converted(&chain, "flat.qcow2", &["-O", "qcow2"])?;
    let words = ["-O", "qcow2"];
    let mut contenders = setting.four_ways(&chain, &words, &flat)?;
    let offload = setting.convert(&chain, &["-C"], &words, verify::equal(chain.clone()));
    contenders.push(offload.aside("qemu-img convert -C"));
    let cases = vec![Case {
        name: format!("flatten to qcow2 by sharing blocks, 4 fragmented layers, {}", said(data)),
        moved: None,
        contenders,
        // Metadata and what the file system needs for so many extents; no data.
        goals: vec![Goal::Faster(Kind::Best, 30.0), Goal::Room(data / 16)],
    }];
    let remark = "Blocks are shared on an XFS in a file, on a loop device.".to_owned();
    Ok(Made::Cases { cases, remark: Some(remark), mount: Some(mount) })
}
