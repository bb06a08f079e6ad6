//! One file per command: its arguments, one call into the engine, its outcome in words.

mod amend;
mod annotate;
mod audit;
mod bench;
mod bitmap;
mod check;
mod checksum;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod dependents;
mod flatten;
mod generate;
mod hook;
mod info;
mod io;
mod map;
mod measure;
mod migration;
#[cfg_attr(not(feature = "monitor"), path = "no_monitor.rs")]
mod monitor;
mod rebase;
mod relocate;
mod rescue;
mod resize;
mod serve;
mod snapshot;
mod sparsify;

pub(crate) use amend::Amend;
pub(crate) use annotate::Annotate;
pub(crate) use audit::Audit;
pub(crate) use bench::Bench;
pub(crate) use bitmap::Bitmap;
pub(crate) use check::Check;
pub(crate) use check::summary as check_summary;
pub(crate) use checksum::Checksum;
pub(crate) use commit::Commit;
pub(crate) use compare::Compare;
pub(crate) use convert::Convert;
pub(crate) use create::Create;
pub(crate) use create::outputs;
pub(crate) use dd::Dd;
pub(crate) use dependents::Dependents;
pub(crate) use flatten::Flatten;
pub(crate) use generate::Generate;
pub(crate) use hook::Hook;
pub(crate) use info::Info;
pub(crate) use info::text as info_text;
pub(crate) use io::Io;
pub(crate) use map::MapCommand;
pub(crate) use map::lines as map_lines;
pub(crate) use measure::Measure;
pub(crate) use migration::{
    Agent, Evacuate, Migrate, PlanCommand, Preflight, Prepare, Resume, Rollback, Transactions,
};
pub(crate) use monitor::Monitor;
pub(crate) use rebase::Rebase;
pub(crate) use relocate::Relocate;
pub(crate) use rescue::Rescue;
pub(crate) use resize::Resize;
pub(crate) use serve::Serve;
pub(crate) use snapshot::Snapshot;
pub(crate) use sparsify::Sparsify;
