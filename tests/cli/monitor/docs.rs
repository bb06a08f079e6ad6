//! The files in `docs/monitor`: whatever they name is there.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use fixtures::{Scratch, args};
use serde_json::Value;

use super::client::Monitor;

fn docs() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitor")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(docs().join(name)).unwrap()
}

/// The words of a text that begin with `qcowtool_`.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("qcowtool_")).collect()
}

/// The values that expressions compare the label with: `label="a"` and `label=~"a|b"`.
fn label_values<'a>(text: &'a str, label: &str) -> BTreeSet<&'a str> {
    let mut values = BTreeSet::new();
    for operator in ["=", "!=", "=~", "!~"] {
        for (at, start) in text.match_indices(&format!("{label}{operator}\"")) {
            let value = &text[at + start.len()..];
            values.extend(value[..value.find('"').unwrap()].split('|'));
        }
    }
    values
}

fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value.as_str().filter(|_| key == "expr" || key == "query") {
                    Some(expression) => found.push(expression.to_owned()),
                    None => expressions(value, found),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn alerts_and_dashboard_ask_for_what_there_is() {
    let scratch = Scratch::new();
    let served = Monitor::start(args![scratch.dir()]).get("/metrics").body;
    let known: BTreeSet<_> =
        served.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let codes = label_values(&served, "code");
    let alerts = read("alerts.yml");
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let mut asked = Vec::new();
    expressions(&dashboard, &mut asked);
    assert!(asked.len() > 15, "{asked:?}");
    for text in asked.iter().chain([&alerts, &read("alerts-test.yml")]) {
        let unknown: Vec<_> = metrics(text).into_iter().filter(|m| !known.contains(m)).collect();
        assert!(unknown.is_empty(), "{unknown:?} in {text}");
        for code in label_values(text, "code") {
            assert!(codes.contains(code), "no code {code}: {text}");
        }
        for severity in label_values(text, "severity") {
            assert!(["error", "warning", "info"].contains(&severity), "{severity}");
        }
    }
    // Whatever can be measured is in the dashboard or has an alert, and in the documentation.
    let page = std::fs::read_to_string(docs().with_file_name("monitor.md")).unwrap();
    let page = page + &std::fs::read_to_string(docs().with_file_name("audit.md")).unwrap();
    for metric in &known {
        let ending =
            metric.trim_start_matches("qcowtool_audit").trim_start_matches("qcowtool_monitor");
        assert!(page.contains(metric) || page.contains(&format!("`{ending}`")), "{metric}");
        let used = asked.iter().chain([&alerts]).any(|text| metrics(text).contains(metric));
        assert!(used || *metric == "qcowtool_monitor_watched_directories", "{metric}");
    }
}

/// What cannot be told without Prometheus' own program is left to whoever has it.
#[test]
fn the_rules_do_what_they_say() {
    let promtool = |arguments: &[&str]| {
        let mut command = Command::new("promtool");
        command.args(arguments).current_dir(docs()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.output().ok()
    };
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts-test.yml"]] {
        let Some(output) = promtool(&arguments) else {
            // At least no rule lacks anything.
            let text = read("alerts.yml");
            let count = |what: &str| text.matches(what).count();
            assert_eq!(count("- alert: "), count("        expr: "));
            assert_eq!(count("- alert: "), count("summary: "));
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
