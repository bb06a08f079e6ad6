//! Backing-file dependencies as a tree in plain text: backing files at the left, their overlays below.

use std::collections::HashSet;
use std::fmt::Write;

use migrate::audit::{Graph, Presence, Survey};

use crate::output::shown;

/// Deeper than this, lines are not indented further: they would not fit anywhere.
const INDENTED: usize = 40;

/// A line that waits to be written: an image, how deep it is, and what stands before its name.
struct Line {
    at: usize,
    depth: usize,
    prefix: String,
    last: bool,
}

/// The tree of all images that have a backing file or an overlay, and a line for each that has
/// neither. Each image's branches are drawn once.
pub(super) fn tree(survey: &Survey) -> String {
    let graph = Graph::new(survey);
    let mut text = String::new();
    let mut drawn = HashSet::new();
    let bottoms = (0..graph.images().len()).filter(|at| graph.below(*at).is_empty());
    for at in bottoms {
        branch(&graph, at, &mut drawn, &mut text);
    }
    // What is left depends on a circle.
    for at in (0..graph.images().len()).collect::<Vec<_>>() {
        if !drawn.contains(&at) {
            branch(&graph, at, &mut drawn, &mut text);
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn branch(graph: &Graph<'_>, root: usize, drawn: &mut HashSet<usize>, text: &mut String) {
    let mut waiting = vec![Line { at: root, depth: 0, prefix: String::new(), last: true }];
    while let Some(line) = waiting.pop() {
        let again = !drawn.insert(line.at);
        let arm = match (line.depth, line.last) {
            (0, _) => "",
            (_, true) => "`-- ",
            (_, false) => "|-- ",
        };
        let _ = writeln!(text, "{}{arm}{}", line.prefix, label(graph, line.at, again));
        if again {
            continue;
        }
        let users = graph.above(line.at);
        for (nth, user) in users.iter().enumerate().rev() {
            let mut prefix = line.prefix.clone();
            if line.depth > 0 && line.depth < INDENTED {
                prefix.push_str(if line.last { "    " } else { "|   " });
            }
            waiting.push(Line {
                at: *user,
                depth: line.depth.saturating_add(1),
                prefix,
                last: nth.saturating_add(1) == users.len(),
            });
        }
    }
}

fn label(graph: &Graph<'_>, at: usize, again: bool) -> String {
    let Some(image) = graph.image(at) else { return String::new() };
    let mut label = shown(image.path());
    let note = match &image.presence {
        Presence::Here => None,
        Presence::Deleted { .. } => Some("deleted, held open".to_owned()),
        Presence::Missing => Some("missing".to_owned()),
        Presence::Unusable { .. } => Some("cannot be used".to_owned()),
        Presence::Elsewhere => image.key.host().map(|host| format!("on {}", qcow::Escaped(host))),
    };
    if let Some(note) = note {
        let _ = write!(label, " [{note}]");
    }
    if again {
        label.push_str(" [see above]");
    }
    label
}
