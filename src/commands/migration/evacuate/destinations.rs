//! Which hosts guests can go to, and how each is reached.

use std::path::{Path, PathBuf};

use clap::Args;
use migrate::{Error, Result};

use crate::output::shown;

/// Stands for the host of a destination's URI in the command that reaches its files.
const HOST: &str = "{host}";

/// A destination's URI, and the command that reaches its files.
pub(super) type Reached = (String, Option<String>);

/// Where guests go, and how those hosts' files are reached.
#[derive(Debug, Args)]
pub(super) struct Destinations {
    /// libvirt URI of a destination, as both hosts reach it, or dir:DIRECTORY (may be repeated)
    #[arg(long, value_name = "URI", required_unless_present_any = ["inventory", "resume"])]
    to: Vec<String>,

    /// Read the destinations from a file: a URI a line, and behind it, where it has one, its own command as for -e
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    inventory: Option<PathBuf>,

    /// Access a destination's files through this command and the qcowtool there, such as 'ssh {host}', where {host}
    /// is that of the URI [default: through libvirt's storage API alone]
    #[arg(short = 'e', long, value_name = "COMMAND")]
    rsh: Option<String>,

    /// Path of qcowtool on the destinations, for --rsh
    #[arg(long, value_name = "PROGRAM", default_value = "qcowtool")]
    rsh_program: String,
}

impl Destinations {
    /// The URIs with the commands that reach their files, and the path of qcowtool there.
    pub(super) fn all(&self) -> Result<(Vec<Reached>, &str)> {
        let listed = match &self.inventory {
            None => self.to.iter().map(|uri| (uri.clone(), None)).collect(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Error::usage(format!("{} could not be read: {error}", shown(path)))
                })?;
                inventory(&text, path)?
            }
        };
        let command = self.rsh.as_deref();
        if command.is_some_and(|command| !command.contains(HOST)) && listed.len() > 1 {
            return Err(Error::usage("--rsh reaches one host, and there are several destinations")
                .hint("write {host} for the host's name in it, such as -e 'ssh {host}'"));
        }
        let all = listed.into_iter().map(|(uri, own)| {
            let command = own.or_else(|| command.map(str::to_owned));
            let command = command.map(|command| command.replace(HOST, host(&uri)));
            (uri, command)
        });
        Ok((all.collect(), &self.rsh_program))
    }
}

/// The lines of an inventory.
fn inventory(text: &str, path: &Path) -> Result<Vec<Reached>> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let mut all: Vec<Reached> = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (uri, command) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if all.iter().any(|(known, _)| known == uri) {
            return Err(Error::usage(format!("{} names '{uri}' twice", shown(path))));
        }
        let command = Some(command.trim().to_owned()).filter(|command| !command.is_empty());
        all.push((uri.to_owned(), command));
    }
    match all.is_empty() {
        true => Err(Error::usage(format!("{} names no destination", shown(path)))),
        false => Ok(all),
    }
}

/// The host of a URI, without user and port.
fn host(uri: &str) -> &str {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match host.strip_prefix('[').and_then(|address| address.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_that_of_the_uri() {
        assert_eq!(host("qemu+ssh://root@host-b:2222/system?no_tty=1"), "host-b");
        assert_eq!(host("qemu+tls://[2001:db8::1]:16514/system"), "2001:db8::1");
        assert_eq!(host("qemu:///system"), "");
    }

    #[test]
    fn an_inventory_is_a_line_for_each_host() {
        let text = "# rack 4\nqemu+tls://b/system\n\nqemu+tls://c/system  ssh -p 22 c # slow\n";
        let expected = [
            ("qemu+tls://b/system".to_owned(), None),
            ("qemu+tls://c/system".to_owned(), Some("ssh -p 22 c".to_owned())),
        ];
        let read = |text: &str| inventory(text, Path::new("hosts"));
        assert_eq!(read(text).unwrap(), expected);
        assert!(read("# nothing\n").is_err());
        assert!(read("a\na\n").unwrap_err().message().contains("twice"));
    }
}
