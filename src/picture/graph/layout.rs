//! Where every box of the graph goes. Pure.
//!
//! Backing files are at the left, their overlays to the right, domains at the end; every box has a row, and
//! the first overlay of a box is in the same row. Thousands of images do not fit into a picture: those with
//! problems go first, then those with most overlays, and the rest becomes boxes with a count.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use migrate::audit::{Code, Finding, Graph, Image, Key, Presence, Report, Severity, Survey};
use qcow::Escaped;

use crate::output::shown;
use crate::size::human;

/// Rows after which nothing new is begun.
const ROWS: i32 = 56;
/// Images in a row from the left; deeper ones become a box that counts.
const COLUMNS: i32 = 6;
/// At most this number of overlays of one image are drawn; fewer, the more there is to draw.
const USERS: usize = 12;
/// So many domains of an image are drawn.
const DOMAINS: usize = 3;
/// At most this number of images without backing file and overlays are drawn.
const ALONE: usize = 6;

/// What a box stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// An image, here or on another host.
    Image,
    /// What is needed and is not there, or cannot be used.
    Missing,
    /// An image that was deleted and is held open.
    Deleted,
    /// Several images or domains.
    Group,
    /// A domain.
    Domain,
}

/// A box.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) column: i32,
    pub(super) row: i32,
    pub(super) look: Look,
    pub(super) title: String,
    pub(super) detail: String,
    /// What was found, in code words.
    pub(super) found: String,
    pub(super) severity: Option<Severity>,
}

/// A line from a backing file to its overlay, by numbers of boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    /// The box was drawn before: the line has a way of its own.
    pub(super) again: bool,
}

/// The whole picture.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) nodes: Vec<Node>,
    pub(super) edges: Vec<Edge>,
    pub(super) columns: i32,
    pub(super) rows: i32,
    /// What is not drawn, in words.
    pub(super) left_out: Option<String>,
}

/// Lays out a survey; `report` is that survey's.
pub(super) fn layout(survey: &Survey, report: &Report) -> Layout {
    let graph = Graph::new(survey);
    let mut plan = Plan::new(survey, &graph, report);
    plan.everything();
    plan.layout
}

struct Plan<'a> {
    graph: &'a Graph<'a>,
    findings: HashMap<(Option<&'a str>, &'a Path), Vec<&'a Finding>>,
    domains: HashMap<&'a Key, BTreeMap<&'a str, String>>,
    /// The worst finding about each image or its overlays.
    worst: Vec<Option<Severity>>,
    tops: Vec<u64>,
    /// The box of each image.
    boxes: Vec<Option<usize>>,
    /// Drawn or counted.
    covered: Vec<bool>,
    row: i32,
    /// At most this number of overlays of an image are drawn.
    users: usize,
    layout: Layout,
}

impl<'a> Plan<'a> {
    fn new(survey: &'a Survey, graph: &'a Graph<'a>, report: &'a Report) -> Self {
        let mut findings: HashMap<_, Vec<_>> = HashMap::new();
        for finding in &report.findings {
            let of = (finding.host.as_deref(), finding.path.as_path());
            findings.entry(of).or_default().push(finding);
        }
        let mut domains: HashMap<_, BTreeMap<_, String>> = HashMap::new();
        for domain in &survey.domains {
            for disk in &domain.disks {
                let Some(top) = disk.layers.first() else { continue };
                let of: &mut BTreeMap<_, _> = domains.entry(&top.key).or_default();
                let state = if domain.runs { "running" } else { "shut off" };
                let text = of.entry(domain.name.as_str()).or_insert_with(|| state.to_owned());
                text.push_str(", ");
                text.push_str(&Escaped(&disk.target).to_string());
            }
        }
        let images = graph.images().len();
        let mut plan = Self {
            graph,
            findings,
            domains,
            worst: vec![None; images],
            tops: graph.tops(),
            boxes: vec![None; images],
            covered: vec![false; images],
            row: 0,
            users: USERS,
            layout: Layout::default(),
        };
        for at in 0..images {
            plan.pass_down(at);
        }
        plan
    }

