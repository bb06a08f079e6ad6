//! Where HTTP is served, and whom a request may mean by its host.

use std::net::{IpAddr, SocketAddr};

/// Where to listen: a port of this machine alone, or an address that the user gave.
///
/// # Errors
/// In words, what is expected.
pub(crate) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    let local = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    local.as_deref().unwrap_or(text).parse().map_err(|_| {
        "expected PORT, or ADDRESS:PORT with an IP address, such as 127.0.0.1:9177 or [::1]:9177"
            .to_owned()
    })
}

/// Whether a request that names this host means this machine: an address cannot be bent to lead elsewhere; a name can
/// (DNS rebinding).
pub(crate) fn is_this_host(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    address.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_one_of_this_machine() {
        let parsed = |text: &str| parse_listen(text).map(|address| address.to_string());
        assert_eq!(parsed("9177").unwrap(), "127.0.0.1:9177");
        assert_eq!(parsed("localhost:0").unwrap(), "127.0.0.1:0");
        assert_eq!(parsed("[::1]:9177").unwrap(), "[::1]:9177");
        assert_eq!(parsed("0.0.0.0:9177").unwrap(), "0.0.0.0:9177");
        for wrong in ["", "70000", "example.com:80", ":80", "127.0.0.1"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
