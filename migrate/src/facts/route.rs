//! How hosts are reached.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How both hosts are reached: kept in the journal, so that the command that ends an interrupted run needs
/// only its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Route {
    /// Name or UUID of the guest.
    pub domain: String,
    /// URI of the libvirt of the guest's host.
    pub from: String,
    /// URI of the destination's libvirt, or `dir:` and a directory.
    pub to: String,
    /// The command that reaches the destination's files, if one does.
    pub rsh: Option<String>,
    /// `qcowtool` at its other end.
    pub rsh_program: String,
    /// The file that describes the guest, in place of a libvirt.
    pub domain_xml: Option<PathBuf>,
    /// What stands for `/` of the guest's host.
    pub source_root: PathBuf,
    /// Without a libvirt: the guest is taken for one that runs.
    pub running: bool,
}
