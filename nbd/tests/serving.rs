//! The server as clients meet it, over sockets: what is asked for, what goes wrong, and traps W-91 to W-100.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]
#![allow(missing_docs, missing_debug_implementations, unreachable_pub, reason = "tests")]

#[path = "serving/client.rs"]
mod client;
#[path = "serving/examples.rs"]
mod examples;
#[path = "serving/limits.rs"]
mod limits;
#[path = "serving/power.rs"]
mod power;
#[path = "serving/writing.rs"]
mod writing;

use std::sync::Arc;

use client::Client;
use nbd::wire::{Command, CommandFlags, Errno, Headers, OptionCode};
use nbd::{ChainBackend, Context, DiskBackend, Export, Server, ServerOptions};
use qcow::chain::{Chain, Format};
use qcow::disk::{Disk, WriteOptions};
use qcow::io::MemoryStorage;
use qcow::ops::create::{CreateOptions, create};

pub const ALL: [Headers; 3] = [Headers::Simple, Headers::Structured, Headers::Extended];
pub const NONE: CommandFlags = CommandFlags::empty();

pub fn server(export: Export) -> Arc<Server> {
    Arc::new(Server::new(vec![export], &ServerOptions::new()).unwrap())
}

/// A raw disk in memory that is only read: `bytes`, and zeros.
fn raw(bytes: Vec<u8>) -> Export {
    let chain = Chain::builder().layer("memory", Arc::new(MemoryStorage::new(bytes)), Format::Raw);
    Export::new("disk", Box::new(ChainBackend::new(chain.open().unwrap())))
}

/// A QCOW2 image in memory that is written to.
pub fn qcow2(size: u64) -> Export {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    create(&path, &CreateOptions::default().size(size)).unwrap();
    let storage = Arc::new(MemoryStorage::new(std::fs::read(path).unwrap()));
    let disk = Disk::from_storage(storage, Format::Qcow2, WriteOptions::new()).unwrap();
    Export::new("disk", Box::new(DiskBackend::new(disk)))
}

/// Bytes that differ everywhere, and are nowhere zero.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251 + at / 251 % 3) as u8 + 1).collect()
}

#[test]
fn a_disk_is_read_in_pieces_of_every_size_with_and_without_chunks() {
    let mut bytes = pattern(5 << 20);
    bytes[1 << 20..(1 << 20) + 300_000].fill(0);
    let server = server(raw(bytes.clone()));
    for headers in ALL {
        let mut client = Client::of(&server, headers, "", &[]);
        for (at, len) in [
            (0, 1),
            (0, 512),
            (4095, 3),
            (100, 65536),
            (0, 65537),
            (700_000, 900_000),
            (0, 5 << 20),
        ] {
            let found = client.read(at as u64, len).unwrap();
            assert!(found == bytes[at..at + len], "{len} bytes at {at}, {headers:?}");
        }
        assert_eq!(client.read(0, 0), Ok(vec![]));
        assert_eq!(client.read((5 << 20) - 1, 2), Err(Errno::Invalid));
        assert_eq!(client.read(u64::MAX, 512), Err(Errno::Invalid));
        assert_eq!(client.read(0, 33 << 20), Err(Errno::Invalid));
        client.leave();
    }
}

#[test]
fn zeros_are_holes_and_with_df_all_comes_in_one_chunk() {
    let mut bytes = pattern(3 << 20);
    bytes[100_000..2_000_000].fill(0);
    let server = server(raw(bytes.clone()));
    let mut client = Client::of(&server, Headers::Structured, "disk", &[]);
    let mut read = |flags, len: usize| {
        let cookie = client.ask(Command::Read, flags, 0, len as u64);
        let answer = client.answer(cookie, 0, len).unwrap();
        assert!(answer.bytes == bytes[..len]);
        answer.chunks
    };
    assert_eq!(read(NONE, 1 << 20), 2);
    assert_eq!(read(CommandFlags::DF, 1 << 20), 1);
    assert!(read(NONE, 3 << 20) >= 3);
    assert_eq!(read(CommandFlags::DF, 3 << 20), 1);
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let bytes = pattern(4 << 20);
    let server = server(raw(bytes.clone()));
    let mut client = Client::of(&server, Headers::Structured, "", &[]);
    let mut receiver = client.stream.try_clone().unwrap();
    let sizes = [512, 4096, 65536, 300_000];
    let sent: Vec<_> = (0..400).map(|n: usize| (n * 7919 % 3_000_000, sizes[n % 4])).collect();
    let expected = sent.iter().map(|(_, len)| 20 + 8 + len).sum::<usize>();
    let reading = std::thread::spawn(move || {
        let mut rest = vec![0; expected];
        std::io::Read::read_exact(&mut receiver, &mut rest).unwrap();
        rest
    });
    for (at, len) in &sent {
        client.ask(Command::Read, NONE, *at as u64, *len as u64);
    }
    // Replies come in any order, each in one piece here: none of it is zero.
    let received = reading.join().unwrap();
    let mut rest = &received[..];
    let mut seen = std::collections::BTreeSet::new();
    while !rest.is_empty() {
        let cookie = u64::from_be_bytes(rest[8..16].try_into().unwrap());
        let (at, len) = sent[cookie as usize - 1];
        assert!(rest[28..28 + len] == bytes[at..at + len], "request {cookie}");
        assert!(seen.insert(cookie), "request {cookie} is answered twice");
        rest = &rest[28 + len..];
    }
    assert_eq!(seen.len(), sent.len());
    client.leave();
}

