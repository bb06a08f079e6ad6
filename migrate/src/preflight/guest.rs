//! What is so of one guest, whatever the others.

use super::report::{Check, DiskReport, GuestReport, Is};
use super::{Found, Looked, Needs, Seeing, why};
use crate::facts::{Abilities, CpuFit, DomainState};

pub(super) fn judge(looked: &Looked, seeing: &Seeing) -> GuestReport {
    let mut guest = GuestReport {
        order: None,
        name: looked.name.clone(),
        uuid: None,
        state: None,
        is: Is::Green,
        mode: None,
        copy: None,
        transfer_bytes: None,
        space_bytes: None,
        disks: Vec::new(),
        checks: Vec::new(),
        refusals: Vec::new(),
        warnings: Vec::new(),
    };
    match &looked.found {
        Ok(found) => told(&mut guest, found, seeing),
        Err(error) => {
            guest.add(Check { is: Is::Failed, ..Check::not_seen("look", &why(error)) });
        }
    }
    guest
}

fn told(guest: &mut GuestReport, found: &Found, seeing: &Seeing) {
    let domain = &found.facts.domain;
    guest.name.clone_from(&domain.name);
    guest.uuid = Some(domain.uuid.clone());
    guest.state = Some(domain.state);
    match &found.plan {
        Ok(plan) => {
            guest.mode = Some(plan.mode);
            guest.copy = Some(plan.copy);
            guest.transfer_bytes = Some(plan.predicted.transfer_bytes);
            guest.space_bytes = Some(plan.predicted.space_bytes);
            guest.warnings.clone_from(&plan.warnings);
            guest.disks = (plan.disks.iter())
                .map(|disk| DiskReport {
                    target: disk.target.clone(),
                    row: disk.row,
                    why: disk.why.clone(),
                })
                .collect();
        }
        Err(refusals) => {
            guest.is = Is::Red;
            guest.refusals.clone_from(refusals);
        }
    }
    if let Some(abilities) = &seeing.abilities {
        guest.add(machine(&found.needs, abilities));
    }
    if let Some(check) = cpu(&found.needs, &found.cpu, domain.state) {
        guest.add(check);
    }
}

/// Whether the destination knows the guest's machine type.
fn machine(needs: &Needs, abilities: &Abilities) -> Check {
    const NAME: &str = "machine";
    let Needs { arch, virtualization, machine, .. } = needs;
    let fits = |own: &str, theirs: &str| own.is_empty() || own == theirs;
    let kinds: Vec<_> = (abilities.guests.iter())
        .filter(|kind| fits(arch, &kind.arch) && fits(virtualization, &kind.virtualization))
        .collect();
    if kinds.is_empty() {
        return Check::red(
            NAME,
            format!("the destination runs no guests of {virtualization} on {arch}"),
        )
        .way_out(match &**virtualization {
            "kvm" => "load the KVM modules at the destination, and let the hypervisor's user open /dev/kvm",
            _ => "install that hypervisor at the destination, or give another destination",
        });
    }
    if machine.is_empty() || kinds.iter().any(|kind| kind.machines.contains(machine)) {
        return Check::green(NAME, format!("{machine}, which the destination knows"));
    }
    Check::red(NAME, format!("the destination does not know the machine type '{machine}'")).way_out(
        "upgrade QEMU at the destination, or give the guest a machine type that both hosts know",
    )
}

/// Whether it can have its processor there; `None` if libvirt was not asked, because the hypervisor chooses at the
/// next start.
fn cpu(needs: &Needs, fit: &super::Seen<CpuFit>, state: DomainState) -> Option<Check> {
    const NAME: &str = "cpu";
    let compared = needs.compares(state)?;
    Some(match fit {
        Ok(CpuFit::Identical) => Check::green(NAME, "the destination has the same processor"),
        Ok(CpuFit::Superset) if compared == super::needs::Compares::Hosts => Check::note(
            NAME,
            "the guest has its host's processor, and the destination's has more: it shows after the next start",
        ),
        Ok(CpuFit::Superset) => Check::green(NAME, "the destination can give it its processor"),
        Ok(CpuFit::Incompatible { why }) => Check::red(
            NAME,
            format!("the destination cannot give it its processor: {why}"),
        )
        .way_out("give the guest a CPU model that both hosts have (virsh hypervisor-cpu-baseline)"),
        Ok(CpuFit::Unknown { why }) => {
            Check::unseen(NAME, format!("libvirt could not compare: {why}"))
        }
        Err(why) => Check::not_seen(NAME, why),
    })
}
