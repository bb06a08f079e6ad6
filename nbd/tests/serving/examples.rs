//! Each program of `nbd/examples` does what it says.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use nbd::wire::{Command, Headers};
use nbd::{Listener, Server, ServerOptions};
use qcow::chain::{Chain, OpenOptions};
use qcow::format::GuestOffset;
use qcow::ops::create::{CreateOptions, create};

use super::{Client, NONE, pattern};

#[path = "../../examples/own_backend.rs"]
#[allow(dead_code)]
mod own_backend;
#[path = "../../examples/serve.rs"]
#[allow(dead_code)]
mod serve;

#[test]
fn an_image_is_served_until_the_last_client_goes_and_has_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (dir.path().join("disk.qcow2"), dir.path().join("disk.sock"));
    create(&image, &CreateOptions::default().size(1 << 20)).unwrap();
    let listener = Listener::unix(&socket).unwrap();
    let of_server = image.clone();
    let server =
        thread::spawn(move || serve::run(&of_server, listener).map_err(|error| error.to_string()));

    let mut client = Client::over(UnixStream::connect(&socket).unwrap());
    client.agree(Headers::Structured, "", &[]);
    client.write(70_000, &pattern(300)).unwrap();
    assert_eq!(client.read(70_000, 300).unwrap(), pattern(300));
    client.leave();
    assert_eq!(server.join().unwrap(), Ok([1, 1]));

    let mut found = vec![0; 300];
    let chain = Chain::open(&image, &OpenOptions::default()).unwrap();
    chain.read_at(&mut found, GuestOffset(70_000)).unwrap();
    assert_eq!(found, pattern(300));
}

#[test]
fn a_disk_of_another_kind_is_read_written_and_zeroed() {
    let export = own_backend::export(1 << 20);
    let server = Arc::new(Server::new(vec![export], &ServerOptions::new()).unwrap());
    let mut client = Client::of(&server, Headers::Structured, "", &[]);
    client.write(4090, &pattern(100)).unwrap();
    client.change(Command::WriteZeroes, NONE, 4100, 10).unwrap();
    let mut expected = pattern(100);
    expected[10..20].fill(0);
    assert_eq!(client.read(4090, 100).unwrap(), expected);
    client.leave();
}