    /// What was found of an image. One that was deleted, and what is missed under its name, share the name.
    fn found(&self, image: &'a Image) -> impl Iterator<Item = &'a Finding> {
        let deleted = matches!(image.presence, Presence::Deleted { .. });
        let of = (image.key.host(), image.path());
        let found = self.findings.get(&of).into_iter().flatten().copied();
        found.filter(move |finding| deleted || finding.code != Code::DeletedOpen)
    }

    fn severity(&self, image: &'a Image) -> Option<Severity> {
        self.found(image).map(|finding| finding.severity).min()
    }

    /// Tells everything below an image how bad it is.
    fn pass_down(&mut self, at: usize) {
        let Some(image) = self.graph.image(at) else { return };
        let Some(severity) = self.severity(image) else {
            return;
        };
        let mut waiting = vec![at];
        while let Some(at) = waiting.pop() {
            match self.worst.get_mut(at) {
                Some(worst) if worst.is_none_or(|known| severity < known) => {
                    *worst = Some(severity);
                    waiting.extend(self.graph.below(at));
                }
                _ => {}
            }
        }
    }

    /// What is drawn first: images with problems, then those with most overlays, then by name.
    fn rank(&self, at: usize) -> impl Ord + use<'a> {
        let worst = self.worst.get(at).copied().flatten();
        let worst = worst.filter(|severity| *severity != Severity::Info);
        let path = self.graph.image(at).map(Image::path);
        (worst.is_none(), worst, Reverse(self.tops.get(at).copied()), path)
    }

    fn everything(&mut self) {
        let graph = self.graph;
        let images = 0..graph.images().len();
        let is_alone = |at: &usize| {
            let used = graph.image(*at).is_some_and(|image| self.domains.contains_key(&image.key));
            graph.below(*at).is_empty() && graph.above(*at).is_empty() && !used && !self.is_bad(*at)
        };
        let (mut alone, mut bottoms): (Vec<_>, Vec<_>) =
            images.clone().filter(|at| graph.below(*at).is_empty()).partition(is_alone);
        // Circles have no bottom.
        bottoms.extend(graph.circles().iter().filter_map(|circle| circle.first()));
        bottoms.sort_by_cached_key(|at| self.rank(*at));
        let rows = usize::try_from(ROWS).unwrap_or_default();
        self.users = rows.checked_div(bottoms.len()).unwrap_or(USERS).clamp(1, USERS);
        for at in bottoms {
            if self.row < ROWS && !self.is_covered(at) {
                let _ = self.image(at, 0);
            }
        }
        alone.sort_by_cached_key(|at| self.rank(*at));
        let room = if self.row < ROWS { ALONE } else { 0 };
        let few = if alone.len() == room.saturating_add(1) { alone.len() } else { room };
        let rest = alone.split_off(few.min(alone.len()));
        for at in alone {
            let _ = self.image(at, 0);
        }
        if room > 0 && !rest.is_empty() {
            let group = self.group(&rest, 0, "have no dependencies");
            self.push(group);
        }
        let left: Vec<usize> = images.filter(|at| !self.is_covered(*at)).collect();
        if !left.is_empty() {
            let bad = self.bad(&left);
            self.layout.left_out = Some(format!(
                "{} more images are not drawn{bad}: look at fewer directories, or at the tree",
                left.len()
            ));
        }
        self.layout.rows = self.row;
    }

    fn is_covered(&self, at: usize) -> bool {
        self.covered.get(at).copied().unwrap_or(true)
    }

    fn cover(&mut self, at: usize) {
        if let Some(covered) = self.covered.get_mut(at) {
            *covered = true;
        }
    }

    fn push(&mut self, node: Node) -> usize {
        self.layout.columns = self.layout.columns.max(node.column.saturating_add(1));
        self.row = self.row.max(node.row.saturating_add(1));
        self.layout.nodes.push(node);
        self.layout.nodes.len().saturating_sub(1)
    }

    /// Draws an image and its overlays, from the first free row; returns the number of its box. Goes no deeper
    /// than there are columns.
    fn image(&mut self, at: usize, column: i32) -> Option<usize> {
        let graph = self.graph;
        let image = graph.image(at)?;
        let row = self.row;
        let own = self.push(self.node(at, image, column, row));
        if let Some(place) = self.boxes.get_mut(at) {
            *place = Some(own);
        }
        self.cover(at);
        // The first overlay goes beside it.
        self.row = row;
        self.domains_of(image, own, column.saturating_add(1));
        let mut users = graph.above(at).to_vec();
        users.sort_by_cached_key(|at| self.rank(*at));
        let mut drawn = 0_usize;
        let mut rest = Vec::new();
        let last_column = column.saturating_add(1) >= COLUMNS;
        let many = users.len() > self.users.saturating_add(1);
        for user in users {
            if let Some(known) = self.boxes.get(user).copied().flatten() {
                self.layout.edges.push(Edge { from: own, to: known, again: true });
            } else if last_column || self.row >= ROWS || (many && drawn >= self.most(user)) {
                rest.push(user);
            } else if let Some(to) = self.image(user, column.saturating_add(1)) {
                drawn = drawn.saturating_add(1);
                self.layout.edges.push(Edge { from: own, to, again: false });
            }
        }
        if !rest.is_empty() {
            let group = self.group(&rest, column.saturating_add(1), "depend on it");
            let to = self.push(group);
            self.layout.edges.push(Edge { from: own, to, again: false });
        }
        self.row = self.row.max(row.saturating_add(1));
        Some(own)
    }

