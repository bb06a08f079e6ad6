//! What an X.509 certificate in a PEM file says of its time and its names (RFC 5280, sections 4.1 and 4.2.1.6). Signatures
//! are not verified: the TLS library does that.

use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::facts::Certificate;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Tags of ASN.1's distinguished encoding.
mod tag {
    pub(super) const OCTETS: u8 = 0x04;
    pub(super) const OBJECT: u8 = 0x06;
    pub(super) const UTC_TIME: u8 = 0x17;
    pub(super) const GENERALIZED_TIME: u8 = 0x18;
    pub(super) const SEQUENCE: u8 = 0x30;
    pub(super) const SET: u8 = 0x31;
    pub(super) const DNS_NAME: u8 = 0x82;
    pub(super) const IP_ADDRESS: u8 = 0x87;
    pub(super) const VERSION: u8 = 0xa0;
    pub(super) const EXTENSIONS: u8 = 0xa3;
}

/// The object identifiers 2.5.29.17 and 2.5.4.3.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The first certificate of a PEM file, which is the owner's where others follow.
///
/// # Errors
/// In words, what is wrong with the file.
pub(super) fn parse(text: &str) -> Result<Certificate, String> {
    let (_, rest) = text.split_once(BEGIN).ok_or("it has no certificate in PEM form")?;
    let (body, _) = rest.split_once(END).ok_or("it ends in the middle of a certificate")?;
    let bytes = base64(body).ok_or("its certificate is not in base64")?;
    certificate(&bytes).ok_or_else(|| "its certificate is not understood".to_owned())
}

fn certificate(bytes: &[u8]) -> Option<Certificate> {
    let mut whole = Der(Der(bytes).take(tag::SEQUENCE)?);
    let mut body = Der(whole.take(tag::SEQUENCE)?);
    if body.is_next(tag::VERSION) {
        body.next()?;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        body.next()?;
    }
    let mut validity = Der(body.take(tag::SEQUENCE)?);
    let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
    let subject = body.take(tag::SEQUENCE)?;
    let mut names = Vec::new();
    while let Some((tag, content)) = body.next() {
        if tag == tag::EXTENSIONS {
            names = alternative_names(content)?;
        }
    }
    if names.is_empty() {
        names.extend(common_name(subject));
    }
    Some(Certificate { not_before, not_after, names })
}

fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut all = Der(Der(extensions).take(tag::SEQUENCE)?);
    let mut names = Vec::new();
    while let Some((_, extension)) = all.next() {
        let mut extension = Der(extension);
        if extension.take(tag::OBJECT)? != ALTERNATIVE_NAMES {
            continue;
        }
        // Whether it is critical may stand between them.
        let value = std::iter::from_fn(|| extension.next()).find(|(tag, _)| *tag == tag::OCTETS)?;
        let mut list = Der(Der(value.1).take(tag::SEQUENCE)?);
        while let Some((tag, name)) = list.next() {
            match tag {
                tag::DNS_NAME => names.push(String::from_utf8_lossy(name).into_owned()),
                tag::IP_ADDRESS => names.extend(address(name)),
                _ => {}
            }
        }
    }
    Some(names)
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(four).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| Ipv6Addr::from(sixteen).to_string())
}

/// The last one of the subject is the most specific.
fn common_name(subject: &[u8]) -> Option<String> {
    let mut sets = Der(subject);
    let mut found = None;
    while let Some(set) = sets.take(tag::SET) {
        let mut pairs = Der(set);
        while let Some(pair) = pairs.take(tag::SEQUENCE) {
            let mut pair = Der(pair);
            if pair.take(tag::OBJECT)? == COMMON_NAME {
                found = pair.next().map(|(_, name)| String::from_utf8_lossy(name).into_owned());
            }
        }
    }
    found
}

/// Seconds since 1970.
fn time((tag, content): (u8, &[u8])) -> Option<i64> {
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let text = match tag {
        // Two digits of the year: 1950 to 2049.
        tag::UTC_TIME => {
            let century = if text.get(..2)? < "50" { "20" } else { "19" };
            format!("{century}{text}")
        }
        tag::GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let civil = DateTime::strptime("%Y%m%d%H%M%S", &text).ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
}

/// What is left of a sequence of values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn is_next(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The next value, if it has this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.is_next(tag) { self.next().map(|(_, content)| content) } else { None }
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, length], rest) = self.0.split_first_chunk::<2>()?;
        let (length, rest) = match length {
            0..=0x7f => (usize::from(length), rest),
            // So many bytes of a length follow.
            0x81..=0x84 => {
                let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
                let value = digits.iter().fold(0_u64, |sum, digit| (sum << 8) | u64::from(*digit));
                (usize::try_from(value).ok()?, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut bytes) = (0_u32, 0_u32, Vec::new());
    for character in text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'=') {
        let digit = match character {
            b'A'..=b'Z' => character.checked_sub(b'A')?,
            b'a'..=b'z' => character.checked_sub(b'a')?.checked_add(26)?,
            b'0'..=b'9' => character.checked_sub(b'0')?.checked_add(52)?,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = ((bits << 6) | u32::from(digit), count.checked_add(6)?);
        if count >= 8 {
            count = count.checked_sub(8)?;
            bytes.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
        bits &= 0xfff;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST_B: &str = include_str!("certificate/host-b.pem");
    const BY_COMMON_NAME: &str = include_str!("certificate/by-common-name.pem");
    const FUTURE: &str = include_str!("certificate/future.pem");

    #[test]
    fn names_addresses_and_times_are_those_that_openssl_wrote() {
        let found = parse(HOST_B).unwrap();
        assert_eq!(found.names, ["host-b", "*.example.org", "192.0.2.2", "2001:db8::2"]);
        // 2020-01-01 and 2070-01-01.
        assert_eq!((found.not_before, found.not_after), (1_577_836_800, 3_155_760_000));
        let found = parse(BY_COMMON_NAME).unwrap();
        assert_eq!(found.names, ["host-b.example.org"]);
        assert_eq!(found.not_after, 2_524_607_999, "2049-12-31 23:59:59, as two digits");
        assert_eq!(parse(FUTURE).unwrap().not_before, 2_840_140_800, "2060-01-01");
    }

    #[test]
    fn what_is_no_certificate_is_an_error_and_nothing_else() {
        assert!(parse("").unwrap_err().contains("no certificate"));
        assert!(parse(BEGIN).unwrap_err().contains("in the middle"));
        assert!(parse(&format!("{BEGIN}\n?\n{END}")).unwrap_err().contains("base64"));
        let (_, body) = HOST_B.split_once(BEGIN).unwrap();
        let bytes = base64(body.split_once(END).unwrap().0).unwrap();
        for length in 0..bytes.len() {
            assert_eq!(certificate(&bytes[..length]), None, "{length} bytes");
        }
        // Whatever is in one, it is read to its end or refused.
        for at in 0..bytes.len() {
            for value in [0, 0x30, 0x7f, 0x84, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = certificate(&damaged);
            }
        }
    }
}
