//! Counts system calls in the untimed run of a command, with whatever this machine has for it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::Result;

/// What counts system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    /// The kernel's own counter, which costs next to nothing.
    Perf,
    /// Stops the process at each call: slow, but only the untimed run.
    Strace,
    /// Neither is here, or neither may be used.
    Nothing,
}

impl Counter {
    /// The first that works.
    pub(crate) fn find() -> Self {
        let works = |counter: &Self| {
            let mut command = counter.wrap(Command::new("true"), Path::new("/dev/null"));
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        [Self::Perf, Self::Strace].into_iter().find(works).unwrap_or(Self::Nothing)
    }

    /// How the figures came about, for the report.
    pub(crate) fn remark(self) -> &'static str {
        match self {
            Self::Perf => "System calls are those of one untimed run, counted with perf.",
            Self::Strace => "System calls are those of one untimed run, counted with strace.",
            Self::Nothing => "SKIPPED: counting system calls: neither perf nor strace works here.",
        }
    }

    /// The command under the counter, which writes into the file `to`.
    pub(crate) fn wrap(self, command: Command, to: &Path) -> Command {
        let (program, words): (_, &[&str]) = match self {
            Self::Perf => ("perf", &["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-o"]),
            Self::Strace => ("strace", &["-c", "-f", "-U", "calls,name", "-o"]),
            Self::Nothing => return command,
        };
        let mut wrapped = Command::new(program);
        wrapped.args(words).arg(to).arg("--").arg(command.get_program()).args(command.get_args());
        wrapped
    }

    /// The number that the counter wrote.
    pub(crate) fn read(self, from: &Path) -> Result<Option<u64>> {
        if self == Self::Nothing {
            return Ok(None);
        }
        let text = fs::read_to_string(from)?;
        let number = match self {
            Self::Perf => text.lines().find_map(|line| {
                line.contains("raw_syscalls").then(|| line.split(',').next().unwrap_or_default())
            }),
            _ => text.lines().rev().find_map(|line| line.trim().strip_suffix("total")),
        };
        Ok(number.and_then(|number| number.trim().parse().ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_either_counter_writes_is_read() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let read = |counter: Counter, text| {
            fs::write(file.path(), text).expect("written");
            counter.read(file.path()).expect("read")
        };
        let perf = "# started on\n\n285,,raw_syscalls:sys_enter,5277564,100.00,,\n";
        assert_eq!(read(Counter::Perf, perf), Some(285));
        assert_eq!(read(Counter::Perf, "<not counted>,,raw_syscalls:sys_enter,0,0,,\n"), None);
        let strace = "    calls syscall\n--------- ------\n       28 read\n--------- ------\n       29 total\n";
        assert_eq!(read(Counter::Strace, strace), Some(29));
        assert_eq!(read(Counter::Nothing, ""), None);
    }
}
