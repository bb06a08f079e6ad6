//! One migration: asked for, watched, aborted if need be, and waited for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;

use qcow::CancelToken;
use virt::domain::Domain;
use virt_sys as sys;

use super::events::Signal;
use super::raw::{self, Numbers, Outcome, Parameters};
use super::{code, is, told};
use crate::driver::{JobProgress, MigrateRequest, TICK, check_request};
use crate::facts::Version;
use crate::plan::Flag;
use crate::{Error, ErrorKind, Result};

/// From here on, libvirt knows the list of disks in which to look for zeros.
const DETECT_ZEROES: Version = Version::new(10, 9, 0);

/// From here on, it has copies that guest writes wait for.
const SYNCHRONOUS_WRITES: Version = Version::new(8, 0, 0);

/// Asks for the migration and returns when libvirt says that it is over.
pub(super) fn run(
    domain: &Domain,
    request: &MigrateRequest,
    version: Version,
    signal: &Signal,
    watch: &dyn Fn(&JobProgress),
    cancel: &CancelToken,
) -> Result<()> {
    check_request(request)?;
    let flags = flags(request, version)?;
    let parameters = parameters(request, version).map_err(|failure| told(&failure))?;
    if cancel.is_cancelled() {
        return Err(Error::new(
            ErrorKind::Interrupted,
            "stopped as asked, before the migration began",
        ));
    }

    let over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let outcome = raw::migrate(domain, &request.to, &parameters, flags);
            over.store(true, Ordering::SeqCst);
            signal.raise();
            outcome
        });
        let mut downtime = request.tuning.max_downtime;
        let mut abort: Option<ScopedJoinHandle<'_, Outcome<()>>> = None;
        loop {
            let seen = signal.count();
            if over.load(Ordering::SeqCst) {
                break;
            }
            // Fails before the job has begun and when it is over; both are no matter here.
            if let Ok(Some(now)) = progress(domain) {
                watch(&now);
                // libvirt takes this only while it migrates; it puts the old value back itself.
                if let Some(wanted) = downtime
                    && domain.migrate_set_max_downtime(wanted, 0).is_ok()
                {
                    downtime = None;
                }
            }
            if cancel.is_cancelled() {
                // An abort can block as long as the network does. It is repeated: the job may not have
                // begun when it was first asked for.
                let idle = abort.as_ref().is_none_or(ScopedJoinHandle::is_finished);
                if idle && !matches!(abort.take().map(ScopedJoinHandle::join), Some(Ok(Ok(())))) {
                    abort = Some(scope.spawn(|| raw::abort_job(domain)));
                }
            }
            signal.wait(seen, TICK);
        }
        work.join()
    });
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failure)) if is(&failure, code::OPERATION_ABORTED) && cancel.is_cancelled() => {
            let message =
                format!("the migration was aborted as asked; libvirt: {}", failure.message());
            Err(Error::new(ErrorKind::Interrupted, message))
        }
        Ok(Err(failure)) => Err(told(&failure)),
        Err(_) => Err(Error::environment("the thread that waited for libvirt ended early")),
    }
}

fn flags(request: &MigrateRequest, version: Version) -> Result<u32> {
    if !request.flags.contains(&Flag::PeerToPeer) {
        return Err(Error::refused(
            "migrations other than from daemon to daemon are not supported",
        ));
    }
    if request.flags.contains(&Flag::NonSharedSynchronousWrites) && version < SYNCHRONOUS_WRITES {
        return Err(Error::refused(format!(
            "libvirt {version} cannot make guest writes wait for the copy; {SYNCHRONOUS_WRITES} can"
        )));
    }
    Ok(request.flags.iter().fold(0, |flags, flag| flags | number(*flag)))
}

fn number(flag: Flag) -> u32 {
    match flag {
        Flag::Live => sys::VIR_MIGRATE_LIVE,
        Flag::PeerToPeer => sys::VIR_MIGRATE_PEER2PEER,
        Flag::PersistDest => sys::VIR_MIGRATE_PERSIST_DEST,
        Flag::UndefineSource => sys::VIR_MIGRATE_UNDEFINE_SOURCE,
        Flag::Paused => sys::VIR_MIGRATE_PAUSED,
        Flag::NonSharedDisk => sys::VIR_MIGRATE_NON_SHARED_DISK,
        Flag::NonSharedInc => sys::VIR_MIGRATE_NON_SHARED_INC,
        Flag::ChangeProtection => sys::VIR_MIGRATE_CHANGE_PROTECTION,
        Flag::AbortOnError => sys::VIR_MIGRATE_ABORT_ON_ERROR,
        Flag::AutoConverge => sys::VIR_MIGRATE_AUTO_CONVERGE,
        Flag::NonSharedSynchronousWrites => sys::VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES,
        Flag::Tls => sys::VIR_MIGRATE_TLS,
        Flag::Compressed => sys::VIR_MIGRATE_COMPRESSED,
        Flag::Parallel => sys::VIR_MIGRATE_PARALLEL,
    }
}

