//! How commands reach libvirt: through what this program was given, or through the program beside it
//! that was given it.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

pub use migrate::hosts::{Access, Connected};
use migrate::{Error, Result};

/// Name of the program that is linked to libvirt.
const WITH_LIBVIRT: &str = "qcowtool-libvirt";

/// Connects to the libvirt at a URI.
pub type Connect = fn(&str, Access) -> Result<Connected>;

static CONNECT: OnceLock<Connect> = OnceLock::new();

/// Says, once, how commands are to connect.
pub(crate) fn install(connect: Option<Connect>) {
    if let Some(connect) = connect {
        let _ = CONNECT.set(connect);
    }
}

/// Connects to the libvirt at `uri`. Where this program cannot, the one that can takes its place, and
/// the call does not return.
///
/// # Errors
/// What connecting raises; [`Environment`](migrate::ErrorKind::Environment) if there is no such program.
pub(crate) fn connect(uri: &str) -> Result<Connected> {
    connect_for(uri, Access::Full)
}

/// As [`connect`], to look only.
///
/// # Errors
/// As [`connect`].
pub(crate) fn connect_read_only(uri: &str) -> Result<Connected> {
    connect_for(uri, Access::ReadOnly)
}

fn connect_for(uri: &str, access: Access) -> Result<Connected> {
    if let Some(connect) = CONNECT.get() {
        return connect(uri, access);
    }
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(WITH_LIBVIRT)));
    let program = beside.filter(|path| path.exists()).unwrap_or_else(|| WITH_LIBVIRT.into());
    let error = Command::new(&program).args(env::args_os().skip(1)).exec();
    Err(Error::environment(format!(
        "this needs libvirt, and {} could not be started: {error}",
        program.display()
    ))
    .hint("install qcowtool-libvirt beside qcowtool, or build with the feature 'libvirt'"))
}
