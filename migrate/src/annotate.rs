//! Writes into guests' `<metadata>` what the destination of a migration must know of their disks, and keeps it true.
//!
//! What is known comes from [`probe`](fn@crate::probe::annotation), and who reads it is the [`hook`](crate::hook) on the
//! destination. That refuses what is not known, and believes what is written; so what cannot be found out any more is
//! not left there as it was found earlier.

use crate::driver::{Hypervisor, Metadata};
use crate::hook::annotation::{Annotation, NAMESPACE, PREFIX};
use crate::probe::{Annotated, Probing, annotation};
use crate::{Error, Result};

/// What was done to a guest's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing: it says what is so.
    None,
    /// It was written.
    Written,
    /// Nothing: a job runs on the guest, which is another's turn to change it.
    Busy,
}

/// Finds out what is to be known of a guest's disks, and writes it, whatever is written there.
///
/// # Errors
/// As [`annotation`](fn@annotation) and [`Hypervisor::set_metadata`].
pub fn write(hypervisor: &dyn Hypervisor, guest: &str, probing: &Probing<'_>) -> Result<Annotated> {
    let found = annotation(hypervisor, guest, probing)?;
    set(hypervisor, &found)?;
    Ok(found)
}

/// Writes what is to be known of a guest's disks if something else is written there, or nothing, in what runs or in its
/// definition. `None` in place of what was found: a job runs on the guest, and nothing was looked at.
///
/// # Errors
/// As [`write()`].
pub fn refresh(
    hypervisor: &dyn Hypervisor,
    guest: &str,
    probing: &Probing<'_>,
) -> Result<(Change, Option<Annotated>)> {
    let missing = || Error::usage(format!("there is no domain '{guest}'"));
    let domain = hypervisor.domain(guest)?.ok_or_else(missing)?;
    if domain.job.is_some() {
        return Ok((Change::Busy, None));
    }
    let found = annotation(hypervisor, &domain.uuid, probing)?;
    let says_so = |xml: &String| {
        // One that cannot be read is replaced.
        matches!(Annotation::in_domain(xml), Ok(Some(written)) if written == found.annotation)
    };
    if says_so(&domain.live_xml) && domain.inactive_xml.as_ref().is_none_or(says_so) {
        return Ok((Change::None, Some(found)));
    }
    set(hypervisor, &found)?;
    Ok((Change::Written, Some(found)))
}

/// Removes what was written for a guest, and returns the guest's name.
///
/// # Errors
/// As [`Hypervisor::set_metadata`]; [`Usage`](crate::ErrorKind::Usage) if there is no such guest.
pub fn remove(hypervisor: &dyn Hypervisor, guest: &str) -> Result<String> {
    let missing = || Error::usage(format!("there is no domain '{guest}'"));
    let domain = hypervisor.domain(guest)?.ok_or_else(missing)?;
    // libvirt refuses to remove what is not there.
    let there = [Some(&domain.live_xml), domain.inactive_xml.as_ref()];
    if there.iter().flatten().any(|xml| xml.contains(NAMESPACE)) {
        let (namespace, prefix) = (NAMESPACE, PREFIX);
        hypervisor.set_metadata(&domain.uuid, &Metadata { namespace, prefix, element: None })?;
    }
    Ok(domain.name)
}

fn set(hypervisor: &dyn Hypervisor, found: &Annotated) -> Result<()> {
    let element = found.annotation.to_xml()?;
    let (namespace, prefix) = (NAMESPACE, PREFIX);
    hypervisor.set_metadata(&found.uuid, &Metadata { namespace, prefix, element: Some(&element) })
}
