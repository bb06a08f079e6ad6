//! `monitor` as its users see it: metrics, the page in a browser, events, and clients that mean harm.

mod client;
mod docs;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use client::{Monitor, answer, value, wait_for};
use common::qcowtool;
use fixtures::{Scratch, args, browser, needs_browser, needs_qemu, qemu};

/// `base.qcow2` and `overlay.qcow2` on it, in a directory of their own.
fn pair(scratch: &Scratch) -> std::path::PathBuf {
    let images = scratch.subdir("images");
    qemu::create(images.join("base.qcow2"), "", "1M");
    qemu::overlay(images.join("overlay.qcow2"), "base.qcow2", "qcow2", "", "");
    images
}

const MISSING: &str = "qcowtool_audit_findings{severity=\"error\",code=\"base-missing\"}";

/// A name that does harm where it is not escaped.
const HOSTILE: &str = "<img src=x onerror=\"document.title='owned'\">&'\u{202e}\n</td>.qcow2";

#[test]
fn what_is_served_is_what_audit_says() {
    needs_qemu!();
    let scratch = Scratch::new();
    let images = pair(&scratch);
    fs::remove_file(images.join("base.qcow2")).unwrap();
    let monitor = Monitor::start(args![images]);
    let audit = qcowtool(args!["audit", "--output", "prometheus", images]).stdout();
    let served = monitor.get("/metrics");
    assert!(served.body.starts_with(&audit), "{}\n\n{audit}", served.body);
    assert_eq!(served.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(monitor.metric(MISSING), 1.0);
    let json = qcowtool(args!["audit", "--output", "json", images]).stdout();
    assert_eq!(monitor.get("/audit.json").body, json);
    // Every metric tells what it is, once.
    for line in served.body.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        for word in ["HELP", "TYPE"] {
            let head = format!("# {word} {name} ");
            assert_eq!(served.body.matches(&head).count(), 1, "{head}");
        }
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let last = monitor.metric("qcowtool_monitor_last_scan_timestamp_seconds");
    assert!((now.as_secs_f64() - last).abs() < 600.0, "{last}");
    assert_eq!(monitor.metric("qcowtool_monitor_last_scan_complete"), 1.0);
    assert_eq!(monitor.metric("qcowtool_monitor_interval_seconds"), 86_400.0);
}

#[test]
fn a_change_is_seen_before_the_interval_ends() {
    needs_qemu!();
    let scratch = Scratch::new();
    let images = pair(&scratch);
    let monitor = Monitor::start(args![images]);
    assert_eq!(monitor.metric(MISSING), 0.0);
    fs::rename(images.join("base.qcow2"), scratch.path("base.qcow2")).unwrap();
    wait_for("finding", || (monitor.metric(MISSING) == 1.0).then_some(()));
    assert!(monitor.get("/").body.contains("base-missing"));
    fs::rename(scratch.path("base.qcow2"), images.join("base.qcow2")).unwrap();
    wait_for("end of it", || (monitor.metric(MISSING) == 0.0).then_some(()));
    // In directories that are new, too.
    let deep = images.join("new/deeper");
    fs::create_dir_all(&deep).unwrap();
    wait_for("watch", || {
        (monitor.metric("qcowtool_monitor_watched_directories") == 3.0).then_some(())
    });
    qemu::create(deep.join("more.qcow2"), "", "1M");
    wait_for("image", || (monitor.metric("qcowtool_audit_images") == 3.0).then_some(()));
    assert_eq!(monitor.metric("qcowtool_monitor_scans_total{cause=\"interval\"}"), 1.0);
}

#[test]
fn a_base_outside_of_what_was_asked_is_watched_and_its_directory_not_named() {
    needs_qemu!();
    let scratch = Scratch::new();
    let (images, secret) = (scratch.subdir("images"), scratch.subdir("secret-place"));
    qemu::create(secret.join("base.qcow2"), "", "1M");
    qemu::overlay(images.join("overlay.qcow2"), "../secret-place/base.qcow2", "qcow2", "", "");
    let monitor = Monitor::start(args![images]);
    assert_eq!(monitor.metric(MISSING), 0.0);
    fs::remove_file(secret.join("base.qcow2")).unwrap();
    wait_for("finding", || (monitor.metric(MISSING) == 1.0).then_some(()));
    for path in ["/", "/metrics", "/audit.json", "/graph.svg", "/health"] {
        let body = monitor.get(path).body;
        assert!(!body.contains("secret-place"), "{path}: {body}");
    }
    let what = monitor.json()["findings"][0]["what"].as_str().unwrap().to_owned();
    assert!(what.contains("/base.qcow2' does not exist"), "{what}");
    // No file is served at all, whatever it is called.
    for path in
        ["/overlay.qcow2", "/../../etc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd", "/index.html"]
    {
        assert_eq!(monitor.get(path).status, 404, "{path}");
    }
}

#[test]
fn the_interval_looks_again_where_no_event_does() {
    needs_qemu!();
    let scratch = Scratch::new();
    let images = pair(&scratch);
    let monitor = Monitor::unscanned(args!["--listen", "0", "--interval", "1", images]);
    let scans = "qcowtool_monitor_scans_total{cause=\"interval\"}";
    wait_for("third scan", || (monitor.metric(scans) >= 3.0).then_some(()));
}

#[test]
fn the_textfile_is_whole_whenever_it_is_read() {
    needs_qemu!();
    let scratch = Scratch::new();
    let images = pair(&scratch);
    // Among the images, where its own changes must not set off scans.
    let file = images.join("qcowtool.prom");
    let monitor = Monitor::start(args!["--textfile", file, images]);
    let events = "qcowtool_monitor_scans_total{cause=\"event\"}";
    wait_for("textfile", || file.exists().then_some(()));
    let mut written = 0.0;
    for nth in 0..5 {
        fs::write(images.join(format!("{nth}.img")), [0; 4096]).unwrap();
        let seen = wait_for("textfile", || {
            let text = fs::read_to_string(&file).unwrap();
            // Its last line is of the monitor's last metric.
            let last = text.lines().last().unwrap();
            assert!(last.starts_with(events) && text.ends_with('\n'), "{text}");
            let images = value(&text, "qcowtool_audit_images").unwrap();
            (images == 3.0 + f64::from(nth)).then(|| value(&text, events).unwrap())
        });
        assert!(seen > written || nth == 0, "{seen}");
        written = seen;
    }
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    let left: Vec<_> = fs::read_dir(&images).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{left:?}");
    // 5 files, each made and written, and one more look after a watch began: not a scan for each own write.
    assert!(monitor.metric(events) <= 12.0, "{}", monitor.metric(events));
}

#[test]
fn once_writes_the_textfile_and_ends() {
    needs_qemu!();
    let scratch = Scratch::new();
    let images = pair(&scratch);
    fs::remove_file(images.join("base.qcow2")).unwrap();
    let file = scratch.path("audit.prom");
    let once =
        |path: &std::path::Path| qcowtool(args!["monitor", "--once", "--textfile", file, path]);
    // That something is wrong is what the metrics say, not a failure of the monitor.
    assert_eq!(once(&images).ok(), "");
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(value(&text, MISSING), Some(1.0));
    fs::remove_file(&file).unwrap();
    once(&scratch.path("nowhere")).refused_naming(&["nothing could be looked at", "nowhere"]);
    assert!(!file.exists());
    qcowtool(args!["monitor", "--listen", "example.com:80", images]).refused_naming(&["--listen"]);
    qcowtool(args!["monitor", images]).refused_naming(&["--listen"]);
}

#[test]
fn a_directory_that_goes_away_is_told_and_comes_back() {
    needs_qemu!();
    let scratch = Scratch::new();
    let images = pair(&scratch);
    let monitor = Monitor::start(args![images]);
    let complete = || monitor.metric("qcowtool_monitor_last_scan_complete");
    fs::rename(&images, scratch.path("away")).unwrap();
    wait_for("complaint", || (complete() == 0.0).then_some(()));
    assert_eq!(monitor.metric("qcowtool_audit_images"), 0.0);
    assert_eq!(
        monitor.metric("qcowtool_audit_findings{severity=\"error\",code=\"unreadable\"}"),
        1.0
    );
    let (code, said) = monitor.end("TERM");
    assert_eq!(code, Some(0));
    assert!(said.contains("images: there is no such file"), "{said}");
}

#[test]
fn requests_that_do_not_mean_this_host_are_refused() {
    let scratch = Scratch::new();
    let monitor = Monitor::start(args!["--allow-host", "KVM7.example", scratch.dir()]);
    let with = |host: &str| monitor.say(&format!("GET /metrics HTTP/1.1\r\n{host}\r\n")).status;
    let port = monitor.address().split_once(':').unwrap().1;
    for good in ["127.0.0.1", "localhost", "kvm7.example", "192.0.2.1"] {
        assert_eq!(with(&format!("Host: {good}:{port}\r\n")), 200, "{good}");
    }
    for bad in [
        "Host: evil.example\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: x@127.0.0.1\r\n",
        "Host: 127.0.0.1\r\nHost: evil.example\r\n",
        "Host:\r\n",
        "",
    ] {
        let status = with(bad);
        assert!(status == 421 || status == 400, "{bad:?}: {status}");
    }
    let absolute = "GET http://evil.example/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    assert_eq!(monitor.say(absolute).status, 421);
    assert!(monitor.metric("qcowtool_monitor_http_refused_total") >= 5.0);
}

#[test]
fn only_get_and_head_are_answered_and_nothing_may_run() {
    let scratch = Scratch::new();
    let monitor = Monitor::start(args![scratch.dir()]);
    let host = monitor.address();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "MADE-UP"] {
        let refused = monitor
            .say(&format!("{method} / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    let head = monitor.say(&format!("HEAD /audit.json HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_ne!(head.header("content-length"), Some("0"));
    for path in ["/", "/metrics", "/audit.json", "/graph.svg", "/style.css", "/health", "/none"] {
        let answer = monitor.get(path);
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("script"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    assert!(!monitor.get("/").body.contains("<script"));
}

#[test]
fn slow_and_greedy_clients_keep_nobody_waiting_for_ever() {
    needs_qemu!();
    let scratch = Scratch::new();
    let images = pair(&scratch);
    let monitor = Monitor::start(args![images]);
    // More than are served at one time, none of which ends its request.
    let mut slow: Vec<_> = (0..80).map(|_| monitor.connect()).collect();
    slow.iter_mut().for_each(|stream| stream.write_all(b"GET / HT").unwrap());
    fs::remove_file(images.join("base.qcow2")).unwrap();
    // Others are answered nevertheless, and the scan goes on.
    wait_for("finding", || (monitor.metric(MISSING) == 1.0).then_some(()));
    // Those who did not end in time were sent away.
    assert_ne!(answer(slow.first_mut().unwrap()).status, 200);
    let long = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nX: {}\r\n\r\n",
        monitor.address(),
        "x".repeat(1 << 20)
    );
    assert_ne!(monitor.say(&long).status, 200);
    let many = "X: y\r\n".repeat(200);
    let many = format!("GET / HTTP/1.1\r\nHost: {}\r\n{many}\r\n", monitor.address());
    assert_ne!(monitor.say(&many).status, 200);
    assert_ne!(monitor.say("\x16\x03\x01\x02garbage\r\n\r\n").status, 200);
    assert_eq!(monitor.get("/health").status, 200);
}

#[test]
fn signals_end_it_cleanly() {
    let scratch = Scratch::new();
    for signal in ["TERM", "INT"] {
        let monitor = Monitor::start(args![scratch.dir()]);
        // Not even somebody who does not go on with a request keeps it.
        let mut slow = monitor.connect();
        slow.write_all(b"GET / HT").unwrap();
        assert_eq!(monitor.end(signal), (Some(0), String::new()), "{signal}");
    }
}

#[test]
fn an_address_that_others_reach_is_warned_of() {
    let scratch = Scratch::new();
    let monitor = Monitor::unscanned(args!["--listen", "0.0.0.0:0", scratch.dir()]);
    let (code, said) = monitor.end("TERM");
    assert_eq!(code, Some(0));
    assert!(said.contains("warning: any client that reaches 0.0.0.0:"), "{said}");
}

#[test]
fn names_do_no_harm_in_the_page_and_in_the_metrics() {
    needs_qemu!();
    let scratch = Scratch::new();
    let images = pair(&scratch);
    let hostile = images.join(HOSTILE.replace('/', "\u{2215}"));
    qemu::create(&hostile, "", "1M");
    qemu::overlay(
        images.join("on.qcow2"),
        hostile.file_name().unwrap().to_str().unwrap(),
        "qcow2",
        "",
        "",
    );
    fs::remove_file(&hostile).unwrap();
    let monitor = Monitor::start(args![images]);
    for path in ["/", "/graph.svg"] {
        let body = monitor.get(path).body;
        // The picture shortens the middle of names.
        assert!(body.contains("&lt;img src") && !body.contains("<img src=x"), "{body}");
        assert!(!body.contains('\u{202e}'), "{path}");
    }
    let metrics = monitor.get("/metrics").body;
    let base = metrics.lines().find(|line| line.contains("onerror")).unwrap();
    assert!(base.starts_with("qcowtool_audit_base_users{") && base.ends_with("} 1"), "{base}");
    // The picture is sound XML, whatever it shows.
    let picture = scratch.path("graph.svg");
    qcowtool(args!["audit", "--picture", picture, images]);
    assert_eq!(fs::read_to_string(&picture).unwrap(), monitor.get("/graph.svg").body);
    needs_browser!();
    let (dom, said) = browser::dom(&monitor.url());
    assert!(dom.contains("<title>qcowtool monitor</title>"), "{dom}");
    assert!(dom.contains("&lt;img src=x onerror") && !dom.contains("<img src=\"x\""), "{dom}");
    assert!(!said.contains("Content Security Policy"), "{said}");
}

#[test]
fn a_browser_shows_the_findings_and_the_graph() {
    needs_qemu!();
    needs_browser!();
    let scratch = Scratch::new();
    let images = pair(&scratch);
    fs::remove_file(images.join("base.qcow2")).unwrap();
    let monitor = Monitor::start(args![images]);
    let (dom, _) = browser::dom(&monitor.url());
    assert!(dom.contains("<td>base-missing</td>") && dom.contains("overlay.qcow2"), "{dom}");
    // The style and the picture were asked for, which the policy must allow.
    let before = monitor.metric("qcowtool_monitor_http_requests_total");
    let picture = scratch.path("page.png");
    let said = browser::screenshot(&monitor.url(), (1000, 900), &picture);
    assert!(!said.contains("Content Security Policy"), "{said}");
    let asked = monitor.metric("qcowtool_monitor_http_requests_total") - before;
    // The page, its style, its picture, and this question.
    assert!(asked >= 4.0, "{asked}");
    assert!(fs::metadata(&picture).unwrap().len() > 10_000);
}

#[test]
fn domains_of_a_libvirt_are_monitored_too() {
    needs_qemu!();
    if !common::binary().with_file_name("qcowtool-libvirt").exists() {
        return; // built without
    }
    let scratch = Scratch::new();
    let images = pair(&scratch);
    let host = format!(
        "<node><pool type='dir'><name>p</name><target><path>{0}</path></target></pool><domain type='test'>\
         <name>vm&lt;b&gt;</name><memory>1024</memory><os><type>hvm</type></os><devices><disk type='file' \
         device='disk'><driver name='qemu' type='qcow2'/><source file='{0}/overlay.qcow2'/>\
         <target dev='vda' bus='virtio'/></disk></devices></domain></node>",
        images.display()
    );
    let uri = format!("test://{}", scratch.file("host.xml", host.as_bytes()).display());
    let monitor = Monitor::start(args!["--connect", uri]);
    assert_eq!(monitor.metric("qcowtool_audit_domains"), 1.0);
    assert!(monitor.get("/graph.svg").body.contains("vm&lt;b&gt;"));
    fs::remove_file(images.join("base.qcow2")).unwrap();
    wait_for("finding", || (monitor.metric(MISSING) == 1.0).then_some(()));
    assert_eq!(monitor.end("TERM").0, Some(0));
}
