//! The commands that documents show: they exist, and so do their options.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::qcowtool;
use fixtures::args;

/// Documents of the repository, those of the crates and integrations included.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = Command::new("git").args(["ls-files", "*.md"]).current_dir(root).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let read =
        |name: &str| (PathBuf::from(name), std::fs::read_to_string(root.join(name)).unwrap());
    listed.lines().filter(|name| root.join(name).exists()).map(read).collect()
}

/// Lines in blocks of shell, continued ones as one, and what is between single backticks elsewhere.
fn code(text: &str) -> Vec<String> {
    let mut code = Vec::new();
    let mut block: Option<bool> = None;
    let mut continued = String::new();
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            block = match block {
                Some(_) => None,
                None => Some(["sh", "bash", "console", ""].contains(&language.trim())),
            };
            continue;
        }
        match block {
            Some(false) => {}
            Some(true) => {
                continued.push_str(line.trim_end().trim_end_matches('\\'));
                if !line.trim_end().ends_with('\\') {
                    code.push(std::mem::take(&mut continued));
                }
            }
            None => code.extend(line.split('`').skip(1).step_by(2).map(str::to_owned)),
        }
    }
    code
}

/// The words behind each `qcowtool` that begins a command: after nothing, a prompt, or another command.
fn invocations(line: &str) -> Vec<Vec<String>> {
    const ENDS: [&str; 9] = ["|", "||", "&&", "&", ";", ">", "2>", "#", "]"];
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let begins = at.checked_sub(1).is_none_or(|before| {
            let before = words[before];
            ENDS.contains(&before)
                || ["$", "[", "sudo", "do", "then", "!", "ExecStart="].contains(&before)
                || before.ends_with(';')
        });
        if *word == "qcowtool" && begins {
            let own = words[at + 1..]
                .iter()
                .take_while(|word| !ENDS.contains(word) && !word.starts_with('>'));
            found.push(
                own.map(|word| word.trim_matches(['\'', '"', ';', ')', '(', ',']).to_owned())
                    .collect(),
            );
        }
    }
    found
}

/// What the help of each command offers.
#[derive(Default)]
struct Offers(BTreeMap<Vec<String>, (BTreeSet<String>, BTreeSet<String>)>);

impl Offers {
    /// The options and the subcommands of a command.
    fn of(&mut self, command: &[String]) -> &(BTreeSet<String>, BTreeSet<String>) {
        self.0.entry(command.to_vec()).or_insert_with(|| {
            let help =
                qcowtool([command.iter().map(Into::into).collect(), args!["--help"]].concat()).ok();
            let word = |text: &str| {
                text.chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                    .collect::<String>()
            };
            let options = help.match_indices("--").map(|(at, _)| word(&help[at..])).collect();
            // Names in the first column, below a heading of commands.
            let named = |line: &str| {
                let line = line
                    .strip_prefix("  ")
                    .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))?;
                let (name, _) = line.split_once("  ").unwrap_or((line, ""));
                Some(name.split(", ").map(str::to_owned).collect::<Vec<_>>())
            };
            (options, help.lines().filter_map(named).flatten().collect())
        })
    }
}

#[test]
fn commands_in_documents_exist_and_have_the_options_that_are_shown() {
    let mut offers = Offers::default();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (file, text) in documents() {
        if file.ends_with("CHANGELOG.md") {
            continue;
        }
        for words in code(&text).iter().flat_map(|line| invocations(line)) {
            let plain = |word: &&String| {
                !word.is_empty()
                    && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                    && !word.starts_with('-')
            };
            let Some(first) = words.first().filter(plain) else { continue };
            // Its options are qemu-img's.
            if first == "qemu-img" {
                continue;
            }
            seen += 1;
            if !offers.of(&[]).1.contains(first) {
                wrong.push(format!("{}: there is no command '{first}'", file.display()));
                continue;
            }
            let mut command = vec![first.clone()];
            if let Some(second) = words.iter().skip(1).find(plain).filter(|_| first == "hook") {
                command.push(second.clone());
            }
            for option in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                let option = option.split(['=', '`', ')']).next().unwrap();
                if option.len() > 2
                    && !offers.of(&command).0.contains(option)
                    && !option.contains("...")
                {
                    wrong.push(format!(
                        "{}: '{}' has no {option}",
                        file.display(),
                        command.join(" ")
                    ));
                }
            }
        }
    }
    assert!(seen > 100, "{seen} commands found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
