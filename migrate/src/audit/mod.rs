//! Backing-file dependencies: finds the images of this host, and of others as far as their libvirt reports them, and
//! reports what is wrong with them.
//!
//! Looks only. Headers are read as `qemu-img -U` reads them, without a lock, so that no guest notices.
//! [`Scan`] has the effects, and brings a [`Survey`]; [`Graph`] and [`findings`] are pure.

mod dependents;
mod findings;
mod graph;
mod hosts;
mod manifests;
mod report;
mod scan;
mod value;
mod within;

pub use dependents::{Dependent, DependentDomain, Dependents, Undetermined, Verdict, dependents};
pub use findings::{Code, Finding, Options, Severity, findings};
pub use graph::Graph;
pub(crate) use manifests::manifests;
pub use manifests::prove;
pub use report::{Base, HolderReport, ImageReport, Report, Summary, report};
pub(crate) use scan::canonical;
pub(crate) use scan::directory::is_view;
pub use scan::{Known, Scan};
pub use value::*;
pub use within::within;
