//! Where the guest is after a migration, decided by the state of both hosts and never by what the call
//! returned.

use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::driver::Hypervisor;
use crate::facts::DomainState;

/// How long hosts are asked again while one cannot be reached or has not cleaned up yet.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// Where the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestLocation {
    /// Only on the source: the migration failed, or never began.
    Source,
    /// Only on the source, where it stopped before it could move: its QEMU was killed, or it shut itself down.
    SourceStopped,
    /// Only on the destination: it succeeded, even if the call failed.
    Destination,
    /// On the source, and the destination cannot be asked: it may hold a half-made guest.
    SourceAndUnreachable,
    /// It runs nowhere. Its files are all there.
    Nowhere,
    /// On both, or that cannot be told.
    Unknown,
}

/// What one look at both hosts says; `None` if it may change by waiting.
fn judge(
    source: &Result<Option<DomainState>>,
    destination: &Result<Option<DomainState>>,
) -> Result<GuestLocation, GuestLocation> {
    use DomainState::{Paused, Running, ShutOff};
    match (source, destination) {
        (Ok(Some(Running | Paused)), Ok(None)) => Ok(GuestLocation::Source),
        // libvirt defines a guest at the destination before it runs there, and the source forgets it, or still has its
        // definition, only after that: one that the destination does not know never ran there.
        (Ok(Some(ShutOff)), Ok(None)) => Ok(GuestLocation::SourceStopped),
        (Ok(None | Some(ShutOff)), Ok(Some(Running | Paused))) => Ok(GuestLocation::Destination),
        // It arrived, and has stopped since.
        (Ok(None), Ok(Some(ShutOff))) => Ok(GuestLocation::Destination),
        // A host that was just reached may still be at it; one that was not may come back.
        (Ok(Some(Running)), Err(_)) => Err(GuestLocation::SourceAndUnreachable),
        (Ok(None | Some(ShutOff)), Ok(None | Some(ShutOff))) => Err(GuestLocation::Nowhere),
        _ => Err(GuestLocation::Unknown),
    }
}

/// What the guest does at the destination. One that is still arriving is paused, and goes when the source gives up.
fn arrived(destination: &dyn Hypervisor, uuid: &str) -> Result<Option<DomainState>> {
    match destination.state(uuid)? {
        Some(DomainState::Paused) if destination.is_arriving(uuid)? => Ok(Some(DomainState::Other)),
        state => Ok(state),
    }
}

/// Finds out where the guest is, and waits a while for hosts that are still at it.
pub(super) fn guest_location(
    source: &dyn Hypervisor,
    destination: &dyn Hypervisor,
    uuid: &str,
) -> GuestLocation {
    let start = Instant::now();
    loop {
        match judge(&source.state(uuid), &arrived(destination, uuid)) {
            Ok(sure) => return sure,
            Err(unsure) if start.elapsed() >= PATIENCE => return unsure,
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn only_a_look_at_both_hosts_decides() {
        use DomainState::{Other, Paused, Running, ShutOff};
        let down = || Err(Error::environment("no route"));
        let sure = [
            (Some(Running), None, GuestLocation::Source),
            (Some(Paused), None, GuestLocation::Source),
            (None, Some(Running), GuestLocation::Destination),
            (None, Some(Paused), GuestLocation::Destination),
            (Some(ShutOff), Some(Running), GuestLocation::Destination),
            (Some(ShutOff), None, GuestLocation::SourceStopped),
            (None, Some(ShutOff), GuestLocation::Destination),
        ];
        for (source, destination, expected) in sure {
            assert_eq!(judge(&Ok(source), &Ok(destination)), Ok(expected));
        }
        let unsure = [
            (Some(Running), Some(Paused), GuestLocation::Unknown),
            (Some(Running), Some(Running), GuestLocation::Unknown),
            (Some(Paused), Some(Paused), GuestLocation::Unknown),
            (Some(Running), Some(ShutOff), GuestLocation::Unknown),
            (Some(Paused), Some(Running), GuestLocation::Unknown),
            (Some(Other), None, GuestLocation::Unknown),
            (None, None, GuestLocation::Nowhere),
            (Some(ShutOff), Some(ShutOff), GuestLocation::Nowhere),
            // It is still arriving.
            (Some(ShutOff), Some(Other), GuestLocation::Unknown),
            (None, Some(Other), GuestLocation::Unknown),
        ];
        for (source, destination, expected) in unsure {
            assert_eq!(judge(&Ok(source), &Ok(destination)), Err(expected));
        }
        let unreachable = Err(GuestLocation::SourceAndUnreachable);
        assert_eq!(judge(&Ok(Some(Running)), &down()), unreachable);
        assert_eq!(judge(&Ok(Some(Paused)), &down()), Err(GuestLocation::Unknown));
        assert_eq!(judge(&down(), &Ok(Some(Running))), Err(GuestLocation::Unknown));
        assert_eq!(judge(&down(), &down()), Err(GuestLocation::Unknown));
    }
}
