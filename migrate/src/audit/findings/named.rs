//! Guests that other programs cannot migrate, because libvirt names their chains.
//!
//! libvirt leaves a chain that it found by itself out of the XML for another host. Once libvirtd was restarted, it does not know any more
//! that it found it by itself, and names it: where the copy is complete, the backing file is not needed there, and yet looked for.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Code, Context, Finding, Report, Severity, quoted};
use crate::audit::value::{Domain, Image, Presence};

/// Looks at the chains that libvirt names for one domain.
pub(super) fn domain(context: &Context<'_>, domain: &Domain, found: &mut Vec<Finding>) {
    for (target, below) in &domain.named {
        let disk = domain.disks.iter().find(|disk| disk.target == *target);
        let top = disk.and_then(|disk| disk.layers.first());
        let Some(image) = top.and_then(|top| context.image(&top.key)) else { continue };
        let missing = below.iter().find_map(|base| Some((base, lacking(context, domain, base)?)));
        let Some((base, how)) = missing else { continue };
        let mut report = Report { found: &mut *found, image };
        report.add(
            Severity::Error,
            Code::ChainNamed,
            format!(
                "the running domain '{}', disk {target}: its chain will be named in the XML for another host, as after a \
                 restart of libvirtd, and {} {how}: a migration by a program that leaves the chain as it is fails without it",
                domain.name,
                quoted(base)
            ),
            "migrate it with a program that ends the chain, have a hook at the destination end it, or flatten the disk",
        );
    }
}

/// Where a backing file is not, as far as that is known: on the domain's own host, or on another one that was asked, whose pools
/// do not have it.
fn lacking(context: &Context<'_>, domain: &Domain, base: &Path) -> Option<String> {
    let survey = context.survey;
    let named = |image: &&Image| image.names.iter().any(|name| name.path == base);
    let own = domain.host.as_deref();
    let mut here = survey.images.iter().filter(named).filter(|image| image.key.host() == own);
    if here.any(|image| matches!(image.presence, Presence::Missing | Presence::Deleted { .. })) {
        return Some("does not exist any more".into());
    }
    let of_images = survey.images.iter().filter_map(|image| image.key.host());
    let of_domains = survey.domains.iter().filter_map(|domain| domain.host.as_deref());
    let hosts: BTreeSet<&str> = of_images.chain(of_domains).collect();
    let has = |host: &str| {
        let mut images = survey.images.iter().filter(named);
        images.any(|it| it.key.host() == Some(host) && it.presence == Presence::Elsewhere)
    };
    let lack = hosts.into_iter().filter(|host| Some(*host) != own && !has(host));
    let lack: Vec<_> = lack.collect();
    (!lack.is_empty()).then(|| format!("is not in the pools of {}", lack.join(", ")))
}
