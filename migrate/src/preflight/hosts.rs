//! What is so between the two hosts, whatever the guests.

use super::report::Check;
use super::{NetworkPath, Seeing, Seen, Setups, tls};
use crate::Remedy;
use crate::facts::{CpuFit, HostFacts, Version};
use crate::plan::{DETECTS_ZEROES, LIBVIRT_FLOOR, Policy, QEMU_FLOOR, Style};

/// In this release line a migration with XML of ours could fail over the guest's processor.
const CUSTOM_XML_BROKEN: (Version, Version) = (Version::new(10, 2, 0), Version::new(10, 3, 0));

/// Clocks that differ by more are not right.
const CLOCK_NS: i64 = 2_000_000_000;

pub(super) fn judge(seeing: &Seeing, policy: &Policy) -> Vec<Check> {
    let mut checks = vec![two_hosts(seeing)];
    checks.push(version("libvirt", seeing, |host| host.libvirt));
    checks.push(version("qemu", seeing, |host| host.qemu));
    checks.extend(features(seeing, policy));
    checks.push(cpu(&seeing.cpu));
    checks.push(names(seeing));
    checks.push(way("ports-there", &seeing.paths.to_destination, true));
    checks.push(way("ports-back", &seeing.paths.to_source, false));
    checks.extend(memory_streams(seeing, policy));
    if policy.tls {
        checks.push(tls::judge(seeing));
    }
    checks.push(clock(&seeing.setup));
    checks
}

fn two_hosts(seeing: &Seeing) -> Check {
    const NAME: &str = "hosts";
    let (source, destination) = (&seeing.source, &seeing.destination);
    if source.uuid.is_some() && source.uuid == destination.uuid {
        return Check::red(NAME, "both ends have the same host UUID")
            .way_out("give another destination; if they are two hosts, set host_uuid in libvirtd.conf on one");
    }
    Check::green(NAME, format!("{} and {} answer", source.hostname, destination.hostname))
}

/// The same version there, or a newer one. The third number does not change what guests see.
fn version(name: &'static str, seeing: &Seeing, of: fn(&HostFacts) -> Option<Version>) -> Check {
    match (of(&seeing.source), of(&seeing.destination)) {
        (Some(here), Some(there)) if (there.major, there.minor) < (here.major, here.minor) => {
            Check::red(
                name,
                format!("{here} at the source, and {there} at the destination, which is older"),
            )
            .way_out(
                "upgrade the destination first: guests go to the same version or to a newer one",
            )
        }
        (Some(here), Some(there)) => {
            Check::green(name, format!("{here} at the source, {there} at the destination"))
        }
        _ => Check::unseen(name, "not known of both ends"),
    }
}

/// What plans use where both hosts have it.
fn features(seeing: &Seeing, policy: &Policy) -> Vec<Check> {
    let hosts = [&seeing.source, &seeing.destination];
    if hosts.iter().any(|host| host.libvirt.is_none() || host.qemu.is_none()) {
        return Vec::new();
    }
    let all = |of: fn(&HostFacts) -> Option<Version>, from: Version| {
        hosts.iter().all(|host| of(host).is_some_and(|version| version >= from))
    };
    let modern = all(|host| host.libvirt, LIBVIRT_FLOOR) && all(|host| host.qemu, QEMU_FLOOR);
    let from = format!("libvirt {LIBVIRT_FLOOR} and QEMU {QEMU_FLOOR} on both hosts");
    let mut checks = Vec::new();
    if policy.style != Style::Full {
        checks.push(match (modern, policy.style) {
            (true, _) => Check::green("thin-copies", "overlays can stay overlays"),
            (false, Style::Thin) => {
                Check::red("thin-copies", format!("overlays at the destination need {from}"))
                    .way_out(Remedy::CopyInFull)
            }
            (false, _) => Check::note(
                "thin-copies",
                format!("all disks are copied in full: it takes {from} otherwise"),
            ),
        });
    }
    if policy.sync_writes {
        checks.push(match modern {
            true => Check::green("sync-writes", "the guests' writes can wait for the copy"),
            false => Check::red("sync-writes", format!("synchronous writes need {from}"))
                .way_out(Remedy::NoSyncWrites),
        });
    }
    checks.push(match modern && all(|host| host.libvirt, DETECTS_ZEROES) {
        true => Check::green("zero-detection", "zeros of raw disks need not travel"),
        false => Check::note(
            "zero-detection",
            format!(
                "raw disks travel with their zeros: it takes libvirt {DETECTS_ZEROES} otherwise"
            ),
        ),
    });
    let (broken, mended) = CUSTOM_XML_BROKEN;
    let in_between = |host: &&HostFacts| host.libvirt.is_some_and(|it| it >= broken && it < mended);
    if hosts.iter().any(in_between) {
        checks.push(
            Check::note(
                "destination-xml",
                format!("libvirt {broken} may refuse a guest over its processor when its disks get other paths"),
            )
            .way_out(format!("upgrade to {mended}")),
        );
    }
    checks
}

