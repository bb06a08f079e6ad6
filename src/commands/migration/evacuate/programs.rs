//! Programs of the operator, run before and after each guest.

use std::path::Path;
use std::process::{Command, Stdio};

use migrate::evacuate::{Assignment, Outcome};
use migrate::{Error, Result};

use crate::output::shown;

/// The program before each guest.
pub(super) struct Before<'a>(pub(super) &'a Path);

/// The program after each guest.
pub(super) struct After<'a>(pub(super) &'a Path);

/// Both, and where the guests are.
pub(super) struct Programs<'a> {
    pub(super) before: Option<Before<'a>>,
    pub(super) after: Option<After<'a>>,
    pub(super) from: &'a str,
}

/// Ctrl-C is for us, and not for them.
const RUN: &str = r#"trap "" INT; exec "$@""#;

impl Programs<'_> {
    fn command(&self, program: &Path, guest: [&str; 3]) -> Command {
        let mut command = Command::new("/bin/sh");
        let [name, uuid, to] = guest;
        command
            .args(["-c", RUN, "sh"])
            .arg(program)
            .env("QCOWTOOL_GUEST", name)
            .env("QCOWTOOL_UUID", uuid)
            .env("QCOWTOOL_FROM", self.from)
            .env("QCOWTOOL_TO", to)
            .stdin(Stdio::null())
            // Standard output is for the report.
            .stdout(std::io::stderr());
        command
    }
}

/// Runs it to its end.
fn run(mut command: Command, program: &Path) -> Result<()> {
    let failed = |how: String| Err(Error::refused(format!("'{}' {how}", shown(program))));
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => failed(match status.code() {
            Some(code) => format!("ended with exit code {code}"),
            None => format!("was ended by a signal ({status})"),
        }),
        Err(error) => failed(format!("could not be run: {error}")),
    }
}

impl migrate::evacuate::Programs for Programs<'_> {
    fn before(&self, guest: &Assignment) -> Result<()> {
        let Some(Before(program)) = self.before else { return Ok(()) };
        run(self.command(program, [&guest.name, &guest.uuid, &guest.to]), program)
    }

    fn after(&self, outcome: &Outcome) -> Result<()> {
        let Some(After(program)) = self.after else { return Ok(()) };
        let mut command = self.command(program, [&outcome.name, &outcome.uuid, &outcome.to]);
        command.env("QCOWTOOL_RESULT", outcome.ending.as_str());
        command.env("QCOWTOOL_ERROR", outcome.error.as_deref().unwrap_or_default());
        command.env("QCOWTOOL_TRANSACTION", outcome.transaction.as_deref().unwrap_or_default());
        run(command, program)
    }
}
