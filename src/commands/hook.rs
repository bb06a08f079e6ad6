//! `qcowtool hook`: libvirt's hook on the destination of migrations, and its installation.

mod ask;
mod run;
mod texts;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use migrate::hook::config;
use migrate::hook::install::{self, HOOKS, Installed, Places};

use self::ask::Ask;
use self::run::Run;
use super::migration::migration_codes;
use crate::failure::Failure;
use crate::output::{OutputFormat, print, print_json, shown};

/// Arguments of `hook`.
#[derive(Debug, Args)]
#[command(
    after_help = concat!(
    "Installed on the destination of migrations with local disks, the hook creates missing targets, ends backing \
chains to files that are not there, and refuses an incremental copy (--copy-storage-inc) that would leave \
garbage: see docs/hook.md. Guests need 'qcowtool annotate' on the source host, so that their XML tells exact \
sizes and what their backing files hold.

Examples:
  qcowtool hook install --root /var/lib/libvirt/images
  qcowtool hook status
  qcowtool hook remove

", migration_codes!()))]
pub(crate) struct Hook {
    #[command(flatten)]
    pub(crate) output: HookOutput,

    #[command(flatten)]
    places: PlaceArgs,

    #[command(subcommand)]
    action: Action,
}

/// How the outcome is printed, also after the name of the action.
#[derive(Debug, Args)]
pub(crate) struct HookOutput {
    /// Output format of the result and of errors
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "human", global = true)]
    output: OutputFormat,
}

impl HookOutput {
    /// How the outcome is printed.
    pub(crate) fn format(&self) -> OutputFormat {
        self.output
    }
}

#[derive(Debug, Args)]
struct PlaceArgs {
    /// Configuration of the hook
    #[arg(long, value_name = "FILE", env = "QCOWTOOL_HOOK_CONFIG", default_value = config::FILE, global = true)]
    config: PathBuf,

    /// libvirt's directory of hooks
    #[arg(long, value_name = "DIR", env = "QCOWTOOL_HOOKS_DIR", default_value = HOOKS, global = true)]
    hooks_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Install the hook on this host, the destination of migrations
    Install {
        /// Directory below which targets may be created, if there is no configuration yet (may be repeated)
        #[arg(long, value_name = "DIR")]
        root: Vec<PathBuf>,

        /// The program that libvirt starts [default: this one]
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
    },
    /// Show whether the hook is installed, and what keeps it from working
    Status,
    /// Remove the hook; its configuration stays
    Remove,
    /// Serve one call of libvirt, with the guest's XML on standard input
    Run(Run),
    /// Ask another host's libvirt, read-only, for the sizes of a guest's disks
    #[command(hide = true)]
    Ask(Ask),
}

impl Hook {
    /// Does it.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let PlaceArgs { config, hooks_dir } = self.places;
        let places = Places {
            hooks: hooks_dir,
            config,
            name: texts::NAME,
            mark: texts::MARK,
            before_program: texts::BEFORE_PROGRAM,
        };
        let json = self.output.output == OutputFormat::Json;
        let show = |installed: &Installed| match json {
            true => print_json(installed),
            false => print(text(installed)),
        };
        match self.action {
            Action::Run(run) => run.run(&places.config),
            Action::Ask(ask) => ask.run(),
            Action::Install { root, program } => {
                let program = match program {
                    Some(program) => program,
                    None => this_program()?,
                };
                let script = texts::script(&program, &places.config)?;
                let configuration = match root.is_empty() {
                    true => None,
                    false => Some(texts::configuration(&root)?),
                };
                show(&install::install(&places, &script, configuration.as_deref())?)
            }
            Action::Status => {
                let installed = install::status(&places)?;
                show(&installed)?;
                match installed.present && installed.problems.is_empty() {
                    true => Ok(()),
                    false => Err(Failure::Verdict(NOT_WORKING)),
                }
            }
            Action::Remove => {
                let removed = install::remove(&places)?;
                match (json, removed) {
                    (true, _) => print_json(&serde_json::json!({ "removed": removed })),
                    (false, true) => print("the hook is removed; its configuration stays\n"),
                    (false, false) => print("the hook is not installed\n"),
                }
            }
        }
    }
}

/// The hook is not installed, or does not work.
const NOT_WORKING: u8 = 6;

/// The path of `qcowtool`, which libvirt starts.
fn this_program() -> Result<PathBuf, Failure> {
    Ok(std::env::current_exe()
        .map_err(|error| migrate::Error::io("could not find this program", error))?)
}

fn text(installed: &Installed) -> String {
    let mut text = String::new();
    let state = if installed.present { "installed" } else { "not installed" };
    let _ = writeln!(text, "{}: {state}", shown(&installed.script));
    if let Some(program) = &installed.program {
        let _ = writeln!(text, "program: {}", shown(program));
    }
    let _ = writeln!(text, "configuration: {}", shown(&installed.config));
    for problem in &installed.problems {
        let _ = writeln!(text, "problem: {}", qcow::Escaped(problem));
    }
    if installed.restart {
        text.push_str(
            "libvirt looks for hooks when it starts, and there was none: restart libvirtd (or virtqemud); \
             guests go on running\n",
        );
    }
    text
}
