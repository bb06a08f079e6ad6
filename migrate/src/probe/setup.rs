//! How this host is set up for guests that come and go.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::certificate;
use crate::facts::{CertificateFile, Setup};
use crate::{Error, Result};

/// Where libvirt's QEMU driver is told what it shall do.
const QEMU_CONF: &str = "/etc/libvirt/qemu.conf";
/// No more of it is read: no such file is written by libvirt.
const LONGEST: u64 = 1 << 20;
/// libvirt's own choice where nothing is said.
const PORTS: (u16, u16) = (49152, 49215);
/// Where certificates for migrations are looked for first, and those for everything.
const OF_MIGRATIONS: &str = "/etc/pki/libvirt-migrate";
const OF_EVERYTHING: &str = "/etc/pki/qemu";

/// The certificates and keys that QEMU looks for by these names.
pub(crate) const CA: &str = "ca-cert.pem";
pub(crate) const SERVER: [&str; 2] = ["server-cert.pem", "server-key.pem"];
pub(crate) const CLIENT: [&str; 2] = ["client-cert.pem", "client-key.pem"];

/// Looks at the host that this program runs on.
pub(crate) fn of_this_host() -> Result<Setup> {
    let exists = |path: &str| Path::new(path).exists();
    let setup = read(&text_of(Path::new(QEMU_CONF))?, &exists);
    let certificates = [CA, SERVER[0], CLIENT[0]]
        .into_iter()
        .filter(|name| setup.tls_files.iter().any(|file| file == name))
        .map(|name| certificate_file(&setup.tls_directory, name))
        .collect();
    Ok(Setup { clock_ns: now(), certificates, ..setup })
}

fn certificate_file(directory: &str, name: &str) -> CertificateFile {
    let text = text_of(&Path::new(directory).join(name));
    let parsed =
        text.map_err(|error| error.message().to_owned()).and_then(|text| certificate::parse(&text));
    let (certificate, unreadable) = match parsed {
        Ok(certificate) => (Some(certificate), None),
        Err(why) => (None, Some(why)),
    };
    CertificateFile { name: name.to_owned(), certificate, unreadable }
}

/// Nothing, if there is no such file. What cannot be read may say anything.
fn text_of(path: &Path) -> Result<String> {
    let failed = |error| Error::io(format!("{} could not be read", path.display()), error);
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        file => file.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// What `qemu.conf` means where these files exist. The clock is left out.
fn read(text: &str, exists: &dyn Fn(&str) -> bool) -> Setup {
    let values = values(text);
    let word =
        |name: &str| values.get(name).map(|value| value.trim_matches(['"', '\'']).to_owned());
    let number = |name: &str| word(name).and_then(|value| value.parse::<u16>().ok());
    let flag = |name: &str| word(name).map(|value| value != "0");
    let default = || word("default_tls_x509_cert_dir").unwrap_or_else(|| OF_EVERYTHING.into());
    let tls_directory = match word("migrate_tls_x509_cert_dir") {
        Some(directory) => directory,
        None if exists(OF_MIGRATIONS) => OF_MIGRATIONS.into(),
        None => default(),
    };
    let destination = |name: &&str| exists(&format!("{tls_directory}/{name}"));
    let tls_files = [CA].into_iter().chain(SERVER).chain(CLIENT).filter(destination);
    Setup {
        clock_ns: 0,
        ports: (
            number("migration_port_min").unwrap_or(PORTS.0),
            number("migration_port_max").unwrap_or(PORTS.1),
        ),
        migration_host: word("migration_host"),
        tls_verifies: flag("migrate_tls_x509_verify")
            .or_else(|| flag("default_tls_x509_verify"))
            .unwrap_or(true),
        tls_files: tls_files.map(str::to_owned).collect(),
        certificates: Vec::new(),
        tls_directory,
    }
}

/// Lines `name = value`; what is longer than a line is of no interest here.
fn values(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim(), value.split('#').next().unwrap_or_default().trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, files: &[&str]) -> Setup {
        read(text, &|path| files.contains(&path))
    }

    #[test]
    fn what_is_not_said_is_as_libvirt_has_it() {
        let setup = with("# migration_port_min = 1\nuser = \"root\"\n", &[]);
        assert_eq!((setup.ports, setup.migration_host), ((49152, 49215), None));
        assert_eq!((&*setup.tls_directory, setup.tls_verifies), ("/etc/pki/qemu", true));
        assert_eq!(setup.tls_files, [""; 0]);
    }

    #[test]
    fn a_file_that_is_not_there_says_nothing_and_one_that_cannot_be_read_is_an_error() {
        assert_eq!(text_of(Path::new("/nonexistent/qemu.conf")).unwrap(), "");
        let error = text_of(Path::new("/")).unwrap_err();
        assert!(error.message().starts_with("/ could not be read"), "{error}");
    }

    #[test]
    fn what_is_said_holds() {
        let text = "migration_port_min = 50000 # free\nmigration_port_max=50010\n\
                    migration_host = \"b.example\"\ndefault_tls_x509_cert_dir = \"/tls\"\n\
                    default_tls_x509_verify = 0\n";
        let setup = with(text, &["/tls/ca-cert.pem", "/tls/server-key.pem", "/etc/pki/qemu/x"]);
        assert_eq!(setup.ports, (50000, 50010));
        assert_eq!(setup.migration_host.as_deref(), Some("b.example"));
        assert_eq!((&*setup.tls_directory, setup.tls_verifies), ("/tls", false));
        assert_eq!(setup.tls_files, ["ca-cert.pem", "server-key.pem"]);
    }

    #[test]
    fn certificates_of_migrations_go_before_those_of_everything() {
        let own = "/etc/pki/libvirt-migrate";
        assert_eq!(with("default_tls_x509_cert_dir = \"/tls\"", &[own]).tls_directory, own);
        let said = with("migrate_tls_x509_cert_dir = '/m'\nmigrate_tls_x509_verify = 1", &[own]);
        assert_eq!((&*said.tls_directory, said.tls_verifies), ("/m", true));
    }
}
