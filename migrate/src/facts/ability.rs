//! What a host can run, and how it is set up for guests that come and go: what is so between two hosts
//! whatever the guest.

use serde::{Deserialize, Serialize};

/// What a host's hypervisor can run, as its libvirt tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Abilities {
    /// The host's processor, as libvirt describes it: an XML element `cpu`.
    pub cpu: Option<String>,
    /// The kinds of guests.
    pub guests: Vec<GuestKind>,
}

/// One kind of guest that a host can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestKind {
    /// Its architecture, such as `x86_64`.
    pub arch: String,
    /// `kvm`, `qemu`, ...
    pub virtualization: String,
    /// Names of machine types.
    pub machines: Vec<String>,
}

/// What is compared with a host's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cpu<'a> {
    /// Another host's: its element `cpu`.
    OfHost(&'a str),
    /// That of a guest, with what the hypervisor is told about it; it may offer more or less than the host has.
    OfGuest {
        /// The element `cpu` of the guest's XML.
        xml: &'a str,
        /// The guest's architecture.
        arch: &'a str,
        /// Its machine type.
        machine: &'a str,
        /// `kvm`, `qemu`, ...
        virtualization: &'a str,
    },
}

/// How a processor compares with what a host offers, as that host's libvirt judges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum CpuFit {
    /// The host offers the same.
    Identical,
    /// It offers more.
    Superset,
    /// It offers less.
    Incompatible {
        /// What it lacks, in libvirt's words.
        why: String,
    },
    /// libvirt could not compare them.
    Unknown {
        /// Why not.
        why: String,
    },
}

/// What a host has for guests, whatever it gives to those that it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Resources {
    /// Its memory, in bytes.
    pub memory: u64,
    /// What of it nothing uses now, in bytes; what only caches files counts as not used.
    pub memory_available: u64,
    /// Its processors, as its scheduler counts them.
    pub cpus: u64,
}

/// How a host is set up for guests that come and go, as its own files and its clock tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Setup {
    /// Its clock, in nanoseconds since 1970.
    pub clock_ns: i64,
    /// The ports that memory and disks of guests arrive at, the first and the last.
    pub ports: (u16, u16),
    /// The name that other hosts shall send guests to, if it is not the host's own.
    pub migration_host: Option<String>,
    /// Where its certificates for migrations are.
    pub tls_directory: String,
    /// Who sends a guest here has to have a certificate too.
    pub tls_verifies: bool,
    /// The names of the files with certificates and keys that are there.
    pub tls_files: Vec<String>,
    /// The certificates among them.
    #[serde(default)]
    pub certificates: Vec<CertificateFile>,
}

/// A file with a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CertificateFile {
    /// Its name.
    pub name: String,
    /// What its first certificate says; `None` if that cannot be read.
    pub certificate: Option<Certificate>,
    /// Why it cannot be read.
    pub unreadable: Option<String>,
}

/// What a certificate says of its time and its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Certificate {
    /// From when on it is valid, in seconds since 1970.
    pub not_before: i64,
    /// The last second in which it is.
    pub not_after: i64,
    /// The host names and addresses that it is for; its common name if it has none of them.
    pub names: Vec<String>,
}
