//! `qcowtool relocate`: disks of a guest that runs go to another directory, pool or file system of its host.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use migrate::domain::parse;
use migrate::driver::Hypervisor;
use migrate::facts::{Device, Source};
use migrate::journal::DomainLock;
use migrate::live::{self, Flattened, LivePlan, Looked, Method, Options, ResumeRecord, RunContext};
use migrate::{Error, Result};
use serde::Serialize;

use crate::args::{OutputArgs, Verbosity};
use crate::commands::migration::{State, migration_codes, refuse};
use crate::failure::Failure;
use crate::libvirt::connect;
use crate::output::{OutputFormat, eprint_line, eprint_lines, print, print_json, shown};
use crate::progress::{Progress, When};
use crate::remedies::reworded;
use crate::signals::Watch;
use crate::size::{self, human};

/// Arguments of `relocate`.
#[derive(Debug, Args)]
#[command(
    after_help = concat!(
    "Each disk is copied by libvirt while the guest writes to it; then the guest goes on with the copy, and its definition \
names it. A backing file stays below it. The old image is not changed and not removed. \
If it is interrupted or fails, the guest goes on with the old image, and the new one is removed; after a kill, the \
same command continues. Disks go one after the other: those that have gone stay there if a later one fails.

Examples:
  qcowtool relocate web-1 --target-dir /mnt/ssd --dry-run
  qcowtool relocate web-1 --target-dir /mnt/ssd
  qcowtool relocate web-1 --disk vdb --target-pool fast --verify content

", migration_codes!()))]
pub(crate) struct Relocate {
    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    verbosity: Verbosity,

    #[command(flatten)]
    state: State,

    /// Name or UUID of the guest
    #[arg(value_name = "DOMAIN")]
    domain: String,

    /// libvirt URI of the guest's host, which must be this machine
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    connect: String,

    /// Only the disk of this target name or path (may be repeated) [default: all that are not there yet]
    #[arg(long = "disk", value_name = "DISK")]
    disks: Vec<String>,

    /// Directory for the new images, which keep their names
    #[arg(long, value_name = "DIR", required_unless_present = "target_pool")]
    target_dir: Option<PathBuf>,

    /// Storage pool for the new images
    #[arg(long, value_name = "NAME", conflicts_with = "target_dir")]
    target_pool: Option<String>,

    /// Copy what the backing files hold too: the new images have none
    #[arg(long)]
    standalone: bool,

    /// How much to compare: the new image's header, or all of its content, for which the guest is paused
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "meta")]
    verify: VerifyArg,

    /// Bandwidth limit in bytes per second, such as 100M
    #[arg(long, value_name = "RATE", value_parser = size::parse)]
    bandwidth: Option<u64>,

    /// Abort the copy of a disk if it has not ended after SECONDS
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,

    /// Print the plan without carrying it out
    #[arg(long)]
    dry_run: bool,

    /// Show progress on standard error: as a bar on a terminal; otherwise as lines, only with 'always'
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    progress: When,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VerifyArg {
    Meta,
    Content,
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Disks<T> {
    disks: Vec<T>,
}

impl Relocate {
    /// Moves the disks, or goes on where an earlier run was cut off.
    pub(crate) fn run(self) -> std::result::Result<(), Failure> {
        let hypervisor = connect(&self.connect)?.hypervisor;
        let hypervisor = hypervisor.as_ref();
        let watch = Watch::start()?;
        let directory = self.directory(hypervisor)?;
        let disks = self.disks(hypervisor, &directory)?;
        if self.dry_run {
            return self.show(hypervisor, &directory, &disks);
        }
        // All are judged before the first is copied.
        let mut uuid = String::new();
        for disk in &disks {
            let looked = self.look(hypervisor, &directory, disk)?;
            uuid.clone_from(&looked.facts.domain.uuid);
            if ResumeRecord::read(self.state.directory(), &uuid, disk)?.is_none() {
                self.plan(&looked, &directory)?;
            }
        }
        let lock = DomainLock::take(self.state.directory(), &uuid)?;
        let mut done = Vec::new();
        for disk in &disks {
            done.push(self.carry_out(hypervisor, &directory, disk, &watch)?);
        }
        drop(lock);
        match self.output.output {
            OutputFormat::Json => print_json(&Disks { disks: done })?,
            OutputFormat::Human if self.verbosity.quiet => {}
            OutputFormat::Human => print(done.iter().map(outcome).collect::<String>())?,
        }
        Ok(())
    }

    fn directory(&self, hypervisor: &dyn Hypervisor) -> Result<PathBuf> {
        if let Some(pool) = &self.target_pool {
            let missing = || Error::usage(format!("there is no storage pool '{pool}'"));
            return hypervisor.pool_path(pool)?.ok_or_else(missing);
        }
        let given = self.target_dir.as_deref().unwrap_or(Path::new("."));
        std::path::absolute(given)
            .map_err(|error| Error::usage(format!("{}: {error}", given.display())))
    }

    /// The target names of the disks that are meant.
    fn disks(&self, hypervisor: &dyn Hypervisor, directory: &Path) -> Result<Vec<String>> {
        let name = &self.domain;
        let missing = || Error::usage(format!("there is no domain '{name}'"));
        let domain = hypervisor.domain(name)?.ok_or_else(missing)?;
        let all = parse(&domain.live_xml)?.disks;
        let mut found = Vec::new();
        for wanted in &self.disks {
            let disk = all.iter().find(|disk| {
                disk.target == *wanted || path(&disk.source) == Some(Path::new(wanted))
            });
            let disk = disk
                .ok_or_else(|| Error::usage(format!("{} has no disk '{wanted}'", domain.name)))?;
            if !found.contains(&disk.target) {
                found.push(disk.target.clone());
            }
        }
        if self.disks.is_empty() {
            let elsewhere = all.iter().filter(|disk| {
                let written = disk.device == Device::Disk && !disk.readonly;
                let path = path(&disk.source);
                let volume = matches!(disk.source, Source::Volume { .. });
                // One whose run was cut off after the guest went over is there already.
                let begun = ResumeRecord::read(self.state.directory(), &domain.uuid, &disk.target)
                    .is_ok_and(|record| record.is_some());
                let there = path.is_some_and(|path| path.parent() == Some(directory));
                written && (path.is_some() || volume) && (begun || !there)
            });
            found.extend(elsewhere.map(|disk| disk.target.clone()));
        }
        if found.is_empty() {
            let message = format!(
                "{} has no disk that is not in '{}' already",
                domain.name,
                shown(directory)
            );
            return Err(Error::usage(message));
        }
        Ok(found)
    }

    fn options(&self, target: Option<PathBuf>) -> Options {
        Options::default()
            .method(Method::Move)
            .target(target)
            .standalone(self.standalone)
            .compare(self.verify == VerifyArg::Content)
            .bandwidth(self.bandwidth)
            .timeout(self.timeout)
    }

    fn look(&self, hypervisor: &dyn Hypervisor, directory: &Path, disk: &str) -> Result<Looked> {
        let looked = live::look(hypervisor, &self.domain, disk, &self.options(None))?;
        let image = path(&looked.facts.disk.source).and_then(Path::file_name);
        // What has no name has no image, which the plan refuses.
        let Some(name) = image else { return Ok(looked) };
        let options = self.options(Some(directory.join(name)));
        live::look(hypervisor, &self.domain, disk, &options)
    }

    /// The plan; if there is none, what is in the way has been printed.
    fn plan(&self, looked: &Looked, directory: &Path) -> std::result::Result<LivePlan, Failure> {
        let image = path(&looked.facts.disk.source).and_then(Path::file_name);
        let options = self.options(image.map(|name| directory.join(name)));
        live::plan(&looked.facts, &options).map_err(|refusals| {
            let refusals = reworded(refusals, "relocate");
            refuse(refusals, self.output.output, |text| eprint_lines(&text))
        })
    }

    fn show(
        &self,
        hypervisor: &dyn Hypervisor,
        directory: &Path,
        disks: &[String],
    ) -> std::result::Result<(), Failure> {
        let mut plans = Vec::new();
        for disk in disks {
            let looked = self.look(hypervisor, directory, disk)?;
            let (state, uuid) = (self.state.directory(), &looked.facts.domain.uuid);
            if ResumeRecord::read(state, uuid, disk)?.is_some() {
                eprint_line(format_args!(
                    "note: an earlier run on disk {disk} was interrupted; without --dry-run this command continues it"
                ));
            }
            plans.push(self.plan(&looked, directory)?);
        }
        match self.output.output {
            OutputFormat::Json => print_json(&Disks { disks: plans })?,
            OutputFormat::Human => print(plans.iter().map(in_words).collect::<String>())?,
        }
        Ok(())
    }

    fn carry_out(
        &self,
        hypervisor: &dyn Hypervisor,
        directory: &Path,
        disk: &str,
        watch: &Watch,
    ) -> std::result::Result<Flattened, Failure> {
        let state = self.state.directory();
        let mut looked = self.look(hypervisor, directory, disk)?;
        let progress = Progress::new(self.progress);
        let context = RunContext { hypervisor, state, observer: &progress, cancel: watch.token() };
        if let Some(record) = ResumeRecord::read(state, &looked.facts.domain.uuid, disk)? {
            if !self.verbosity.quiet {
                eprint_line(format_args!("continuing an interrupted run on disk {disk}"));
            }
            let done = watch.settle_migration(live::go_on(record, &context));
            progress.finish(done.is_ok());
            if let Some(done) = done? {
                return Ok(done);
            }
            looked = self.look(hypervisor, directory, disk)?;
        }
        let plan = self.plan(&looked, directory)?;
        if self.verbosity.verbose {
            eprint_lines(&in_words(&plan))?;
        }
        // What was deleted stays open until all is done.
        let Looked { allocation, pinned, .. } = looked;
        let done = watch.settle_migration(live::flatten(&plan, allocation, &context));
        progress.finish(done.is_ok());
        drop(pinned);
        done
    }
}

fn path(source: &Source) -> Option<&Path> {
    match source {
        Source::File { path } | Source::Block { path } => Some(path),
        Source::Volume { path, .. } => path.as_deref(),
        _ => None,
    }
}

fn in_words(plan: &LivePlan) -> String {
    let mut text = format!(
        "{}, disk {}: '{}' is copied to '{}', {} at most\n",
        plan.domain,
        plan.disk,
        shown(&plan.image),
        shown(&plan.becomes),
        human(plan.copied_bytes)
    );
    for layer in &plan.below {
        let what = match (plan.keeps_below, layer.deleted) {
            (true, _) => "stays below it:    ",
            (false, true) => "goes into it (deleted):",
            (false, false) => "goes into it:      ",
        };
        let _ = writeln!(text, "{what} '{}' ({})", shown(&layer.path), layer.format);
    }
    let _ = writeln!(text, "takes at most:      {}", human(plan.grows_bytes));
    if let Some(available) = plan.available_bytes {
        let _ = writeln!(text, "free there:         {}", human(available));
    }
    for note in &plan.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn outcome(done: &Flattened) -> String {
    let (seconds, tenths) = (done.elapsed_ms / 1000, done.elapsed_ms % 1000 / 100);
    let mut text = format!(
        "{}, disk {}: the guest uses '{}' after {seconds}.{tenths} s, {} long\n",
        done.domain,
        done.disk,
        shown(&done.image),
        human(done.length_bytes)
    );
    if done.compared {
        let _ = writeln!(
            text,
            "all of it was compared with the old image, for which the guest was paused for {} ms: the content is the same",
            done.paused_ms
        );
    }
    for path in &done.left {
        let _ = writeln!(text, "no longer used: '{}'", shown(path));
    }
    text
}
