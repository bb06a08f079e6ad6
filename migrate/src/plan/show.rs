//! Plans and refusals as text.

use std::fmt;
use std::path::Path;

use super::value::{
    Action, BaseCopyMethod, BasePlan, CopyMode, DiskPlan, Mode, NewImage, Plan, Refusal,
};

/// The whole plan, in lines.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match (self.mode, self.copy) {
            (Mode::Offline, _) => "it is shut off: its disks are copied as files",
            (Mode::Live, CopyMode::None) => "no disk is copied",
            (Mode::Live, CopyMode::Full) => "its disks are copied in full",
            (Mode::Live, CopyMode::Incremental) => {
                "only the data of its active layers is copied, over backing files proven equal"
            }
        };
        writeln!(f, "{} from {} to {}: {how}\n", self.domain, self.from, self.to)?;
        for directory in &self.directories {
            let (path, rights) = (shown(&directory.path), &directory.rights);
            writeln!(
                f,
                "'{path}' is made, with mode {:04o}, owner {} and group {}",
                rights.mode, rights.owner, rights.group
            )?;
        }
        for disk in &self.disks {
            writeln!(f, "{}  {}", disk.target, action(disk))?;
            writeln!(f, "     {}: {}", disk.row, disk.why)?;
        }
        for file in &self.files {
            let done = match file.made() {
                Some(_) => "is copied",
                None => "is left as it is",
            };
            writeln!(f, "'{}' ({}) {done}", shown(&file.path), file.role.describe())?;
            writeln!(f, "     {}: {}", file.row, file.why)?;
        }
        let list =
            |words: &[String]| if words.is_empty() { "none".into() } else { words.join(", ") };
        let flags: Vec<_> = self.flags.iter().map(|flag| flag.name()).collect();
        writeln!(f)?;
        if self.mode == Mode::Live {
            writeln!(f, "libvirt flags:     {}", flags.join(", "))?;
            writeln!(f, "disks to copy:     {}", list(&self.migrate_disks))?;
        }
        writeln!(f, "over the network:  {}", human(self.predicted.transfer_bytes))?;
        writeln!(f, "destination space: {}", human(self.predicted.space_bytes))?;
        for warning in &self.warnings {
            let disk = warning.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
            writeln!(f, "note: {disk}{}", warning.message)?;
        }
        Ok(())
    }
}

/// Why there is no plan, and the way out, in two lines.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
        writeln!(f, "refused ({}): {disk}{}", self.code, self.message)?;
        writeln!(f, "    {}", self.way_out)
    }
}

/// A path as it can be shown on a terminal.
fn shown(path: &Path) -> String {
    qcow::Escaped(&path.to_string_lossy()).to_string()
}

fn action(disk: &DiskPlan) -> String {
    match &disk.action {
        Action::Skip => "is left as it is".into(),
        Action::Eject => "is emptied".into(),
        Action::CopyMedium { to, .. } => format!("is copied to '{}'", shown(to)),
        Action::Adopt { path, .. } => format!("fills what is at '{}'", shown(path)),
        Action::Create { image, base: None } => format!("{}, without a backing file", new(image)),
        Action::Create { image, base: Some(base) } => {
            format!("{}, over {}", new(image), over(base))
        }
    }
}

fn new(image: &NewImage) -> String {
    let NewImage { path, format, virtual_size, .. } = image;
    format!("becomes '{}' ({format}, {})", shown(path), human(*virtual_size))
}

fn over(base: &BasePlan) -> String {
    match base {
        BasePlan::Existing { chain, .. } => {
            let base = chain.first().map(|layer| shown(&layer.path)).unwrap_or_default();
            format!("'{base}', which exists there and is proven equal")
        }
        BasePlan::BaseCopy { path, how: BaseCopyMethod::CopyFile { from }, .. } => {
            format!("'{}', copied from '{}' first", shown(path), shown(from))
        }
        BasePlan::BaseCopy { path, how: BaseCopyMethod::Flatten { from, .. }, .. } => {
            format!("'{}', made of '{}' and what is below it first", shown(path), shown(from))
        }
    }
}

/// Bytes with three significant digits in the unit that keeps them below 1000: `1.5 GiB`. What
/// would round up to 1000 is shown as 1000, where QEMU has `1e+03`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut name = "B";
    for unit in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        name = unit;
    }
    let decimals = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    let digits = format!("{value:.decimals$}");
    let digits = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => &digits,
    };
    format!("{digits} {name}")
}
