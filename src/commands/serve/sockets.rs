//! Where clients connect, and how they name it.

use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use nbd::Listener;
use qcow::Error;

/// The sockets of a server.
#[derive(Debug)]
pub(super) struct Sockets(Vec<Listener>);

impl Sockets {
    /// Makes those that were asked for, and takes those that were handed over.
    pub(super) fn open(paths: &[PathBuf], addresses: &[String]) -> Result<Self, Error> {
        let mut sockets = handed_over()?;
        for path in paths {
            let failed = |error| Error::io("could not listen", error).file(path);
            sockets.push(Listener::unix(path).map_err(failed)?);
        }
        for address in addresses {
            let failed = |error| Error::io(format!("could not listen on {address}"), error);
            sockets.push(Listener::tcp(address.as_str()).map_err(failed)?);
        }
        if sockets.is_empty() {
            return Err(Error::usage("there is nothing to listen on")
                .hint("give --socket PATH or --listen ADDRESS:PORT"));
        }
        Ok(Self(sockets))
    }

    pub(super) fn listeners(&self) -> &[Listener] {
        &self.0
    }

    /// How clients name these exports, on each socket.
    pub(super) fn uris(&self, names: &[&str], encrypted: bool) -> Vec<String> {
        let scheme = if encrypted { "nbds" } else { "nbd" };
        let uri = |socket: &Listener, name: &str| {
            let name = encoded(name.as_bytes());
            if socket.is_unix() {
                let path = PathBuf::from(socket.name());
                let path = std::path::absolute(&path).unwrap_or(path);
                format!("{scheme}+unix:///{name}?socket={}", encoded(bytes(&path)))
            } else {
                format!("{scheme}://{}/{name}", socket.name())
            }
        };
        self.0
            .iter()
            .flat_map(|socket| match names {
                // The only one needs no name.
                [_] => vec![uri(socket, "")],
                names => names.iter().map(|name| uri(socket, name)).collect(),
            })
            .collect()
    }
}

/// Those of systemd, or of a client that started this program.
fn handed_over() -> Result<Vec<Listener>, Error> {
    let mut given = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..given.len() {
        let unix = given.take_unix_listener(index).ok().flatten().map(Listener::from);
        let socket = match unix {
            Some(socket) => socket,
            None => match given.take_tcp_listener(index) {
                Ok(Some(socket)) => Listener::from(socket),
                _ => {
                    return Err(Error::usage(format!(
                        "descriptor {index} of LISTEN_FDS is not a socket to listen on"
                    )));
                }
            },
        };
        sockets.push(socket);
    }
    Ok(sockets)
}

fn bytes(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

/// A part of a URI: all but unreserved characters and slashes by their numbers.
fn encoded(text: &[u8]) -> String {
    let mut out = String::new();
    for byte in text {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(*byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_question_marks_survive_in_a_uri() {
        assert_eq!(encoded("/a b/c?d%.sock".as_bytes()), "/a%20b/c%3Fd%25.sock");
    }
}
