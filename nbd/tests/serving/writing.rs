//! Disks that are written to, and connections that die meanwhile.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use nbd::wire::{Command, CommandFlags, Errno, Headers};
use nbd::{
    Backend, Context, DiskBackend, Export, Extents, Failed, Listener, Server, ServerOptions,
};
use qcow::chain::OpenOptions;
use qcow::disk::{Disk, WriteOptions};

use crate::client::Client;
use crate::{ALL, NONE, pattern, qcow2, server};

#[test]
fn what_is_written_in_pieces_of_every_size_is_read_again() {
    for headers in ALL {
        let server = server(qcow2(8 << 20));
        let mut client = Client::of(&server, headers, "", &[]);
        let mut expected = vec![0; 8 << 20];
        for (at, len) in
            [(5, 1), (4096, 4096), (70_000, 65_536), (1 << 20, 200_001), (3 << 20, 5 << 20)]
        {
            let payload = pattern(len);
            client.write(at as u64, &payload).unwrap();
            expected[at..at + len].copy_from_slice(&payload);
        }
        let cookie = client.ask_write(CommandFlags::FUA, 0, b"durable");
        client.answer(cookie, 0, 0).unwrap();
        expected[..7].copy_from_slice(b"durable");
        client.change(Command::WriteZeroes, CommandFlags::NO_HOLE, 10_000, 100_000).unwrap();
        expected[10_000..110_000].fill(0);
        client.change(Command::Trim, NONE, 4 << 20, 1 << 20).unwrap();
        expected[4 << 20..5 << 20].fill(0);
        client.change(Command::Flush, NONE, 0, 0).unwrap();
        // Another connection sees the same.
        let mut other = Client::of(&server, headers, "", &[]);
        for client in [&mut client, &mut other] {
            assert!(client.read(0, 8 << 20).unwrap() == expected, "{headers:?}");
        }
    }
}

/// A disk whose writes of ones wait until they are let through.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    began: AtomicBool,
    bytes: Mutex<Vec<u8>>,
}

#[derive(Debug)]
struct Gated(Arc<Gate>);

