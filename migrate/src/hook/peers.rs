//! Which hosts are connected to this host's libvirt: one of them is the source. Read from `/proc/net/tcp`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ports of libvirtd: plain and TLS.
const PORTS: [u16; 2] = [16509, 16514];

/// Connections that are looked at, and addresses that are told.
const MOST_LINES: usize = 65_536;
const MOST: usize = 8;

/// `TCP_ESTABLISHED`.
const ESTABLISHED: &str = "01";

/// The other ends of connections to libvirtd's ports in the text of `/proc/net/tcp` or `tcp6`, each once. An address of
/// this host's own end is left out, because a hook must not call its own libvirtd.
pub fn connected(table: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for line in table.lines().skip(1).take(MOST_LINES) {
        let mut words = line.split_whitespace().skip(1);
        let (Some(local), Some(remote), Some(state)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let (Some((own, port)), Some((other, _))) = (end(local), end(remote)) else { continue };
        let wanted = state == ESTABLISHED && PORTS.contains(&port) && own != other;
        if wanted && !other.is_loopback() && !found.contains(&other) && found.len() < MOST {
            found.push(other);
        }
    }
    found
}

/// An address and a port as the kernel writes them: words of the address in the machine's byte order.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word =
        |digits: &str| Some(u32::from_be(u32::from_str_radix(digits, 16).ok()?).to_be_bytes());
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(address)?)),
        32 => {
            let mut bytes = [0; 16];
            for (part, place) in bytes.chunks_exact_mut(4).enumerate() {
                let start = part.checked_mul(8)?;
                place.copy_from_slice(&word(address.get(start..start.checked_add(8)?)?)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some((address, port))
}