fn parameters(request: &MigrateRequest, version: Version) -> Outcome<Parameters> {
    let mut parameters = Parameters::new();
    parameters.text(sys::VIR_MIGRATE_PARAM_DEST_XML, &request.destination_xml)?;
    if let Some(xml) = &request.persistent_xml {
        parameters.text(sys::VIR_MIGRATE_PARAM_PERSIST_XML, xml)?;
    }
    for disk in &request.migrate_disks {
        parameters.text(sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS, disk)?;
    }
    if version >= DETECT_ZEROES {
        for disk in &request.detect_zeroes {
            parameters.text(sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS_DETECT_ZEROES, disk)?;
        }
    }
    if let Some(mib) = request.bandwidth_mib {
        parameters.number(sys::VIR_MIGRATE_PARAM_BANDWIDTH, mib)?;
    }
    if let Some(uri) = &request.migrate_uri {
        parameters.text(sys::VIR_MIGRATE_PARAM_URI, uri)?;
    }
    if let Some(port) = request.tuning.disks_port {
        parameters.int(sys::VIR_MIGRATE_PARAM_DISKS_PORT, port.into())?;
    }
    if let Some(connections) = request.tuning.connections {
        parameters.int(sys::VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS, connections.into())?;
    }
    if let Some(compression) = request.tuning.compression {
        parameters.text(sys::VIR_MIGRATE_PARAM_COMPRESSION, compression.name())?;
    }
    Ok(parameters)
}

/// The domain's job and its figures, unless there is none or it is over.
fn job(domain: &Domain) -> Outcome<Option<Numbers>> {
    let (kind, numbers) = raw::job_stats(domain)?;
    let runs = matches!(kind, sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED);
    Ok(runs.then_some(numbers))
}

/// How far the domain's job is.
pub(super) fn progress(domain: &Domain) -> Outcome<Option<JobProgress>> {
    let job = match job(domain) {
        // A guest without a process has no job.
        Err(failure) if is(&failure, code::OPERATION_INVALID) => None,
        job => job?,
    };
    Ok(job.map(|numbers| JobProgress {
        disk_total: numbers.get(sys::VIR_DOMAIN_JOB_DISK_TOTAL),
        disk_processed: numbers.get(sys::VIR_DOMAIN_JOB_DISK_PROCESSED),
        disk_rate: numbers.get(sys::VIR_DOMAIN_JOB_DISK_BPS),
        memory_total: numbers.get(sys::VIR_DOMAIN_JOB_MEMORY_TOTAL),
        memory_processed: numbers.get(sys::VIR_DOMAIN_JOB_MEMORY_PROCESSED),
        memory_rate: numbers.get(sys::VIR_DOMAIN_JOB_MEMORY_BPS),
        elapsed_ms: numbers.get(sys::VIR_DOMAIN_JOB_TIME_ELAPSED),
    }))
}

/// Whether the domain has a job; yes if that cannot be found out.
pub(super) fn has_job(domain: &Domain) -> bool {
    !matches!(progress(domain), Ok(None))
}

/// The domain's job in words.
pub(super) fn job_in_words(domain: &Domain) -> Outcome<Option<String>> {
    let numbers = match job(domain) {
        Err(failure) if is(&failure, code::OPERATION_INVALID) || is(&failure, code::NO_SUPPORT) => {
            None
        }
        job => job?,
    };
    let Some(numbers) = numbers else { return Ok(None) };
    let operation = match u32::try_from(numbers.get(sys::VIR_DOMAIN_JOB_OPERATION)).unwrap_or(0) {
        sys::VIR_DOMAIN_JOB_OPERATION_START => "start",
        sys::VIR_DOMAIN_JOB_OPERATION_SAVE => "save",
        sys::VIR_DOMAIN_JOB_OPERATION_RESTORE => "restore",
        sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN => "arrival from another host",
        sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT => "migration to another host",
        sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT => "snapshot",
        sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT => "return to a snapshot",
        sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE => "removal of a snapshot",
        sys::VIR_DOMAIN_JOB_OPERATION_DUMP => "dump",
        sys::VIR_DOMAIN_JOB_OPERATION_BACKUP => "backup",
        _ => "a job",
    };
    Ok(Some(operation.to_owned()))
}
