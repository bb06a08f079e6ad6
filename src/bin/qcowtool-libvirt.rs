//! `qcowtool` with libvirt. `qcowtool` itself starts it for the commands that need it.

use std::process::ExitCode;
use std::sync::Arc;

use migrate::Result;
use migrate::driver::libvirt::Connection;
use migrate::store::libvirt::LibvirtStore;
use qcowtool::Connected;

fn main() -> ExitCode {
    qcowtool::run(Some(connect))
}

fn connect(uri: &str) -> Result<Connected> {
    let connection = Arc::new(Connection::open(uri)?);
    let store = Arc::new(LibvirtStore::new(Arc::clone(&connection)));
    Ok(Connected { hypervisor: connection, store })
}
