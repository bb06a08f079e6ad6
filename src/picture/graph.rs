//! Backing-file dependencies, drawn: boxes for images and domains, lines between them, colours for problems.

mod layout;

use migrate::audit::{Report, Severity, Survey};
use plotters::backend::DrawingBackend;
use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;
use qcow::Result;

use self::layout::{Edge, Layout, Look, Node, layout};
use super::Picture;
use super::canvas::{Canvas, EMPTY, FAINT, INK, LINE, MARGIN, PAPER, TITLE};
use crate::size::human;

const ERROR: RGBColor = RGBColor(0xc6, 0x28, 0x28);
const WARNING: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
const NOTE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const GUEST: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const EDGE: RGBColor = RGBColor(0x9a, 0xa5, 0xb1);
/// Behind what is not there.
const GONE: RGBColor = RGBColor(0xfd, 0xee, 0xee);
/// Suffix of a deleted file that a process still has open.
const GOING: RGBColor = RGBColor(0xff, 0xf6, 0xe0);
/// Behind domains.
const DOMAIN: RGBColor = RGBColor(0xe8, 0xf6, 0xf1);

const LEGEND: i32 = 76;
const FIRST: i32 = 112;
const BOX: (i32, i32) = (224, 54);
/// From one box to the next, to the right and down.
const STEP: (i32, i32) = (266, 66);
const STRIPE: i32 = 5;
const INDENT: i32 = 13;
/// The title and the legend need so much.
const NARROWEST: i32 = 800;

/// The picture of an audit.
#[derive(Debug)]
pub(crate) struct Graph {
    layout: Layout,
    title: String,
    figures: String,
}

impl Graph {
    /// That of a survey; `report` is the survey's.
    pub(crate) fn new(survey: &Survey, report: &Report) -> Self {
        let summary = &report.summary;
        let title = format!(
            "{} images, {} of them on others; {} domains",
            summary.images, summary.overlays, summary.domains
        );
        let figures = format!(
            "{} allocated, {} saved by sharing; {} errors, {} warnings, {} notes",
            human(summary.allocated),
            human(summary.shared),
            summary.errors,
            summary.warnings,
            summary.infos
        );
        Self { layout: layout(survey, report), title, figures }
    }
}

impl Picture for Graph {
    fn size(&self) -> (i32, i32) {
        let (step, down) = STEP;
        let width = self.layout.columns.saturating_mul(step).max(NARROWEST);
        let below = if self.layout.left_out.is_some() { 30 } else { 10 };
        let height = self.layout.rows.saturating_mul(down).saturating_add(FIRST);
        (width.saturating_add(MARGIN.saturating_mul(2)), height.saturating_add(below))
    }

    fn on<B: DrawingBackend>(&self, canvas: &Canvas<'_, B>) -> Result<()> {
        canvas.text(&self.title, (MARGIN, TITLE), 19, INK, HPos::Left)?;
        canvas.text(&self.figures, (MARGIN, 50), 13, FAINT, HPos::Left)?;
        legend(canvas)?;
        for edge in &self.layout.edges {
            self.edge(canvas, edge)?;
        }
        for node in &self.layout.nodes {
            draw(canvas, node)?;
        }
        if let Some(left_out) = &self.layout.left_out {
            let (_, down) = STEP;
            let top = self.layout.rows.saturating_mul(down).saturating_add(FIRST);
            canvas.text(left_out, (MARGIN, top), 14, INK, HPos::Left)?;
        }
        Ok(())
    }
}

impl Graph {
    /// From the right of a box to the left of another; to one that has its line already, from above.
    fn edge<B: DrawingBackend>(&self, canvas: &Canvas<'_, B>, edge: &Edge) -> Result<()> {
        let nodes = &self.layout.nodes;
        let (Some(from), Some(to)) = (nodes.get(edge.from), nodes.get(edge.to)) else {
            return Ok(());
        };
        let ((width, height), (step, _)) = (BOX, STEP);
        let ((left, top), (to_left, to_top)) = (place(from), place(to));
        let start = (left.saturating_add(width), top.saturating_add(height.div_euclid(2)));
        let gutter = left.saturating_add(width.saturating_add(step).div_euclid(2));
        let bad = edge.again || from.look == Look::Missing;
        let colour = if bad { ERROR } else { EDGE };
        if edge.again {
            let gutter = gutter.saturating_add(6);
            let over = to_top.saturating_sub(5);
            let end = to_left.saturating_add(30);
            line(canvas, start, (gutter, start.1), colour)?;
            line(canvas, (gutter, start.1), (gutter, over), colour)?;
            line(canvas, (gutter, over), (end, over), colour)?;
            return line(canvas, (end, over), (end, to_top), colour);
        }
        let middle = to_top.saturating_add(height.div_euclid(2));
        line(canvas, start, (gutter, start.1), colour)?;
        line(canvas, (gutter, start.1), (gutter, middle), colour)?;
        line(canvas, (gutter, middle), (to_left, middle), colour)
    }
}

