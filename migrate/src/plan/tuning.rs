//! How libvirt is asked to migrate memory, and over which network: passed through as the operator wants it.

use serde::{Deserialize, Serialize};

use super::value::{Flag, Mode, Refusal};
use super::words::refuse;
use crate::facts::{Facts, Version};
use crate::setters::setters;

/// From here on, libvirt sends memory over several connections.
const CONNECTIONS: Version = Version::new(5, 2, 0);
/// From here on, it compresses what goes over several connections.
const COMPRESSED_CONNECTIONS: Version = Version::new(9, 1, 0);

/// How pages of memory are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Compression {
    /// What changed of a page that was sent before; over one connection.
    Xbzrle,
    /// Each page; over several connections.
    Zlib,
    /// Each page, faster; over several connections.
    Zstd,
}

impl Compression {
    /// libvirt's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xbzrle => "xbzrle",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// How libvirt is asked to migrate memory, and over which network. The default leaves all of it to libvirt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[non_exhaustive]
pub struct Tuning {
    /// Slow the guest's processors down if its memory changes faster than it is sent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub auto_converge: bool,
    /// Milliseconds for which the guest may stand still at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_downtime: Option<u64>,
    /// Name or address of the destination on the network for migrations, also with a port for memory: `host[:port]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Port at which disks arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks_port: Option<u16>,
    /// So many connections for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u8>,
    /// How memory is compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

setters!(Tuning {
    auto_converge: bool,
} into {
    max_downtime: Option<u64>,
    address: Option<String>,
    disks_port: Option<u16>,
    connections: Option<u8>,
    compression: Option<Compression>,
});

impl Tuning {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Where memory and disks go, as libvirt is told; its own choice if `None`.
    ///
    /// ```
    /// use migrate::plan::Tuning;
    /// let uri = |address: &str| Tuning::default().address(address.to_owned()).uri().unwrap();
    /// assert_eq!(uri("10.0.0.2"), "tcp://10.0.0.2");
    /// assert_eq!(uri("2001:db8::2"), "tcp://[2001:db8::2]");
    /// assert_eq!(uri("[2001:db8::2]:49200"), "tcp://[2001:db8::2]:49200");
    /// ```
    pub fn uri(&self) -> Option<String> {
        let address = self.address.as_ref()?;
        let bare = address.matches(':').count() > 1 && !address.starts_with('[');
        Some(if bare { format!("tcp://[{address}]") } else { format!("tcp://{address}") })
    }

    /// The name or address alone.
    pub(crate) fn host(&self) -> Option<&str> {
        let address = self.address.as_deref()?;
        if let Some((host, _)) = address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            return Some(host);
        }
        match address.split_once(':') {
            Some((host, port)) if !port.contains(':') => Some(host),
            _ => Some(address),
        }
    }

    /// The flags that it takes.
    pub(super) fn flags(&self) -> impl Iterator<Item = Flag> {
        [
            self.auto_converge.then_some(Flag::AutoConverge),
            self.compression.map(|_| Flag::Compressed),
            self.connections.map(|_| Flag::Parallel),
        ]
        .into_iter()
        .flatten()
    }

    /// From which version on both libvirts have what it asks for, and what that is.
    pub(crate) fn needs(&self) -> Option<(Version, &'static str)> {
        match (self.connections, self.compression) {
            (Some(_), Some(Compression::Zlib | Compression::Zstd)) => {
                Some((COMPRESSED_CONNECTIONS, "compressed memory over several connections"))
            }
            (Some(_), _) => Some((CONNECTIONS, "several connections for memory")),
            _ => None,
        }
    }

    /// What libvirt cannot do together.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        match (self.connections, self.compression) {
            (Some(_), Some(Compression::Xbzrle)) => {
                Some("xbzrle compresses over one connection only")
            }
            (None, Some(Compression::Zlib | Compression::Zstd)) => {
                Some("zlib and zstd compress over several connections only")
            }
            _ => None,
        }
    }
}

/// R12: both libvirts can do what is asked for. A host whose version is not known is left to libvirt.
pub(super) fn possible(facts: &Facts, tuning: &Tuning, mode: Mode) -> Option<Refusal> {
    if mode == Mode::Offline {
        return None;
    }
    if let Some(why) = tuning.contradiction() {
        return Some(refuse("R12", None, why, "ask for one of them, or for both as they fit"));
    }
    let (from, what) = tuning.needs()?;
    let old = |version: Option<Version>| version.is_some_and(|version| version < from);
    (old(facts.source.libvirt) || old(facts.destination.libvirt)).then(|| {
        let message = format!("{what} takes libvirt {from} on both hosts");
        refuse("R12", None, message, "upgrade libvirt, or do without it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_what_is_left_without_brackets_and_port() {
        let host = |address: &str| {
            let tuning = Tuning::default().address(address.to_owned());
            tuning.host().unwrap().to_owned()
        };
        for (address, expected) in [
            ("host-b", "host-b"),
            ("10.0.0.2:49200", "10.0.0.2"),
            ("2001:db8::2", "2001:db8::2"),
            ("[2001:db8::2]:49200", "2001:db8::2"),
        ] {
            assert_eq!(host(address), expected);
        }
    }
}