impl Backend for Gated {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn can_write(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<(), Failed> {
        let at = at as usize;
        buf.copy_from_slice(&self.0.bytes.lock().unwrap()[at..at + buf.len()]);
        Ok(())
    }

    fn extents(&self, _: &Context, _: u64, len: u64, found: &mut Extents) -> Result<(), Failed> {
        found.push(len, 0);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: u64) -> Result<(), Failed> {
        if buf.first() == Some(&1) {
            self.0.began.store(true, SeqCst);
            let mut open = self.0.open.lock().unwrap();
            while !*open {
                open = self.0.opened.wait(open).unwrap();
            }
        }
        let at = at as usize;
        self.0.bytes.lock().unwrap()[at..at + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn close(self: Box<Self>) -> qcow::Result<()> {
        Err(qcow::Error::usage("the disk went away"))
    }
}

fn gated() -> (Arc<Gate>, Export) {
    let gate = Arc::new(Gate { bytes: Mutex::new(vec![0; 1 << 20]), ..Gate::default() });
    (Arc::clone(&gate), Export::new("disk", Box::new(Gated(gate))))
}

/// W-91: a write that outlives its connection is finished, or is not begun, before the client is let in again.
#[test]
fn a_write_of_a_dead_connection_never_lands_on_what_its_client_writes_later() {
    for len in [4096, 200_000] {
        let (gate, export) = gated();
        let server = server(export);
        let mut dies = Client::of(&server, Headers::Structured, "", &[]);
        dies.ask_write(NONE, 0, &vec![1; len]);
        // One that has not begun yet either.
        dies.ask_write(NONE, 300_000, &vec![1; len]);
        while !gate.began.load(SeqCst) {
            thread::yield_now();
        }
        drop(dies);
        let again = {
            let server = Arc::clone(&server);
            thread::spawn(move || {
                let mut client = Client::of(&server, Headers::Structured, "", &[]);
                client.write(0, &vec![2; len]).unwrap();
                client.write(300_000, &vec![2; len]).unwrap();
            })
        };
        thread::sleep(Duration::from_millis(100));
        assert!(!again.is_finished(), "the client was let in while its old write was in flight");
        *gate.open.lock().unwrap() = true;
        gate.opened.notify_all();
        again.join().unwrap();
        let bytes = gate.bytes.lock().unwrap();
        assert!(bytes[..len].iter().all(|byte| *byte == 2));
        assert!(bytes[300_000..300_000 + len].iter().all(|byte| *byte == 2));
    }
}

/// W-92: zeroing that would not be fast is refused and has changed nothing, also if only its end is slow.
#[test]
fn fast_zeroing_that_is_refused_has_changed_nothing() {
    let server = server(qcow2(4 << 20));
    let mut client = Client::of(&server, Headers::Structured, "", &["base:allocation"]);
    let bytes = pattern(4 << 20);
    client.write(0, &bytes).unwrap();
    let fast = CommandFlags::FAST_ZERO;
    for (at, len) in [(0, 3 * 65536 + 512), (512, 3 * 65536), (100, 10), (65536, 65535)] {
        for flags in [fast, fast | CommandFlags::NO_HOLE] {
            let refused = client.change(Command::WriteZeroes, flags, at, len);
            assert_eq!(refused, Err(Errno::Unsupported), "{len} at {at}");
            assert!(client.read(0, 4 << 20).unwrap() == bytes, "{len} at {at} changed something");
        }
    }
    client.change(Command::WriteZeroes, fast, 65536, 131_072).unwrap();
    assert_eq!(client.status(NONE, 0, 1 << 20)[1], (131_072, 3));
    // What is zero already is fast, wherever it ends.
    client.change(Command::WriteZeroes, fast, 65536 + 100, 70_000).unwrap();
}

/// W-94: block status never says that something is zero which an answered write put there.
#[test]
fn status_is_never_older_than_an_answered_write() {
    let server = server(qcow2(64 << 20));
    let mut writer = Client::of(&server, Headers::Structured, "", &[]);
    let mut reader = Client::of(&server, Headers::Structured, "", &["base:allocation"]);
    let noise = {
        let server = Arc::clone(&server);
        thread::spawn(move || {
            let mut client = Client::of(&server, Headers::Structured, "", &[]);
            for n in 0..300_u64 {
                let at = (n * 37 % 512) * 65536;
                client.change(Command::WriteZeroes, NONE, at, 65536).unwrap();
                client.write(at, &[5; 512]).unwrap();
            }
        })
    };
    for n in 0..300_u64 {
        let at = (512 + n) * 65536;
        writer.write(at + 512, &[7; 512]).unwrap();
        let cookie = reader.ask(Command::BlockStatus, NONE, 0, 64 << 20);
        let answer = reader.answer(cookie, 0, 0).unwrap();
        let mut end = 0;
        let found = answer.extents[0].1.iter().find(|extent| {
            end += extent.len;
            end > at + 512
        });
        assert_eq!(found.unwrap().flags & 2, 0, "cluster {n} is said to be zero");
    }
    noise.join().unwrap();
}

/// W-95: a read-only disk takes the payload off the stream and says EPERM.
#[test]
fn writing_to_a_read_only_disk_is_refused_and_the_next_request_is_understood() {
    let bytes = pattern(1 << 20);
    let server = server(crate::raw(bytes.clone()));
    for headers in ALL {
        let mut client = Client::of(&server, headers, "", &[]);
        // A payload that looks like requests.
        let mut evil = Vec::new();
        for cookie in 100..400 {
            let request = nbd::wire::Request {
                command: Command::Disconnect,
                flags: NONE,
                cookie,
                offset: 0,
                len: 0,
            };
            request.write(headers, &mut evil);
        }
        assert_eq!(client.write(0, &evil), Err(Errno::Permission));
        for command in [Command::Trim, Command::WriteZeroes] {
            assert_eq!(client.change(command, NONE, 0, 4096), Err(Errno::Permission));
        }
        assert_eq!(client.change(Command::Flush, NONE, 0, 0), Ok(()));
        assert!(client.read(0, 5000).unwrap() == bytes[..5000]);
    }
    let refused = server.stats().of(Command::Write);
    assert_eq!((refused.errors, refused.requests), (3, 0));
    let stats = server.exports()[0].stats();
    assert_eq!((stats.errors(), stats.of(Command::Read).requests, stats.served()), (9, 3, 3));
}

/// W-96: a payload that is too long is never taken for requests.
#[test]
fn a_payload_that_is_too_long_is_taken_off_or_ends_the_connection() {
    let server = server(qcow2(256 << 20));
    let mut client = Client::of(&server, Headers::Structured, "", &[]);
    assert_eq!(client.write(0, &vec![3; 33 << 20]), Err(Errno::Invalid));
    assert_eq!(client.read(0, 4096), Ok(vec![0; 4096]));
    client.write(0, &vec![3; 32 << 20]).unwrap();
    assert_eq!(client.read(4096, 4096), Ok(vec![3; 4096]));
    let mut client = Client::of(&server, Headers::Extended, "", &[]);
    client.ask(Command::Write, CommandFlags::PAYLOAD_LEN, 0, 1 << 40);
    assert!(client.is_cut());
    client.vanish();
}

/// W-97: a client that goes while it is sent to harms nobody.
#[test]
fn a_client_that_goes_in_the_middle_of_a_reply_harms_no_other() {
    let bytes = pattern(8 << 20);
    let server = server(crate::raw(bytes.clone()));
    let mut stays = Client::of(&server, Headers::Structured, "", &[]);
    for _ in 0..20 {
        let mut goes = Client::of(&server, Headers::Structured, "", &[]);
        for _ in 0..40 {
            goes.ask(Command::Read, NONE, 0, 1 << 20);
        }
        goes.vanish();
        assert!(stays.read(0, 3 << 20).unwrap() == bytes[..3 << 20]);
    }
}

/// W-99: the size of an export is that of its beginning.
#[test]
fn a_file_that_grows_under_the_server_does_not_change_the_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![9; 65536]).unwrap();
    let open = OpenOptions::default().format(qcow::chain::Format::Raw);
    let disk = Disk::open(&path, &open, WriteOptions::new()).unwrap();
    let server = server(Export::new("disk", Box::new(DiskBackend::new(disk))));
    let mut client = Client::of(&server, Headers::Structured, "", &["base:allocation"]);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(client.read(65536, 512), Err(Errno::Invalid));
    assert_eq!(client.write(65536, &[1; 512]), Err(Errno::NoSpace));
    assert_eq!(client.change(Command::BlockStatus, NONE, 0, 65537), Err(Errno::Invalid));
    assert_eq!(client.status(NONE, 0, 65536), [(65536, 0)]);
}

/// W-100: when the last client is gone, everything is flushed and unlocked before the server is done; what cannot be
/// is an error.
#[test]
fn the_last_client_ends_the_server_and_a_disk_that_cannot_be_closed_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let run = |export: Export, path: &Path| {
        let options = ServerOptions::new().exit_after_last(true);
        let server = Server::new(vec![export], &options).unwrap();
        let (_end, until) = UnixStream::pair().unwrap();
        server.run(&[Listener::unix(path).unwrap()], &until).unwrap();
        server.close()
    };
    let (gate, export) = gated();
    *gate.open.lock().unwrap() = true;
    let socket = dir.path().join("socket");
    let path = socket.clone();
    let running = thread::spawn(move || run(export, &path));
    let stream = loop {
        if let Ok(stream) = UnixStream::connect(&socket) {
            break stream;
        }
        thread::yield_now();
    };
    // One that asks for nothing is no client.
    drop(UnixStream::connect(&socket).unwrap());
    let mut client = Client::over(stream);
    client.agree(Headers::Structured, "", &[]);
    assert!(!running.is_finished());
    client.write(0, &[1; 512]).unwrap();
    drop(client);
    let closed = running.join().unwrap();
    assert!(closed.unwrap_err().to_string().contains("the disk went away"));
    assert!(!socket.exists());
    assert_eq!(gate.bytes.lock().unwrap()[..512], [1; 512]);
}
