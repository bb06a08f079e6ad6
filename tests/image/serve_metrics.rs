//! `serve --metrics`: what clients did, as Prometheus reads it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use common::{command, qcowtool};
use fixtures::{Scratch, args, needs_qemu, qemu};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// It does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server of two images, the second one's name needing care, and what it said.
fn start(scratch: &Scratch) -> (Killed, Value) {
    let (one, two) = (scratch.path("one.qcow2"), scratch.path("t\"w\\o.qcow2"));
    qemu::create(&one, "cluster_size=64k", "16M");
    qemu::create(&two, "", "2M");
    let socket = scratch.path("s");
    let words = args!["serve", "--metrics", "0", "--output", "json", "--socket", socket, one, two];
    let mut child = Killed(command(&words).stdout(Stdio::piped()).spawn().unwrap());
    let stdout = child.0.stdout.as_mut().unwrap();
    let said = serde_json::Deserializer::from_reader(stdout).into_iter().next().unwrap().unwrap();
    (child, said)
}

fn connect(said: &Value) -> TcpStream {
    let address = said["metrics"].as_str().unwrap();
    let address = address.strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    TcpStream::connect(address).unwrap()
}

fn get(said: &Value, request: &str) -> String {
    let mut stream = connect(said);
    // In two pieces, as a network may have it.
    let (first, last) = request.split_at(request.len() / 2);
    stream.write_all(first.as_bytes()).unwrap();
    stream.write_all(last.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

/// The values, by name and labels.
fn metrics(said: &Value) -> BTreeMap<String, f64> {
    let reply = get(said, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let (head, text) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let mut families = Vec::new();
    let mut values = BTreeMap::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            families.push(kind.split(' ').next().unwrap());
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(families.last().is_some_and(|name| series.starts_with(name)), "{line}");
            assert!(values.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{line}");
        }
    }
    values
}

#[test]
fn metrics_say_what_the_clients_of_each_export_did() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (mut child, said) = start(&scratch);
    let uri = |index: usize| said["uris"][index].as_str().unwrap().to_owned();
    assert!(metrics(&said).iter().all(|(series, value)| *value == 0.0 || series.contains("size")));
    let commands =
        ["write -P 1 0 64k", "write -P 1 100k 4k", "flush", "read 0 8k", "discard 1M 1M"];
    qemu::qemu_io("raw", uri(0), &commands);
    qemu::qemu_io("raw", uri(1), &["read 0 512"]);
    let found = metrics(&said);
    let value = |name: &str, labels: &str| found[&format!("qcowtool_serve_{name}{{{labels}}}")];
    let one = |name, command| value(name, &format!("export=\"one.qcow2\",command=\"{command}\""));
    assert_eq!(one("request_bytes_total", "write"), 69632.0);
    assert_eq!(one("request_duration_seconds_count", "write"), 2.0);
    assert!(one("request_duration_seconds_sum", "write") > 0.0);
    assert_eq!(one("request_bytes_total", "trim"), 1048576.0);
    assert!(one("request_bytes_total", "read") >= 8192.0);
    assert!(one("request_duration_seconds_count", "flush") >= 1.0);
    assert_eq!(one("request_failures_total", "write"), 0.0);
    let labels = "export=\"one.qcow2\",command=\"write\",le=";
    let below = |bound| value("request_duration_seconds_bucket", &format!("{labels}\"{bound}\""));
    assert!(below("0.00001") <= below("0.1") && below("+Inf") == 2.0);
    assert_eq!(value("size_bytes", "export=\"one.qcow2\""), 16777216.0);
    assert_eq!(value("connections_total", "export=\"one.qcow2\""), 1.0);
    // Data and the tables that lead to it, at least.
    assert!(value("syncs_total", "export=\"one.qcow2\"") >= 2.0);
    let escaped = r#"export="t\"w\\o.qcow2""#;
    let two = |command| format!("{escaped},command=\"{command}\"");
    assert_eq!(value("request_duration_seconds_count", &two("write")), 0.0, "{found:?}");
    assert!(value("request_duration_seconds_count", &two("read")) >= 1.0);

    // Other names, other methods, noise, and clients that say nothing: then it still answers, and ends.
    for (request, status) in [
        ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421"),
        ("GET /etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
        ("DELETE /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", "405"),
        ("\r\n\r\n\r\n", "400"),
    ] {
        let reply = get(&said, request);
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {reply}");
    }
    // The port is taken; another one, or 0, as the message says, is not.
    let port = connect(&said).peer_addr().unwrap().port().to_string();
    let words = ["serve", "-r", "--metrics", &port, "--socket"].map(Into::into);
    let second = [words.to_vec(), args![scratch.path("t"), scratch.path("one.qcow2")]].concat();
    qcowtool(second).refused_naming(&["could not listen", "choose another port, or 0"]);
    drop(connect(&said));
    assert_eq!(metrics(&said).len(), found.len());
    let mut silent = connect(&said);
    silent.write_all(b"GET /met").unwrap();
    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    qemu::assert_clean(scratch.path("one.qcow2"));
}