/// The upper left corner of a box.
fn place(node: &Node) -> (i32, i32) {
    let (step, down) = STEP;
    (
        node.column.saturating_mul(step).saturating_add(MARGIN),
        node.row.saturating_mul(down).saturating_add(FIRST),
    )
}

/// A line to the right, to the left, up or down.
fn line<B: DrawingBackend>(
    canvas: &Canvas<'_, B>,
    (left, top): (i32, i32),
    (to_left, to_top): (i32, i32),
    colour: RGBColor,
) -> Result<()> {
    let width = to_left.saturating_sub(left).saturating_abs().saturating_add(1);
    let height = to_top.saturating_sub(top).saturating_abs().saturating_add(1);
    canvas.block((left.min(to_left), top.min(to_top)), (width, height), colour)
}

fn draw<B: DrawingBackend>(canvas: &Canvas<'_, B>, node: &Node) -> Result<()> {
    let at = place(node);
    let (width, _) = BOX;
    shape(canvas, at, BOX, node.look, node.severity)?;
    let (left, top) = at;
    let room = width.saturating_sub(INDENT.saturating_mul(2));
    let lines = [
        (&node.title, 13, INK),
        (&node.detail, 11, FAINT),
        (&node.found, 11, node.severity.map_or(FAINT, darker)),
    ];
    let filled = lines.into_iter().filter(|(text, ..)| !text.is_empty());
    let mut below = if node.found.is_empty() { 15 } else { 8 };
    for (text, size, colour) in filled {
        let text = canvas.shortened(text, room, size)?;
        let place = (left.saturating_add(INDENT), top.saturating_add(below));
        canvas.text(&text, place, size, colour, HPos::Left)?;
        below = below.saturating_add(15);
    }
    Ok(())
}

/// The box itself.
fn shape<B: DrawingBackend>(
    canvas: &Canvas<'_, B>,
    (left, top): (i32, i32),
    (width, height): (i32, i32),
    look: Look,
    severity: Option<Severity>,
) -> Result<()> {
    let (behind, border) = match look {
        Look::Image => (PAPER, EDGE),
        Look::Missing => (GONE, ERROR),
        Look::Deleted => (GOING, ERROR),
        Look::Group => (EMPTY, LINE),
        Look::Domain => (DOMAIN, GUEST),
    };
    if look == Look::Group {
        // As a pile.
        let back = (left.saturating_add(4), top.saturating_add(4));
        canvas.block(back, (width, height), PAPER)?;
        canvas.border(back, (width, height), border)?;
    }
    canvas.block((left, top), (width, height), behind)?;
    if matches!(look, Look::Missing | Look::Deleted) {
        dashed(canvas, (left, top), (width, height), border)?;
    } else {
        canvas.border((left, top), (width, height), border)?;
    }
    match severity {
        Some(severity) => canvas.block((left, top), (STRIPE, height), colour(severity)),
        None => Ok(()),
    }
}

/// A border with gaps: for what is not, or not for long.
fn dashed<B: DrawingBackend>(
    canvas: &Canvas<'_, B>,
    (left, top): (i32, i32),
    (width, height): (i32, i32),
    colour: RGBColor,
) -> Result<()> {
    const DASH: i32 = 5;
    const PERIOD: usize = 9;
    for along in (0..width).step_by(PERIOD) {
        let length = DASH.min(width.saturating_sub(along));
        for edge in [top, top.saturating_add(height)] {
            canvas.block((left.saturating_add(along), edge), (length, 1), colour)?;
        }
    }
    for along in (0..height).step_by(PERIOD) {
        let length = DASH.min(height.saturating_sub(along));
        for edge in [left, left.saturating_add(width)] {
            canvas.block((edge, top.saturating_add(along)), (1, length), colour)?;
        }
    }
    Ok(())
}

fn legend<B: DrawingBackend>(canvas: &Canvas<'_, B>) -> Result<()> {
    let items = [
        ("image", Look::Image, None),
        ("needed, not there", Look::Missing, None),
        ("deleted, held open", Look::Deleted, None),
        ("domain", Look::Domain, None),
        ("error", Look::Image, Some(Severity::Error)),
        ("warning", Look::Image, Some(Severity::Warning)),
        ("note", Look::Image, Some(Severity::Info)),
    ];
    let mut left = MARGIN;
    for (text, look, severity) in items {
        shape(canvas, (left, LEGEND), (20, 14), look, severity)?;
        let right = left.saturating_add(27);
        canvas.text(text, (right, LEGEND.saturating_add(2)), 12, INK, HPos::Left)?;
        left = right.saturating_add(canvas.width(text, 12)?).saturating_add(22);
    }
    Ok(())
}

fn colour(severity: Severity) -> RGBColor {
    match severity {
        Severity::Error => ERROR,
        Severity::Warning => WARNING,
        Severity::Info => NOTE,
    }
}

/// The colour of text about it, which must be read on white.
fn darker(severity: Severity) -> RGBColor {
    match severity {
        Severity::Warning => RGBColor(0x8a, 0x5c, 0x00),
        other => colour(other),
    }
}
