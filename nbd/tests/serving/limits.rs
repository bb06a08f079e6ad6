//! Clients that take more than they should: floods, half handshakes, slow readers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nbd::wire::{Command, Headers, OptionCode, OptionHead};
use nbd::{Listener, Server, ServerOptions};

use crate::client::Client;
use crate::{NONE, pattern, raw, server};

/// A server with these options on a socket; it ends when the end of the pair that is given back is dropped.
fn listening(
    options: ServerOptions,
    test: impl FnOnce(&dyn Fn() -> UnixStream, &Server),
) -> std::io::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let server = Arc::new(Server::new(vec![raw(pattern(8 << 20))], &options).unwrap());
    let listener = Listener::unix(&socket).unwrap();
    let (end, until) = UnixStream::pair().unwrap();
    let running = {
        let server = Arc::clone(&server);
        thread::spawn(move || server.run(&[listener], &until))
    };
    test(&|| UnixStream::connect(&socket).unwrap(), &server);
    drop(end);
    running.join().unwrap()
}

#[test]
fn clients_that_never_ask_for_an_export_are_sent_away_and_make_room() {
    let options =
        ServerOptions::new().max_connections(5).handshake_timeout(Duration::from_millis(1500));
    listening(options, |connect, _| {
        let mut half: Vec<_> = (0..10).map(|_| connect()).collect();
        // Some have sent a beginning.
        for (len, stream) in half.iter_mut().enumerate() {
            let mut bytes = 3_u32.to_be_bytes().to_vec();
            OptionHead::write(OptionCode::Go, b"\0\0\0\x04disk\0\0", &mut bytes);
            let _ = stream.write_all(&bytes[..len]);
        }
        let mut client = Client::over(connect());
        client.agree(Headers::Structured, "", &[]);
        assert_eq!(client.read(0, 512).unwrap(), pattern(512));
        for mut stream in half.drain(..) {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            assert!(rest.len() <= 18);
        }
        client.leave();
    })
    .unwrap();
}

#[test]
fn options_without_end_end_the_connection() {
    let server = server(raw(pattern(512)));
    let mut client = Client::connect(&server);
    let mut flood = Vec::new();
    for _ in 0..5000 {
        OptionHead::write(OptionCode::Other(66), b"", &mut flood);
    }
    let mut stream = client.stream.try_clone().unwrap();
    let sending = thread::spawn(move || stream.write_all(&flood));
    assert!(client.is_cut());
    client.vanish();
    let _ = sending.join().unwrap();
    let mut client = Client::connect(&server);
    let mut head = Vec::new();
    OptionHead::write(OptionCode::Other(66), b"", &mut head);
    head[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    client.send(&head);
    assert!(client.is_cut());
    client.vanish();
}

#[test]
fn a_client_that_does_not_read_stops_nobody_else() {
    let bytes = pattern(8 << 20);
    let server = server(raw(bytes.clone()));
    let mut lazy: Vec<Client> = Vec::new();
    for _ in 0..3 {
        let mut client = Client::of(&server, Headers::Structured, "", &[]);
        for _ in 0..60 {
            client.ask(Command::Read, NONE, 0, 1 << 20);
        }
        lazy.push(client);
    }
    let mut client = Client::of(&server, Headers::Structured, "", &[]);
    for at in 0..50_u64 {
        let found = client.read(at * 100_000, 500_000).unwrap();
        assert!(found == bytes[at as usize * 100_000..][..500_000]);
    }
    // They get what they asked for, late.
    for mut client in lazy {
        let mut received = vec![0; 60 * ((1 << 20) + 28)];
        client.stream.read_exact(&mut received).unwrap();
        client.leave();
    }
}

#[test]
fn a_payload_that_is_cut_anywhere_leaves_the_server_whole() {
    let server = server(crate::qcow2(1 << 20));
    let mut whole = Vec::new();
    let request = nbd::wire::Request {
        command: Command::Write,
        flags: NONE,
        cookie: 1,
        offset: 4096,
        len: 100,
    };
    request.write(Headers::Structured, &mut whole);
    whole.extend([0xee; 100]);
    for cut in 0..whole.len() {
        let mut client = Client::of(&server, Headers::Structured, "", &[]);
        client.send(&whole[..cut]);
        client.vanish();
    }
    let mut client = Client::of(&server, Headers::Structured, "", &[]);
    assert_eq!(client.read(4096, 100), Ok(vec![0; 100]));
    client.send(&whole);
    client.answer(1, 0, 0).unwrap();
    assert_eq!(client.read(4096, 100), Ok(vec![0xee; 100]));
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let server = server(raw(pattern(1 << 20)));
    for headers in crate::ALL {
        let mut client = Client::of(&server, headers, "", &[]);
        client.send(&[0x55; 64]);
        assert!(client.is_cut());
        client.vanish();
    }
}

#[test]
fn when_the_server_ends_what_was_asked_for_is_answered_and_nobody_keeps_it() {
    let options = ServerOptions::new().grace(Duration::from_secs(2));
    let mut clients = Vec::new();
    listening(options, |connect, server| {
        for _ in 0..3 {
            let mut client = Client::over(connect());
            client.agree(Headers::Structured, "", &[]);
            clients.push(client);
        }
        // One is in the middle of its negotiation, one does not read.
        clients.push(Client::over(connect()));
        for _ in 0..60 {
            clients[1].ask(Command::Read, NONE, 0, 1 << 20);
        }
        let cookie = clients[0].ask(Command::Read, NONE, 0, 4096);
        while server.stats().of(Command::Read).requests < 2 {
            thread::yield_now();
        }
        let _ = cookie;
    })
    .unwrap();
    let answer = clients[0].answer(1, 0, 4096).unwrap();
    assert_eq!(answer.bytes, pattern(4096));
    assert!(clients.iter_mut().all(Client::is_cut));
}
