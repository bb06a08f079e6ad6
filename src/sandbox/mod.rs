//! What a command that reads images gives up before it follows what they say.
//!
//! A [`Plan`] says what the command still needs: pure, from its arguments. [`Sandbox::enter`] gives up
//! the rest before the first byte of an image is read: system calls by a filter (`calls`), files by
//! Landlock (`files`). [`Sandbox::all_is_open`] gives up more once all images are open, which is when
//! names in images have done their work. What is given up never comes back, so the process is to end
//! after the command. See `docs/security.md` for what is allowed to whom.

mod calls;
mod files;
mod plan;

use qcow::{Error, Result};
use rustix::process::{Resource, Rlimit, setrlimit};

pub use plan::Plan;

/// How much the sandbox is insisted on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// As much as the kernel offers
    #[default]
    Auto,
    /// All of it; fail if the kernel cannot
    On,
    /// No sandbox
    Off,
}

/// A process that has given up what its plan does not need.
#[derive(Debug)]
pub struct Sandbox {
    mode: Mode,
    plan: Plan,
}

impl Sandbox {
    /// Gives up what `plan` does not need to open images and make outputs. To be called while the process
    /// has one thread: the kernel takes files from the calling thread and from those that it starts.
    ///
    /// # Errors
    /// [`Denied`](qcow::ErrorKind::Denied) if `mode` insists and the kernel cannot; the command is not to be
    /// carried out then.
    pub fn enter(mode: Mode, plan: Plan) -> Result<Self> {
        if mode != Mode::Off {
            no_core_dumps();
            insist(mode, files::restrict(&plan.before()), "file access cannot be restricted")?;
            insist(mode, calls::restrict(plan.serves()), "system calls cannot be filtered")?;
        }
        Ok(Self { mode, plan })
    }

    /// Gives up opening files: all that the command reads is open. To be called before it starts threads.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn all_is_open(&self) -> Result<()> {
        if self.mode == Mode::Off {
            return Ok(());
        }
        insist(self.mode, files::restrict(&self.plan.after()), "file access cannot be restricted")
    }
}

/// Whether to go on although something could not be enforced.
fn insist(mode: Mode, enforced: Result<(), String>, what: &str) -> Result<()> {
    match (mode, enforced) {
        (Mode::On, Err(why)) => Err(Error::denied(format!(
            "the requested sandbox is not available: {what}: {why}"
        ))
        .hint("it needs Linux 5.13 with seccomp and Landlock; --sandbox auto uses what the kernel offers")),
        _ => Ok(()),
    }
}

/// What an image holds does not land in a core dump. A limit of one byte also keeps the kernel from
/// handing the dump to a program, to which a limit of none is no reason.
fn no_core_dumps() {
    for bytes in [1, 0] {
        if setrlimit(Resource::Core, Rlimit { current: Some(bytes), maximum: Some(bytes) }).is_ok()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_insists_is_refused_and_the_error_says_what_is_missing_and_what_to_do() {
        let missing = || Err("Function not implemented".to_owned());
        assert!(insist(Mode::Auto, missing(), "file access cannot be restricted").is_ok());
        assert!(insist(Mode::On, Ok(()), "file access cannot be restricted").is_ok());
        let error = insist(Mode::On, missing(), "file access cannot be restricted").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("file access cannot be restricted: Function not implemented"),
            "{text}"
        );
        assert!(text.contains("--sandbox auto"), "{text}");
    }
}
