//! `serve` with certificates: QEMU's names, libnbd's and QEMU's clients, and nobody else.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use common::qcowtool;
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, skipped};

use crate::serve::{Served, needs, output};

/// An authority, a server and a client of its, in one directory, as QEMU names the files; and a client that nobody
/// knows, in another.
fn certificates(scratch: &Scratch) {
    let script = r#"
        set -e
        mkdir known stranger
        authority() {
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" \
                -addext basicConstraints=critical,CA:TRUE -keyout "$1/ca-key.pem" -out "$1/ca-cert.pem"
        }
        signed() {
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=localhost" \
                -keyout "$1/$2-key.pem" -out request.pem
            printf 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n' >extensions
            openssl x509 -req -in request.pem -CA "$1/ca-cert.pem" -CAkey "$1/ca-key.pem" -CAcreateserial -days 2 \
                -extfile extensions -out "$1/$2-cert.pem"
        }
        authority known
        signed known server
        signed known client
        authority stranger
        signed stranger client
        cp known/ca-cert.pem stranger/ca-cert.pem
    "#;
    let made = Command::new("sh").args(["-c", script]).current_dir(scratch.dir()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn clients_with_certificates_are_served_and_others_are_told_nothing() {
    needs_qemu!();
    needs!("nbdinfo" "openssl");
    let scratch = Scratch::new();
    certificates(&scratch);
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "16M");
    qemu::qemu_io("qcow2", &image, &["write -P 7 1M 5M"]);
    let known = scratch.path("known");
    let tls = format!("--tls-dir {} --tls-require-client", known.display());
    let ours = Served::start(&scratch, &tls, &[&image]);
    let socket = scratch.path("our.sock");
    let uri = |directory: &str| {
        let (socket, directory) = (socket.display(), scratch.path(directory));
        format!("nbds+unix:///?socket={socket}&tls-certificates={}", directory.display())
    };
    let info = output("nbdinfo", &[&uri("known")]);
    assert!(info.contains("with TLS"), "{info}");
    let copy = scratch.path("copy.raw");
    output("nbdcopy", &["--connections=4", &uri("known"), copy.to_str().unwrap()]);
    qemu_img(&args!["compare", "-f", "raw", "-F", "qcow2", "-U", copy, image]);
    output("nbdcopy", &[copy.to_str().unwrap(), &uri("known")]);
    let client = format!("tls-creds-x509,id=t,endpoint=client,dir={}", known.display());
    let disk = format!(
        "driver=nbd,server.type=unix,server.path={},tls-creds=t,tls-hostname=localhost",
        socket.display()
    );
    let compare = ["compare", "--object", &client, "--image-opts", &disk];
    let other = format!("driver=raw,file.driver=file,file.filename={}", copy.display());
    qemu_img(&[&compare[..], &[other.as_str()]].concat());
    for stranger in [uri("stranger"), ours.uri.clone()] {
        let refused = Command::new("nbdinfo").arg(&stranger).output().unwrap();
        assert!(!refused.status.success(), "{stranger}: {refused:?}");
    }
    assert_eq!(ours.end(), Some(0));
    qemu::assert_clean(&image);
}

/// What a client, or somebody between, has sent together with the request for encryption is not taken as if it had come
/// encrypted.
#[test]
fn bytes_behind_the_request_for_encryption_end_the_connection() {
    needs_qemu!();
    needs!("openssl");
    let scratch = Scratch::new();
    certificates(&scratch);
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "1M");
    let tls = format!("-r --tls-dir {}", scratch.path("known").display());
    let ours = Served::start(&scratch, &tls, &[&image]);
    let answer = |behind: &[u8]| {
        let mut stream = UnixStream::connect(scratch.path("our.sock")).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        let option = |code: u8| [&b"IHAVEOPT\0\0\0"[..], &[code], &[0; 4]].concat();
        // A list is refused before it, and does not count as anything.
        let sent = [&3_u32.to_be_bytes()[..], &option(3), &option(5), behind].concat();
        stream.write_all(&sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        (answer[12..16].to_vec(), answer.len())
    };
    let required = 0x8000_0005_u32.to_be_bytes();
    assert_eq!(answer(b"").0, required);
    let list = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
    // The same two replies, and nothing about exports.
    assert_eq!(answer(list), answer(b""));
    assert_eq!(ours.end(), Some(0));
}

#[test]
fn files_that_are_no_certificates_are_named() {
    needs_qemu!();
    let scratch = Scratch::new();
    let image = scratch.path("vm.qcow2");
    qemu::create(&image, "", "1M");
    let serve = |directory: &Path| {
        qcowtool(args!["serve", "--socket", scratch.path("s"), "--tls-dir", directory, image])
    };
    serve(&scratch.path("none")).refused_naming(&["server-cert.pem"]);
    let directory = scratch.subdir("wrong");
    fs::write(directory.join("server-cert.pem"), "nothing").unwrap();
    serve(&directory).refused_naming(&["server-cert.pem", "no certificate"]);
}
