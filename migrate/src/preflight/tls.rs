//! Certificates and keys for encrypted migrations, as far as they can be looked at before.

use std::net::IpAddr;

use jiff::Timestamp;

use super::report::Check;
use super::{Seeing, Seen, Setups};
use crate::Remedy;
use crate::facts::{CertificateFile, Setup};
use crate::probe::setup::{CA, CLIENT, SERVER};

const NAME: &str = "tls";

/// The certificate by which the destination is known.
const SERVER_CERTIFICATE: &str = SERVER[0];

/// Whether both ends have what they need, in its time, and the destination's is for the name that guests are sent to.
pub(super) fn judge(seeing: &Seeing) -> Check {
    let setups = match &seeing.setup {
        Ok(setups) => setups,
        Err(why) => return Check::not_seen(NAME, why),
    };
    let lacks = lacks(setups);
    if !lacks.is_empty() {
        return red(format!("missing: {}", lacks.join(", ")));
    }
    let (source, destination) = (&setups.source, &setups.destination);
    let client = destination.tls_verifies.then_some(CLIENT[0]);
    let sides = [
        ("source", source, [Some(CA), client]),
        ("destination", destination, [Some(CA), Some(SERVER_CERTIFICATE)]),
    ];
    let mut wrong = Vec::new();
    let mut ends = None;
    for (side, setup, names) in sides {
        for file in files(setup, &names) {
            let path = format!("{}/{} at the {side}", setup.tls_directory, file.name);
            match dated(file, setup.clock_ns) {
                Ok(end) => ends = [ends, end].into_iter().flatten().min(),
                Err(why) => wrong.push(format!("{path} {why}")),
            }
        }
    }
    wrong.extend(other_name(destination, &seeing.paths.to_destination));
    if !wrong.is_empty() {
        return red(wrong.join("; "));
    }
    let until = ends.map(|end| format!(", valid until {}", date(end))).unwrap_or_default();
    Check::green(
        NAME,
        format!("both ends have certificates and keys{until}; whether they match is not checked"),
    )
}

fn red(why: String) -> Check {
    Check::red(NAME, why).way_out(Remedy::SetUpTls)
}

fn lacks(Setups { source, destination, .. }: &Setups) -> Vec<String> {
    let client = CLIENT.iter().filter(|_| destination.tls_verifies);
    let needed = [(source, "source", [CA].iter().chain(client).collect::<Vec<_>>())];
    let of_server = (destination, "destination", [CA].iter().chain(&SERVER).collect());
    let mut lacks = Vec::new();
    for (setup, side, names) in needed.into_iter().chain([of_server]) {
        let missing =
            names.into_iter().filter(|name| !setup.tls_files.iter().any(|it| it == *name));
        lacks.extend(missing.map(|name| format!("{}/{name} at the {side}", setup.tls_directory)));
    }
    lacks
}

fn files<'a>(
    setup: &'a Setup,
    names: &'a [Option<&str>],
) -> impl Iterator<Item = &'a CertificateFile> {
    setup.certificates.iter().filter(|file| names.contains(&Some(file.name.as_str())))
}

/// When it ends, if it is valid by this clock of its host; or what is wrong.
fn dated(file: &CertificateFile, clock_ns: i64) -> Result<Option<i64>, String> {
    let certificate = match (&file.certificate, &file.unreadable) {
        (Some(certificate), _) => certificate,
        (None, Some(why)) => return Err(format!("cannot be used: {why}")),
        (None, None) => return Ok(None),
    };
    let now = clock_ns.div_euclid(1_000_000_000);
    if now < certificate.not_before {
        return Err(format!("is not valid before {}", date(certificate.not_before)));
    }
    if now > certificate.not_after {
        return Err(format!("has expired on {}", date(certificate.not_after)));
    }
    Ok(Some(certificate.not_after))
}

fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(
        |_| format!("second {seconds} since 1970"),
        |time| time.strftime("%F").to_string(),
    )
}

/// The source verifies that the certificate is for the name to which it sends guests.
fn other_name(destination: &Setup, way: &Seen<super::NetworkPath>) -> Option<String> {
    let host = without_port(&way.as_ref().ok()?.host);
    let file = files(destination, &[Some(SERVER_CERTIFICATE)]).next()?;
    let names = &file.certificate.as_ref()?.names;
    (!names.iter().any(|name| is_for(name, host))).then(|| {
        let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
        let directory = &destination.tls_directory;
        format!(
            "{directory}/{SERVER_CERTIFICATE} at the destination is for {names}, and guests are sent to {host}"
        )
    })
}

/// An address in brackets has none.
fn without_port(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether a certificate's name is this host's: an asterisk stands for its first part.
fn is_for(name: &str, host: &str) -> bool {
    if let Ok(address) = host.parse::<IpAddr>() {
        return name.parse::<IpAddr>().is_ok_and(|known| known == address);
    }
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    match (name.strip_prefix("*."), host.split_once('.')) {
        (Some(domain), Some((_, rest))) => {
            domain.contains('.') && domain.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_for;

    #[test]
    fn names_of_certificates_stand_for_hosts() {
        for (name, host, expected) in [
            ("host-b", "host-b", true),
            ("Host-B", "host-b", true),
            ("host-b", "host-b.example.org", false),
            ("*.example.org", "host-b.example.org", true),
            ("*.example.org", "a.b.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.org", "example.org", false),
            ("192.0.2.2", "192.0.2.2", true),
            ("2001:db8::2", "2001:db8:0::2", true),
            ("host-b", "192.0.2.2", false),
        ] {
            assert_eq!(is_for(name, host), expected, "{name} for {host}");
        }
    }
}
