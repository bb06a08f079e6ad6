//! The stream that a connection runs over.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

/// How long sending may wait for the other side to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: [`WouldBlock`](io::ErrorKind::WouldBlock).
    No,
    /// Until then: [`TimedOut`](io::ErrorKind::TimedOut).
    Until(Instant),
    /// As long as the connection lasts.
    Forever,
}

/// A stream in both directions. One thread receives and one sends, at the same time; any may end it.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Receives at least one byte, or none at the end of the stream. Waits until `deadline` at most.
    ///
    /// # Errors
    /// [`TimedOut`](io::ErrorKind::TimedOut), or what broke the stream.
    fn receive(&self, buf: &mut [u8], deadline: Option<Instant>) -> io::Result<usize>;

    /// Takes at least one byte of those in `bufs`, and gives back how many. Never raises a signal.
    ///
    /// # Errors
    /// As [`Wait`] says, or what broke the stream.
    fn send(&self, bufs: &[IoSlice<'_>], wait: Wait) -> io::Result<usize>;

    /// Sends what was taken and is still here.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    fn flush(&self, wait: Wait) -> io::Result<()> {
        let _ = wait;
        Ok(())
    }

    /// Waits until something can be sent.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    fn wait_to_send(&self, wait: Wait) -> io::Result<()>;

    /// Receives no more: who waits for bytes finds the end of the stream.
    fn stop_receiving(&self);

    /// Ends the stream in both directions, now.
    fn cut(&self);

    /// Whether the other side has ended the stream, even if bytes that it has sent are still to be received.
    fn peer_is_gone(&self) -> bool;
}

/// A connected stream socket: of a unix socket or of TCP.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self(stream.into())
    }
}

impl From<TcpStream> for Socket {
    /// Sends small replies at once, and finds out whether the other machine still is there.
    fn from(stream: TcpStream) -> Self {
        // Without these it works too.
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
        Self(stream.into())
    }
}

impl From<OwnedFd> for Socket {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl Socket {
    /// Waits for one of `events` until `deadline`.
    fn wait(&self, events: PollFlags, deadline: Instant) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match poll(&mut [PollFd::new(&self.0, events)], Some(&timespec(left))) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A duration as the system takes it.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    let secs = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec: secs, tv_nsec: duration.subsec_nanos().into() }
}

impl Transport for Socket {
    fn receive(&self, buf: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        if let Some(deadline) = deadline {
            self.wait(PollFlags::IN, deadline)?;
        }
        let received = retry_on_intr(|| rustix::net::recv(&self.0, &mut *buf, RecvFlags::empty()))?;
        Ok(received.0)
    }

    fn send(&self, bufs: &[IoSlice<'_>], wait: Wait) -> io::Result<usize> {
        loop {
            let mut flags = SendFlags::NOSIGNAL;
            flags.set(SendFlags::DONTWAIT, wait != Wait::Forever);
            let mut none = SendAncillaryBuffer::default();
            match (rustix::net::sendmsg(&self.0, bufs, &mut none, flags), wait) {
                (Err(Errno::INTR), _) => {}
                (Err(Errno::AGAIN), Wait::Until(deadline)) => {
                    self.wait(PollFlags::OUT, deadline)?;
                }
                (result, _) => return Ok(result?),
            }
        }
    }

    fn wait_to_send(&self, wait: Wait) -> io::Result<()> {
        match wait {
            Wait::No => Err(io::ErrorKind::WouldBlock.into()),
            Wait::Until(deadline) => self.wait(PollFlags::OUT, deadline),
            Wait::Forever => {
                let mut polled = [PollFd::new(&self.0, PollFlags::OUT)];
                retry_on_intr(|| poll(&mut polled, None))?;
                Ok(())
            }
        }
    }

    fn stop_receiving(&self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Read);
    }

    fn cut(&self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }

    fn peer_is_gone(&self) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        match retry_on_intr(|| poll(&mut polled, Some(&now))) {
            Ok(_) => polled.iter().any(|fd| fd.revents().intersects(gone)),
            Err(_) => true,
        }
    }
}