#[test]
fn flags_and_commands_that_do_not_belong_are_refused_and_fua_is_taken_everywhere() {
    let server = server(qcow2(1 << 20).context(Context::Depth));
    for headers in ALL {
        let mut client = Client::of(&server, headers, "", &[]);
        let mut ask = |command, flags, len| client.change(command, flags, 0, len);
        for command in [Command::Flush, Command::Trim, Command::Cache, Command::WriteZeroes] {
            assert_eq!(ask(command, CommandFlags::FUA, 4096), Ok(()), "{command:?}");
            assert_eq!(ask(command, CommandFlags::DF, 4096), Err(Errno::Invalid), "{command:?}");
            assert_eq!(ask(command, NONE, 0), Ok(()), "{command:?}");
        }
        for code in [8, 9, 77, u16::MAX] {
            assert_eq!(ask(Command::from_code(code), NONE, 0), Err(Errno::Invalid));
        }
        // No context was agreed on.
        assert_eq!(ask(Command::BlockStatus, NONE, 512), Err(Errno::Invalid));
        assert_eq!(ask(Command::Trim, NONE, 2 << 20), Err(Errno::Invalid));
        assert_eq!(ask(Command::WriteZeroes, NONE, 2 << 20), Err(Errno::NoSpace));
        assert_eq!(client.write((1 << 20) - 1, b"xy"), Err(Errno::NoSpace));
        assert_eq!(client.write(1 << 20, b""), Ok(()));
        client.leave();
    }
}

/// W-93: with REQ_ONE one extent, not longer than asked for; none is without bytes.
#[test]
fn extents_are_as_long_as_asked_for() {
    let mut bytes = pattern(1 << 20);
    bytes[300_000..600_000].fill(0);
    let server = server(qcow2(1 << 20));
    let mut writer = Client::of(&server, Headers::Structured, "", &[]);
    writer.write(0, &bytes[..131_072]).unwrap();
    for headers in [Headers::Structured, Headers::Extended] {
        let mut client = Client::of(&server, headers, "", &["base:allocation"]);
        let data = |len| (len, 0);
        let zero = |len| (len, 3);
        assert_eq!(client.status(NONE, 0, 1 << 20), [data(131_072), zero(917_504)]);
        assert_eq!(client.status(CommandFlags::REQ_ONE, 0, 1 << 20), [data(131_072)]);
        assert_eq!(client.status(CommandFlags::REQ_ONE, 100, 50), [data(50)]);
        assert_eq!(client.status(NONE, 131_071, 2), [data(1), zero(1)]);
        assert_eq!(client.change(Command::BlockStatus, NONE, 0, 0), Err(Errno::Invalid));
        assert_eq!(client.change(Command::BlockStatus, NONE, 1 << 20, 1), Err(Errno::Invalid));
    }
}

#[test]
fn contexts_are_told_apart_by_their_numbers() {
    let server = server(qcow2(1 << 20).context(Context::Depth));
    let names = ["qemu:allocation-depth", "base:allocation"];
    let mut client = Client::of(&server, Headers::Structured, "", &names);
    client.write(65536, &[7; 65536]).unwrap();
    let cookie = client.ask(Command::BlockStatus, NONE, 0, 1 << 20);
    let answer = client.answer(cookie, 0, 0).unwrap();
    let flags: Vec<(u32, Vec<u32>)> = answer
        .extents
        .iter()
        .map(|(context, extents)| (*context, extents.iter().map(|e| e.flags).collect()))
        .collect();
    assert_eq!(flags, [(0, vec![3, 0, 3]), (1, vec![0, 1, 0])]);
}

/// W-98: a bitmap of a disk that is written to is not shown.
#[test]
fn a_bitmap_that_changes_is_not_read() {
    let export = qcow2(1 << 20).context(Context::DirtyBitmap("b0".to_owned()));
    let server = server(export);
    let mut client = Client::of(&server, Headers::Structured, "", &["qemu:dirty-bitmap:b0"]);
    assert_eq!(client.change(Command::BlockStatus, NONE, 0, 512), Err(Errno::Invalid));
}

#[test]
fn an_unknown_option_with_much_data_is_answered_and_an_unknown_export_refused() {
    let server = server(raw(pattern(512)));
    let mut client = Client::connect(&server);
    let answer = client.option(OptionCode::Other(1234), &vec![0; 500_000]);
    assert!(answer.is_error());
    assert!(client.option(OptionCode::Go, b"\0\0\0\x04none\0\0").is_error());
    client.agree(Headers::Simple, "disk", &[]);
    assert_eq!(client.read(0, 512).unwrap(), pattern(512));
}
