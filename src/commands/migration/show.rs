//! Plans and refusals in words.

use std::fmt::Write;

use migrate::plan::{Action, BasePlan, CopyMode, DiskPlan, Mode, NewImage, Plan, Refusal, SeedHow};

use crate::output::shown;
use crate::size::human;

/// The whole plan as text.
pub(crate) fn plan(plan: &Plan) -> String {
    let mut text = String::new();
    let how = match (plan.mode, plan.copy) {
        (Mode::Offline, _) => "it is shut off: its disks are copied as files",
        (Mode::Live, CopyMode::None) => "no disk is copied",
        (Mode::Live, CopyMode::Full) => "its disks are copied in full",
        (Mode::Live, CopyMode::Incremental) => {
            "only what its active layers hold is copied, over bases proven equal"
        }
    };
    let _ = writeln!(text, "{} from {} to {}: {how}\n", plan.domain, plan.from, plan.to);
    for disk in &plan.disks {
        let _ = writeln!(text, "{}  {}", disk.target, action(disk));
        let _ = writeln!(text, "     {}: {}", disk.row, disk.why);
    }
    let list = |words: &[String]| if words.is_empty() { "none".into() } else { words.join(", ") };
    let flags: Vec<_> = plan.flags.iter().map(|flag| flag.name()).collect();
    let _ = writeln!(text);
    if plan.mode == Mode::Live {
        let _ = writeln!(text, "libvirt flags:     {}", flags.join(", "));
        let _ = writeln!(text, "disks to copy:     {}", list(&plan.migrate_disks));
    }
    let _ = writeln!(text, "over the network:  {}", human(plan.predicted.transfer_bytes));
    let _ = writeln!(text, "space there:       {}", human(plan.predicted.space_bytes));
    for warning in &plan.warnings {
        let disk = warning.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
        let _ = writeln!(text, "note: {disk}{}", warning.message);
    }
    text
}

/// Why there is no plan, and the ways out.
pub(crate) fn refusals(refusals: &[Refusal]) -> String {
    let mut text = String::new();
    for refusal in refusals {
        let disk = refusal.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
        let _ = writeln!(text, "refused ({}): {disk}{}", refusal.code, refusal.message);
        let _ = writeln!(text, "    {}", refusal.way_out);
    }
    text
}

fn action(disk: &DiskPlan) -> String {
    match &disk.action {
        Action::Skip => "is left as it is".into(),
        Action::Eject => "is emptied".into(),
        Action::CopyMedium { to, .. } => format!("is copied to '{}'", shown(to)),
        Action::Adopt { path, .. } => format!("fills what is at '{}'", shown(path)),
        Action::Create { image, base: None } => format!("{}, standing alone", new(image)),
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
            format!("'{base}', which is there and proven equal")
        }
        BasePlan::Seed { path, how: SeedHow::CopyFile { from }, .. } => {
            format!("'{}', copied from '{}' first", shown(path), shown(from))
        }
        BasePlan::Seed { path, how: SeedHow::Flatten { from, .. }, .. } => {
            format!("'{}', made of '{}' and what is below it first", shown(path), shown(from))
        }
    }
}
