//! `serve` before clients that mean no good: names and lengths that lie, floods, and ends in the middle of a negotiation.
//! The holes that others had there are named by their numbers.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fixtures::{Scratch, needs_qemu, qemu};
use rustix::process::Signal;

use crate::serve::Served;

const INFO: u32 = 6;
const GO: u32 = 7;
const SET_META_CONTEXT: u32 = 10;

/// A connection whose greeting is done.
fn connect(scratch: &Scratch) -> UnixStream {
    let mut stream = UnixStream::connect(scratch.path("our.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    stream
}

/// An option that says it has `len` bytes.
fn option(code: u32, len: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT".as_slice(), &code.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

/// The data of an option whose name says it has `len` bytes.
fn named(len: u32, name: &[u8]) -> Vec<u8> {
    [&len.to_be_bytes(), name, &[0, 0]].concat()
}

/// What the server does with these bytes: the kind of its first reply, or nothing if it hangs up.
fn answer(scratch: &Scratch, bytes: &[u8]) -> Option<u32> {
    let mut stream = connect(scratch);
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    let kind = reply.get(12..16)?;
    Some(u32::from_be_bytes(kind.try_into().unwrap()))
}

/// CVE-2022-26495, CVE-2022-26496 and CVE-2017-15118: lengths of names that pass their option, memory, or 32 bits.
/// CVE-2017-15119: options that have no end.
#[test]
fn cve_2022_26495_names_and_options_whose_lengths_lie_are_refused_and_the_server_lives() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "1M");
    let ours = Served::start(&scratch, "", &[&image]);
    for code in [INFO, GO, SET_META_CONTEXT] {
        for len in [9, 4096, 65535, 0x7fff_ffff, 0xffff_fff0, 0xffff_ffff] {
            let data = named(len, b"disk");
            let kind = answer(&scratch, &option(code, data.len() as u32, &data));
            assert!(kind.is_none_or(|kind| kind >> 31 == 1), "{code}, {len}: {kind:x?}");
        }
        for len in [4097, 5000, 60_000] {
            let data = named(len, &vec![b'x'; len as usize]);
            let kind = answer(&scratch, &option(code, data.len() as u32, &data)).unwrap();
            assert_eq!(kind >> 31, 1, "{code}, {len}: {kind:x}");
        }
    }
    for code in 0..16 {
        for len in [0x8000_0000, 0xffff_fffb, 0xffff_ffff] {
            let kind = answer(&scratch, &option(code, len, &[0; 4096]));
            assert!(kind.is_none_or(|kind| kind >> 31 == 1), "{code}, {len}: {kind:x?}");
        }
    }
    let name = vec![b'x'; 100_000];
    assert_eq!(answer(&scratch, &option(1, 100_000, &name)), None, "the oldest request for a name");
    qemu::qemu_io("raw", &ours.uri, &["write -P 1 0 64k", "read -P 1 0 64k"]);
    assert_eq!(ours.end(), Some(0));
    qemu::assert_clean(&image);
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Resident memory in KiB.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// CVE-2017-7539 and CVE-2017-9524: clients that go in the middle of a negotiation.
#[test]
fn cve_2017_9524_ten_thousand_clients_that_go_early_leave_nothing_behind() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "1M");
    let ours = Served::start(&scratch, "", &[&image]);
    let whole = {
        let data = named(0, b"");
        [3_u32.to_be_bytes().to_vec(), option(GO, data.len() as u32, &data)].concat()
    };
    let flood = |clients: usize| {
        for nth in 0..clients {
            let mut stream = UnixStream::connect(scratch.path("our.sock")).unwrap();
            // Anything from nothing to all of it, some waiting for the answer.
            let _ = stream.write_all(&whole[..nth % (whole.len() + 1)]);
            if nth % 7 == 0 {
                let _ = stream.read(&mut [0; 64]);
            }
        }
        qemu::qemu_io("raw", &ours.uri, &["read 0 64k"]);
    };
    let idle = descriptors(ours.pid());
    flood(500);
    let before = memory(ours.pid());
    flood(9_500);
    rig::wait_for(60, "end of all connections", || (descriptors(ours.pid()) <= idle).then_some(()));
    let grown = memory(ours.pid()).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more");
    assert_eq!(ours.end(), Some(0));
}

/// CVE-2024-7409: a server that is ended while clients are in the middle of a negotiation.
#[test]
fn cve_2024_7409_a_server_ends_while_clients_negotiate() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "1M");
    for round in 0..5 {
        let ours = Served::start(&scratch, "", &[&image]);
        qemu::qemu_io("raw", &ours.uri, &[&format!("write -P {} 0 64k", round + 1)]);
        let mut clients: Vec<_> = (0..40).map(|_| connect(&scratch)).collect();
        for (nth, client) in clients.iter_mut().enumerate() {
            let data = named(0, b"");
            let bytes = option(GO, data.len() as u32, &data);
            client.write_all(&bytes[..nth % bytes.len()]).unwrap();
        }
        ours.signal(Signal::TERM);
        // Some go while it ends.
        clients.truncate(20);
        assert_eq!(ours.wait(), Some(0));
        qemu::assert_clean(&image);
        qemu::qemu_io("qcow2", &image, &[&format!("read -P {} 0 64k", round + 1)]);
    }
}
