//! Where the figures were taken.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::command::must;
use crate::failure::Result;

/// What someone needs to know to judge or repeat the figures.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    /// In bytes.
    pub(crate) memory: u64,
    pub(crate) kernel: String,
    /// Processes that wanted to run in the last minute before the suite: more than a fraction of
    /// one spoils the figures.
    pub(crate) load: f64,
    pub(crate) file_system: String,
    pub(crate) qcowtool: String,
    pub(crate) qemu: String,
}

impl Machine {
    /// Looks at this machine, at the file system of `dir`, and at both programs.
    pub(crate) fn look(qcowtool: &Path, dir: &Path) -> Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let file_system = must(Command::new("df").arg("--output=fstype").arg(dir))?;
        Ok(Self {
            date: first_line(Command::new("date").args(["-u", "+%Y-%m-%d"]))?,
            processor: model.map_or("unknown processor", |(_, model)| model).to_owned(),
            cores: thread::available_parallelism()?.get(),
            memory: memory()?,
            load: load()?,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: file_system.lines().last().unwrap_or_default().trim().to_owned(),
            qcowtool: first_line(Command::new(qcowtool).arg("--version"))?,
            qemu: first_line(Command::new("qemu-img").arg("--version"))?,
        })
    }
}

fn first_line(command: &mut Command) -> Result<String> {
    Ok(must(command)?.lines().next().unwrap_or_default().to_owned())
}

fn memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"));
    Ok(total.ok_or("/proc/meminfo has no total")?.trim().parse::<u64>()? << 10)
}

fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}
