//! The plan as text.

use std::fmt;

use super::value::{EvacuationPlan, Left, Share, Taken};
use crate::plan::{CopyMode, Mode, Refusal, human};

impl fmt::Display for EvacuationPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |text: &str| qcow::Escaped(text).to_string();
        writeln!(f, "from {}", escaped(&self.from))?;
        for share in &self.destinations {
            destination(f, share)?;
        }
        let width = self.guests.iter().map(|guest| guest.name.chars().count()).max().unwrap_or(0);
        for (number, guest) in (1_usize..).zip(&self.guests) {
            let how = match (guest.mode, guest.copy) {
                (Mode::Offline, _) => "as files",
                (Mode::Live, CopyMode::None) => "no copy",
                (Mode::Live, CopyMode::Full) => "full",
                (Mode::Live, CopyMode::Incremental) => "incremental",
            };
            write!(
                f,
                "{number:>4}  {:width$}  {how:11}  {:>8}  to {}",
                escaped(&guest.name),
                human(guest.transfer_bytes),
                escaped(&guest.to)
            )?;
            for base in &guest.brings {
                write!(f, "  with '{}'", escaped(&base.display().to_string()))?;
            }
            writeln!(f)?;
        }
        for left in &self.refused {
            refused(f, left, &self.destinations)?;
        }
        let total = &self.total;
        writeln!(
            f,
            "{} of {} guests go: {} over the network without their memory, {} at the destinations",
            total.placed,
            total.guests,
            human(total.transfer_bytes),
            human(total.space_bytes)
        )
    }
}

fn destination(f: &mut fmt::Formatter<'_>, share: &Share) -> fmt::Result {
    let of = |taken: Taken, words: &dyn Fn(u64) -> String| match taken.of {
        Some(of) => format!("{} of {}", words(taken.taken), words(of)),
        None => words(taken.taken),
    };
    write!(
        f,
        "to   {}: {} guests, {} memory, {} virtual processors",
        qcow::Escaped(&share.to),
        share.guests,
        of(share.memory, &human),
        of(share.vcpus, &|number| number.to_string()),
    )?;
    for taken in share.space.values() {
        write!(f, ", {} storage", of(*taken, &human))?;
    }
    writeln!(f)?;
    for obstacle in &share.obstacles {
        let line = format!("refused ({}): {}", obstacle.code, obstacle.message);
        writeln!(f, "       {}", qcow::Escaped(&line))?;
        writeln!(f, "         -> {}", qcow::Escaped(&obstacle.way_out.to_string()))?;
    }
    Ok(())
}

fn refused(f: &mut fmt::Formatter<'_>, left: &Left, shares: &[Share]) -> fmt::Result {
    writeln!(f, "   -  {} stays", qcow::Escaped(&left.name))?;
    for at in &left.reasons {
        // What keeps all guests away from a destination is shown with it.
        let of_all = shares.iter().find(|share| share.to == at.to).map(|share| &share.obstacles);
        let own = |refusal: &&Refusal| of_all.is_none_or(|of_all| !of_all.contains(refusal));
        for refusal in at.refusals.iter().filter(own) {
            let disk = refusal.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
            let line = format!("{}: refused ({}): {disk}{}", at.to, refusal.code, refusal.message);
            writeln!(f, "       {}", qcow::Escaped(&line))?;
            writeln!(f, "         -> {}", qcow::Escaped(&refusal.way_out.to_string()))?;
        }
    }
    Ok(())
}
