//! The files that `qcowtool hook install` writes.

use std::path::{Path, PathBuf};

use migrate::hook::Config;
use migrate::hook::config::{DEADLINE, FILE, PEER};
use migrate::{Error, Result};

/// The name of the script: after those of an orchestrator.
pub(super) const NAME: &str = "50-qcowtool";

/// By this line a script is known as ours.
pub(super) const MARK: &str =
    "# Installed by 'qcowtool hook install'; 'qcowtool hook remove' removes it.";

/// What is before the program's path.
pub(super) const BEFORE_PROGRAM: &str = "qcowtool='";

/// The script: it starts the program only for calls that the program has something to do with.
pub(super) fn script(program: &Path, config: &Path) -> Result<String> {
    let program = plain(program)?;
    let option = match config == Path::new(FILE) {
        true => String::new(),
        false => format!(" --config '{}'", plain(config)?),
    };
    Ok(format!(
        "#!/bin/sh\n\
         {MARK}\n\
         # GUEST OPERATION SUB-OPERATION EXTRA, the guest's XML on standard input.\n\
         {BEFORE_PROGRAM}{program}'\n\
         case \"$2 $3\" in\n\
         'migrate begin'|'started begin'|'stopped end'|'release end') ;;\n\
         *) exit 0 ;;\n\
         esac\n\
         if [ ! -x \"$qcowtool\" ]; then\n\
         \x20 [ \"$2\" != migrate ] && exit 0\n\
         \x20 echo \"$qcowtool is not there: install it again, or remove $0\" >&2\n\
         \x20 exit 1\n\
         fi\n\
         exec \"$qcowtool\" hook{option} run -- \"$@\"\n"
    ))
}

/// A path as it can be between single quotes.
fn plain(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| path.is_absolute() && !text.contains(['\'', '\n']));
    text.map(str::to_owned).ok_or_else(|| {
        Error::usage(format!(
            "'{}' cannot be written into a script: it is not absolute, or has quotes",
            path.display()
        ))
    })
}

/// A configuration with these roots, and everything else as it is by default.
pub(super) fn configuration(roots: &[PathBuf]) -> Result<String> {
    let roots = Config::root_lines(roots)?;
    Ok(format!(
        "# qcowtool hook: see docs/hook.md. Changes hold from the next migration on.\n\
         \n\
         # Targets are created, and backing files read, below these directories only.\n\
         {roots}\n\
         # A missing target whose size is not known: refuse, or allow (libvirt decides).\n\
         #unknown-size = refuse\n\
         \n\
         # An incremental copy onto an overlay whose backing file is not proven: refuse, or allow.\n\
         #unproven-base = refuse\n\
         \n\
         # Whether the source's libvirt is asked, read-only, and which addresses may be.\n\
         #ask = qemu+tls://{PEER}/system\n\
         #peer = 192.0.2.0/24\n\
         \n\
         # Seconds that one call may take.\n\
         #deadline = {DEADLINE}\n"
    ))
}
