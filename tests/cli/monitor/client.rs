//! The monitor as a child process, and a client that says exactly what it is told to.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use fixtures::args;
use serde_json::Value;

use common::{binary, command};

/// So long whatever is waited for may take: the machine may have other things to do.
const LIMIT: Duration = Duration::from_secs(120);

/// Waits until `done` gives something.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "no {what} within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A monitor that listens at a free port, with an interval of a day.
pub(crate) struct Monitor {
    child: Child,
    address: String,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

impl Monitor {
    pub(crate) fn start(arguments: Vec<OsString>) -> Self {
        let monitor = Self::unscanned(
            [args!["--listen", "127.0.0.1:0", "--interval", "86400"], arguments].concat(),
        );
        wait_for("first scan", || (monitor.get("/health").status == 200).then_some(()));
        monitor
    }

    /// As it is when it has printed where it listens.
    pub(crate) fn unscanned(arguments: Vec<OsString>) -> Self {
        let mut child = command(&[args!["monitor"], arguments].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary().display()));
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening at http://");
        let address =
            address.and_then(|rest| rest.strip_suffix('/')).unwrap_or_default().to_owned();
        if address.is_empty() {
            let output = child.wait_with_output().unwrap();
            panic!("{line}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Self { child, address }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.say(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address))
    }

    /// Sends this and takes whatever comes back.
    pub(crate) fn say(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        // Whoever is refused may be so before all is said.
        let _ = stream.write_all(request.as_bytes());
        answer(&mut stream)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.get("/audit.json").body).unwrap()
    }

    /// The value of a metric, labels included in its name.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").body;
        value(&metrics, name).unwrap_or_else(|| panic!("no {name} in {metrics}"))
    }

    /// Sends a signal; how it ended, and what it had to say.
    pub(crate) fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let kill = std::process::Command::new("kill")
            .args([&format!("-{signal}"), &self.child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        let status = self.child.wait().unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that comes, as an answer; of status 0 if nothing does.
pub(crate) fn answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// The value of a metric in a text of metrics.
pub(crate) fn value(metrics: &str, name: &str) -> Option<f64> {
    let of = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    metrics.lines().find_map(of)
}