/// Whether both libvirts can send memory as it is asked for.
fn memory_streams(seeing: &Seeing, policy: &Policy) -> Option<Check> {
    const NAME: &str = "memory-streams";
    if let Some(why) = policy.tuning.contradiction() {
        return Some(Check::red(NAME, why).way_out("ask for one of them, or for both as they fit"));
    }
    let (from, what) = policy.tuning.needs()?;
    let versions = [seeing.source.libvirt, seeing.destination.libvirt];
    Some(match versions {
        [Some(here), Some(there)] if here >= from && there >= from => {
            Check::green(NAME, format!("{what}: both libvirts have it"))
        }
        [Some(_), Some(_)] => {
            Check::red(NAME, format!("{what} takes libvirt {from} on both hosts"))
                .way_out("upgrade libvirt, or do without it")
        }
        _ => Check::unseen(NAME, "not known of both ends"),
    })
}

/// The two hosts' processors. What a guest needs of them is said with the guest.
fn cpu(fit: &Seen<CpuFit>) -> Check {
    const NAME: &str = "cpu";
    match fit {
        Ok(CpuFit::Identical) => Check::green(NAME, "the same CPU at the destination"),
        Ok(CpuFit::Superset) => {
            Check::green(NAME, "the destination's CPU has all features of the source's, and more")
        }
        Ok(CpuFit::Incompatible { why }) => Check::note(
            NAME,
            format!("guests with a host-passthrough or maximum CPU cannot move: {why}"),
        ),
        Ok(CpuFit::Unknown { why }) => {
            Check::unseen(NAME, format!("libvirt could not compare: {why}"))
        }
        Err(why) => Check::not_seen(NAME, why),
    }
}

/// Names and UUIDs that are taken at the destination.
fn names(seeing: &Seeing) -> Check {
    const NAME: &str = "names";
    let found = seeing.guests.iter().filter_map(|guest| guest.found.as_ref().ok());
    let taken: Vec<_> = found
        .filter(|found| found.facts.clash.is_some())
        .map(|found| format!("'{}'", found.facts.domain.name))
        .collect();
    if taken.is_empty() {
        return Check::green(NAME, "no name and no UUID is taken at the destination");
    }
    Check::red(NAME, format!("taken at the destination by name or UUID: {}", taken.join(", ")))
        .way_out("make sure that those are not needed there, then undefine them")
}

/// Ports that guests arrive at. Those of the source are only needed for a way back.
fn way(name: &'static str, way: &Seen<NetworkPath>, needed: bool) -> Check {
    let way = match way {
        Ok(way) => way,
        Err(why) => return Check::not_seen(name, why),
    };
    let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(" and ");
    if way.ports.is_empty() {
        return Check::unseen(name, format!("no port of {} was free to be tried", way.host));
    }
    let Some((port, why)) = way.closed.first() else {
        return Check::green(name, format!("{} was reached at {}", way.host, list(&way.ports)));
    };
    let message = format!("{} cannot be reached at {port}: {why}", way.host);
    match needed {
        true => Check::red(name, message).way_out(
            "open the ports that guests arrive at (migration_port_min to migration_port_max in qemu.conf), and \
             look where the name leads",
        ),
        false => Check::note(name, format!("{message}: guests could not come back")),
    }
}

/// The difference of the clocks, less what the looking took.
fn clock(setup: &Seen<Setups>) -> Check {
    const NAME: &str = "clock";
    let setups = match setup {
        Ok(setups) => setups,
        Err(why) => return Check::not_seen(NAME, why),
    };
    let off = setups.ahead_ns.unsigned_abs();
    let surely = off.saturating_sub(setups.error_ns.unsigned_abs());
    let ms = |ns: u64| ns / 1_000_000;
    let tell = match setups.ahead_ns {
        _ if surely == 0 => {
            format!("no difference of more than {} ms", ms(setups.error_ns.unsigned_abs()).max(1))
        }
        ahead if ahead > 0 => format!("the destination's is {} ms ahead", ms(off)),
        _ => format!("the destination's is {} ms behind", ms(off)),
    };
    if surely > CLOCK_NS.unsigned_abs() {
        return Check::red(NAME, tell).way_out(
            "set the clocks, and keep them so with NTP: guests and certificates depend on it",
        );
    }
    Check::green(NAME, tell)
}
