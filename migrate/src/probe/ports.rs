//! Whether one host can be reached by another at the ports that guests arrive at: one end listens, and the other
//! tries. A port without a listener and a filter that refuses look the same, so a process has to listen.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// So long is an answer waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// What was tried has arrived by then, or somewhere else.
const ARRIVAL: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Ears at some ports of this host.
#[derive(Debug, Default)]
pub(crate) struct Ears(Vec<(u16, TcpListener)>);

impl Ears {
    /// Listens at the lowest and at the highest free port from `first` to `last`.
    pub(crate) fn at(first: u16, last: u16) -> Self {
        let listen = |port: u16| Some((port, bind(port)?));
        let low = (first..=last).find_map(listen);
        let above = low.as_ref().map_or(last, |(port, _)| *port);
        let high = (above..=last).rev().take_while(|port| *port > above).find_map(listen);
        Self(low.into_iter().chain(high).collect())
    }

    /// The ports.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.0.iter().map(|(port, _)| *port).collect()
    }

    /// The ports at which a connection arrived.
    pub(crate) fn heard(self) -> Vec<u16> {
        let came = |(port, ear): &(u16, TcpListener)| {
            let mut hosts = [PollFd::new(ear, PollFlags::IN)];
            (poll(&mut hosts, Some(&ARRIVAL)).is_ok_and(|ready| ready > 0)).then_some(*port)
        };
        self.0.iter().filter_map(came).collect()
    }
}

fn bind(port: u16) -> Option<TcpListener> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let old = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    TcpListener::bind(any).or_else(|_| TcpListener::bind(old)).ok()
}

/// Why `host` cannot be reached at `port` from here; `None` if it can.
pub(crate) fn reach(host: &str, port: u16) -> Option<String> {
    let addresses: Vec<_> = match (host, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Some(format!("'{host}' has no address: {error}")),
    };
    let until = Instant::now().checked_add(PATIENCE);
    let mut why = format!("'{host}' has no address");
    for address in addresses {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let Some(left) = left.filter(|left| !left.is_zero()) else { break };
        match TcpStream::connect_timeout(&address, left) {
            Ok(_) => return None,
            Err(error) => why = format!("{address}: {error}"),
        }
    }
    Some(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few ports in a row that were free just now; each test looks in a place of its own.
    fn range(from: u16) -> (u16, u16) {
        (from..from.saturating_add(3000))
            .step_by(7)
            .map(|first| (first, first.saturating_add(3)))
            .find(|(first, last)| (*first..=*last).all(|port| bind(port).is_some()))
            .unwrap()
    }

    #[test]
    fn whoever_comes_is_heard_and_only_there() {
        let (first, last) = range(20_000);
        let ears = Ears::at(first, last);
        assert_eq!(ears.ports(), [first, last]);
        assert_eq!(reach("localhost", first), None);
        assert_eq!(ears.heard(), [first]);
        // No process listens any more.
        assert!(reach("localhost", last).is_some());
    }

    #[test]
    fn ports_that_are_taken_are_left_alone() {
        let (first, last) = range(25_000);
        let taken = [bind(first), bind(last)];
        assert_eq!(
            Ears::at(first, last).ports(),
            [first.saturating_add(1), last.saturating_sub(1)]
        );
        drop(taken);
        assert_eq!(Ears::at(first, first).ports(), [first]);
        assert_eq!(Ears::at(last, first).ports(), [0_u16; 0]);
    }

    #[test]
    fn a_name_without_an_address_is_told() {
        let why = reach("host.invalid", 1).unwrap();
        assert!(why.contains("'host.invalid'"), "{why}");
    }
}