    /// How many overlays of an image are drawn, this one included.
    fn most(&self, user: usize) -> usize {
        if self.is_bad(user) { USERS } else { self.users }
    }

    /// Whether there is a problem with an image or its overlays.
    fn is_bad(&self, at: usize) -> bool {
        let worst = self.worst.get(at).copied().flatten();
        matches!(worst, Some(Severity::Error | Severity::Warning))
    }

    fn domains_of(&mut self, image: &'a Image, own: usize, column: i32) {
        let Some(domains) = self.domains.remove(&image.key) else { return };
        let more = domains.len().saturating_sub(DOMAINS);
        let shown = if more == 1 { domains.len() } else { DOMAINS };
        let count = domains.len().saturating_sub(shown);
        let named = domains
            .into_iter()
            .take(shown)
            .map(|(name, state)| (Look::Domain, Escaped(name).to_string(), state));
        let rest = (count > 0).then(|| {
            (Look::Group, format!("{count} more domains"), "have it as their disk".to_owned())
        });
        for (look, title, detail) in named.chain(rest).collect::<Vec<_>>() {
            let found = String::new();
            let node = Node { column, row: self.row, look, title, detail, found, severity: None };
            let to = self.push(node);
            self.layout.edges.push(Edge { from: own, to, again: false });
        }
    }

    fn node(&self, at: usize, image: &'a Image, column: i32, row: i32) -> Node {
        let mut codes: Vec<Code> = self.found(image).map(|finding| finding.code).collect();
        codes.dedup();
        let codes: Vec<&str> = codes.into_iter().map(Code::as_str).collect();
        // Many bases in many directories have one name.
        let parts = if column == 0 { 2 } else { 1 };
        let name = end(image.path(), parts);
        let (look, mut detail) = match &image.presence {
            Presence::Here => (Look::Image, human(image.status.allocated)),
            Presence::Missing => (Look::Missing, "is not there".to_owned()),
            Presence::Unusable { .. } => (Look::Missing, "cannot be used".to_owned()),
            Presence::Deleted { .. } => {
                (Look::Deleted, format!("deleted, held open: {}", human(image.status.allocated)))
            }
            Presence::Elsewhere => {
                let host = Escaped(image.key.host().unwrap_or_default()).to_string();
                (Look::Image, format!("{} on {host}", human(image.status.allocated)))
            }
        };
        let users = self.tops.get(at).copied().unwrap_or(0);
        if !self.graph.above(at).is_empty() && users > 1 {
            detail = format!("{detail}, {users} users");
            let saved = image.status.allocated.saturating_mul(users.saturating_sub(1));
            if saved > 0 {
                detail = format!("{detail}, saves {}", human(saved));
            }
        }
        Node {
            column,
            row,
            look,
            title: shown(&name),
            detail,
            found: codes.join(", "),
            severity: self.severity(image),
        }
    }

    /// A box for these and everything on them.
    fn group(&mut self, of: &[usize], column: i32, what: &str) -> Node {
        let above = self.graph.dependents(of);
        let mut all: Vec<usize> =
            of.iter().copied().chain(above.iter().map(|(at, _)| *at)).collect();
        all.retain(|at| !self.is_covered(*at));
        all.iter().for_each(|at| self.cover(*at));
        let images = all.iter().filter_map(|at| self.graph.image(*at));
        let bytes = images.map(|image| image.status.allocated).fold(0, u64::saturating_add);
        let worst = all.iter().filter_map(|at| self.worst.get(*at).copied().flatten()).min();
        Node {
            column,
            row: self.row,
            look: Look::Group,
            title: format!("{} more images", all.len()),
            detail: format!("{what}: {}{}", human(bytes), self.bad(&all)),
            found: String::new(),
            severity: worst,
        }
    }

    /// How many of these have errors or warnings, in words.
    fn bad(&self, of: &[usize]) -> String {
        let with = |severity| {
            let images = of.iter().filter_map(|at| self.graph.image(*at));
            images.filter(|image| self.severity(image) == Some(severity)).count()
        };
        match (with(Severity::Error), with(Severity::Warning)) {
            (0, 0) => String::new(),
            (errors, 0) => format!(", {errors} with errors"),
            (0, warnings) => format!(", {warnings} with warnings"),
            (errors, warnings) => format!(", {errors} with errors, {warnings} with warnings"),
        }
    }
}

/// The last parts of a path, up to this number.
fn end(path: &Path, parts: usize) -> PathBuf {
    let all: Vec<_> = path.components().collect();
    all.iter().skip(all.len().saturating_sub(parts)).collect()
}
