//! A guest as its own host sees it.

use serde::{Deserialize, Serialize};

/// What a domain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainState {
    /// It runs.
    Running,
    /// Its processors are stopped, its process lives.
    Paused,
    /// It has no process.
    ShutOff,
    /// Something that is none of these and passes: shutting down, crashed, suspended by the guest.
    Other,
}

/// The guest as its own host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DomainFacts {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// What it does.
    pub state: DomainState,
    /// It is defined, so it outlives its process.
    pub persistent: bool,
    /// What runs, with the chains that libvirt sees; that of the definition if nothing runs.
    pub live_xml: String,
    /// What may be sent to another host (`VIR_DOMAIN_XML_MIGRATABLE`).
    pub migratable_xml: String,
    /// What the next start would use; `None` if it is not persistent.
    pub inactive_xml: Option<String>,
    /// A job that runs on the domain, in words.
    pub job: Option<String>,
    /// Names of the snapshots that libvirt knows.
    pub snapshots: Vec<String>,
    /// Names of the checkpoints that libvirt knows.
    pub checkpoints: Vec<String>,
    /// It is shut off, and libvirt keeps the state of its memory (`virsh managedsave`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub saved: bool,
}
