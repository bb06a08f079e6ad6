//! The commands that move guests.

mod agent;
mod args;
mod evacuate;
mod migrate;
mod plan;
mod preflight;
mod progress;
mod transactions;

pub(crate) use self::migrate::{Migrate, Prepare};
pub(crate) use agent::Agent;
pub(crate) use evacuate::Evacuate;
pub(crate) use plan::{PlanCommand, refuse};
pub(crate) use preflight::Preflight;
pub(crate) use transactions::{Resume, Rollback, Transactions};

use std::path::{Path, PathBuf};

use ::migrate::hosts::Connections;
use ::migrate::plan::Policy;
use ::migrate::probe::{Probed, Probing, probe};
use clap::Args;

use crate::failure::Failure;
use crate::progress::{Progress, When};
use crate::signals::Watch;

/// The exit codes of the commands that move guests, as their help shows them.
macro_rules! migration_codes {
    () => {
        "Exit codes:
  0    done
  1    wrong usage
  2    refused: it would not be safe, or the policy forbids it; nothing was changed
  3    a host has changed since the plan was made; nothing was changed
  4    the content at the destination is not what it must be
  5    it is not known on which host the guest runs; nothing was deleted
  6    a host, a file or a service failed; all changes were rolled back
  130  stopped by SIGINT (143 by SIGTERM, 129 by SIGHUP); all changes were rolled back"
    };
}
pub(crate) use migration_codes;

/// Where migrations keep their journals and digests.
#[derive(Debug, Args)]
pub(crate) struct State {
    /// Directory of journals, locks and digests
    #[arg(
        long,
        value_name = "DIR",
        env = "QCOWTOOL_STATE_DIR",
        default_value = "/var/lib/qcowtool"
    )]
    state_dir: PathBuf,
}

impl State {
    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.state_dir
    }

    /// Where journals are kept.
    fn journals(&self) -> PathBuf {
        self.state_dir.join(::migrate::run::JOURNALS)
    }

    /// Where digests of bases are kept.
    pub(crate) fn digests(&self) -> PathBuf {
        self.state_dir.join("digests")
    }
}

/// Looks at both hosts.
fn look(
    reached: &Connections,
    policy: &Policy,
    state: &State,
    when: When,
    watch: &Watch,
) -> Result<Probed, Failure> {
    let cache = state.digests();
    // Without it, bases are just read again.
    let kept = ::migrate::journal::make_directory(&cache).is_ok();
    let progress = Progress::new(when);
    let probing =
        Probing::new(policy, &progress, watch.token()).cache(kept.then_some(cache.as_path()));
    let probed = probe(&reached.hosts(), &reached.route().domain, &probing);
    progress.finish(probed.is_ok());
    watch.settle_migration(probed)
}

/// Each name once, in its place.
fn once(names: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    names.into_iter().filter(|name| seen.insert(name.clone())).collect()
}
