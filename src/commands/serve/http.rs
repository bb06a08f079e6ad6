//! Serves one text over HTTP: `GET` and `HEAD` of `/metrics`, one client after the other, each a few seconds at most.
//!
//! It runs within the sandbox, on a socket that was made before. A page that a browser has loaded from elsewhere must not
//! be able to read the text, so requests must name this host by an address or as `localhost` (DNS rebinding).

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use qcow::Error;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::listen::is_this_host;
use crate::output::warn_line;

/// A client has asked, and has its answer, by then.
const TIME: Duration = Duration::from_secs(5);
/// The longest head of a request, in bytes.
const HEAD: usize = 16 << 10;
/// After an accept that failed, such as for want of descriptors.
const REST: Duration = Duration::from_millis(100);

/// A port at which a text can be read.
#[derive(Debug)]
pub(super) struct TextServer {
    listener: TcpListener,
    address: SocketAddr,
    /// Something can be read from the second as soon as the first is shut.
    stop: (UnixStream, UnixStream),
}

impl TextServer {
    /// Listens, and warns if other machines can connect.
    ///
    /// # Errors
    /// If that address cannot be had.
    pub(super) fn open(address: SocketAddr) -> Result<Self, Error> {
        let cannot = |error| {
            Error::io(format!("could not listen at {address}"), error)
                .hint("choose another port, or 0 for one that is free")
        };
        let listener = TcpListener::bind(address).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        if !address.ip().is_loopback() {
            warn_line(format!(
                "any client that reaches {address} can read the names of exports and what their clients do; there \
                 is no password and no encryption"
            ));
        }
        let stop = UnixStream::pair().map_err(cannot)?;
        Ok(Self { listener, address, stop })
    }

    /// Where the text can be read.
    pub(super) fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }

    /// Answers clients until [`stop`](Self::stop) is called.
    pub(super) fn serve(&self, text: impl Fn() -> String) {
        let until = &self.stop.1;
        while wait(&self.listener, PollFlags::IN, until, None).is_ok() {
            match self.listener.accept() {
                // Whatever is wrong with a client is its affair.
                Ok((stream, _)) => drop(answer(&stream, until, &text)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => drop(wait(&self.listener, PollFlags::empty(), until, Some(REST))),
            }
        }
    }

    /// Ends [`serve`](Self::serve), whatever a client is doing.
    pub(super) fn stop(&self) {
        // It can only be shut already.
        let _ = self.stop.0.shutdown(Shutdown::Both);
    }
}

/// Waits until `fd` is ready, but not for longer than `time`.
///
/// # Errors
/// If the time is over, or something can be read from `until`.
fn wait(
    fd: &impl AsFd,
    flags: PollFlags,
    until: &impl AsFd,
    time: Option<Duration>,
) -> io::Result<()> {
    let mut polled = [PollFd::new(until, PollFlags::IN), PollFd::new(fd, flags)];
    let time = time.and_then(|time| Timespec::try_from(time).ok());
    let ready = match poll(&mut polled, time.as_ref()) {
        Err(rustix::io::Errno::INTR) => return Ok(()),
        result => result?,
    };
    let ended = polled.first().is_some_and(|until| !until.revents().is_empty());
    if ready == 0 || ended { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
}

fn answer(stream: &TcpStream, until: &impl AsFd, text: impl Fn() -> String) -> io::Result<()> {
    // By this call: the sandbox refuses the one of `set_nonblocking`.
    let flags = rustix::fs::fcntl_getfl(stream)?;
    rustix::fs::fcntl_setfl(stream, flags | OFlags::NONBLOCK)?;
    let begin = Instant::now();
    let patience = |flags| {
        let left = TIME.checked_sub(begin.elapsed()).ok_or(io::ErrorKind::TimedOut)?;
        wait(stream, flags, until, Some(left))
    };
    let mut stream = stream;
    let mut head = Vec::new();
    let mut piece = [0; 2048];
    while !is_whole(&head) {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(len) => head.extend(piece.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => patience(PollFlags::IN)?,
            Err(error) => return Err(error),
        }
        if head.len() > HEAD {
            break;
        }
    }
    let reply = reply(&head, text);
    let mut left = reply.as_bytes();
    while !left.is_empty() {
        match stream.write(left) {
            Ok(len) => left = left.get(len..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => patience(PollFlags::OUT)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_whole(head: &[u8]) -> bool {
    head.windows(4).any(|end| end == b"\r\n\r\n")
}

/// The reply to a request with this head.
fn reply(head: &[u8], text: impl Fn() -> String) -> String {
    let head = std::str::from_utf8(head).ok().filter(|_| is_whole(head));
    let mut lines = head.unwrap_or_default().split("\r\n");
    let request = lines.next().unwrap_or_default().split(' ').collect::<Vec<_>>();
    let hosts = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then_some(value.trim())
    });
    let hosts = hosts.collect::<Vec<_>>();
    let (status, body) = match (&request[..], &hosts[..]) {
        (["GET" | "HEAD", path, "HTTP/1.1" | "HTTP/1.0"], [host]) => {
            match (is_this_host(without_port(host)), *path) {
                (false, _) => (
                    "421 Misdirected Request",
                    "The request does not name this host by an address.\n".to_owned(),
                ),
                (true, "/metrics") => ("200 OK", text()),
                (true, _) => ("404 Not Found", "There is /metrics only.\n".to_owned()),
            }
        }
        ([_, _, "HTTP/1.1" | "HTTP/1.0"], [_]) => {
            ("405 Method Not Allowed", "Only GET and HEAD.\n".to_owned())
        }
        _ => ("400 Bad Request", "That is not HTTP/1.1.\n".to_owned()),
    };
    let shown = if request.first() == Some(&"HEAD") { "" } else { &body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nAllow: GET, HEAD\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n{shown}",
        body.len()
    )
}

/// The host in `host:port` and `[address]:port`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> String {
        let reply = reply(head.as_bytes(), || "text\n".to_owned());
        reply.split(' ').nth(1).unwrap().to_owned()
    }

    #[test]
    fn only_requests_that_name_this_host_by_an_address_are_answered() {
        for host in ["127.0.0.1:9178", "127.0.0.1", "[::1]:80", "LocalHost:1"] {
            assert_eq!(status(&format!("GET /metrics HTTP/1.1\r\nhost: {host}\r\n\r\n")), "200");
        }
        for host in ["evil.example", "localhost.evil.example:80", "x@127.0.0.1", "", ":80"] {
            assert_eq!(status(&format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n")), "421");
        }
        let two = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n";
        assert_eq!(status(two), "400");
    }

    #[test]
    fn other_paths_methods_and_noise_are_refused() {
        let of = |line: &str| status(&format!("{line}\r\nHost: 127.0.0.1\r\n\r\n"));
        assert_eq!(of("GET / HTTP/1.1"), "404");
        assert_eq!(of("POST /metrics HTTP/1.1"), "405");
        assert_eq!(of("GET /metrics"), "400");
        assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n"), "400");
        let head = reply(b"HEAD /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", || "text\n".into());
        assert!(head.contains("Content-Length: 5\r\n") && head.ends_with("\r\n\r\n"));
    }
}
