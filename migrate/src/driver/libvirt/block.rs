//! Jobs on one disk of a running guest.

use virt_sys as sys;

use super::raw::{self, Parameters};
use super::{Connection, code, is};
use crate::domain::quoted;
use crate::driver::{BlockCopy, BlockJobKind, BlockProgress};
use crate::{Error, Result};

pub(super) fn pull(
    connection: &Connection,
    uuid: &str,
    target: &str,
    bandwidth: Option<u64>,
) -> Result<()> {
    let domain = connection.lookup(uuid)?;
    connection.say(raw::block_pull(&domain, target, bandwidth.unwrap_or(0)))
}

pub(super) fn copy(
    connection: &Connection,
    uuid: &str,
    target: &str,
    copy: &BlockCopy,
) -> Result<()> {
    let domain = connection.lookup(uuid)?;
    let path = copy.to.to_str().ok_or_else(|| {
        Error::usage(format!("the path '{}' is not UTF-8, as XML must be", copy.to.display()))
    })?;
    let xml = format!(
        "<disk type='file'><driver name='qemu' type={}/><source file={}/></disk>",
        quoted(copy.format.as_str())?,
        quoted(path)?
    );
    let mut parameters = Parameters::new();
    if let Some(bandwidth) = copy.bandwidth {
        connection.say(parameters.number(sys::VIR_DOMAIN_BLOCK_COPY_BANDWIDTH, bandwidth))?;
    }
    connection.say(raw::block_copy(&domain, target, &xml, &parameters, copy.shallow))
}

pub(super) fn progress(
    connection: &Connection,
    uuid: &str,
    target: &str,
) -> Result<Option<BlockProgress>> {
    let job = connection.of_domain(uuid, |domain| match raw::block_job(domain, target) {
        // A guest that is off has none.
        Err(failure) if is(&failure, code::OPERATION_INVALID) => Ok(None),
        outcome => outcome,
    })?;
    Ok(job.flatten().map(|(kind, done, total)| BlockProgress {
        kind: match kind.unsigned_abs() {
            sys::VIR_DOMAIN_BLOCK_JOB_TYPE_PULL => BlockJobKind::Pull,
            sys::VIR_DOMAIN_BLOCK_JOB_TYPE_COPY => BlockJobKind::Copy,
            _ => BlockJobKind::Other,
        },
        done,
        total,
    }))
}

pub(super) fn pivot(connection: &Connection, uuid: &str, target: &str) -> Result<bool> {
    let domain = connection.lookup(uuid)?;
    match raw::end_block_job(&domain, target, true) {
        Err(failure) if is(&failure, code::BLOCK_COPY_ACTIVE) => Ok(false),
        outcome => connection.say(outcome).map(|()| true),
    }
}

pub(super) fn abort(connection: &Connection, uuid: &str, target: &str) -> Result<()> {
    let aborted = connection.of_domain(uuid, |domain| {
        match raw::end_block_job(domain, target, false) {
            // There is no process that could have one.
            Err(failure)
                if is(&failure, code::OPERATION_INVALID)
                    && !matches!(raw::block_job(domain, target), Ok(Some(_))) =>
            {
                Ok(())
            }
            // It ended by itself.
            Err(failure)
                if is(&failure, code::INVALID_ARG)
                    && matches!(raw::block_job(domain, target), Ok(None)) =>
            {
                Ok(())
            }
            outcome => outcome,
        }
    });
    aborted.map(drop)
}
