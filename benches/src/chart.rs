//! The figures as horizontal bars.

use std::error::Error;

use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontFamily, FontStyle, IntoTextStyle, RGBColor, TextStyle, register_font,
};

use crate::contender::Kind;
use crate::failure::Result;
use crate::measure::{Goal, Measured};

const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(0x22, 0x2b, 0x36);
const LINE: RGBColor = RGBColor(0xc9, 0xd1, 0xda);
const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
const GOAL: RGBColor = RGBColor(0xd5, 0x5e, 0x00);

const WIDTH: i32 = 1120;
/// Where the bars begin and end; names are to the left, figures to the right.
const BARS: [i32; 2] = [500, 1040];
const TOP: i32 = 76;
const BAR: i32 = 14;
const GAP: i32 = 12;

/// A picture, and what it is called.
pub(crate) struct Chart {
    pub(crate) file: &'static str,
    pub(crate) title: &'static str,
    pub(crate) svg: String,
}

struct Row {
    name: String,
    bars: Vec<(Kind, f64, String)>,
    /// A goal to draw across the bars.
    goal: Option<f64>,
}

/// From a figure to its place between 0 and 1.
type Scale<'a> = &'a dyn Fn(f64) -> f64;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// All charts for which there are figures.
pub(crate) fn all(results: &[Measured]) -> Result<Vec<Chart>> {
    // A font of our own: what the system has differs, and may be nothing.
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| "the font cannot be read")?;
    let charts = [speed(results)?, throughput(results)?];
    Ok(charts.into_iter().flatten().collect())
}

/// Times as fast as qemu-img at its best, on a scale on which each step is a factor.
fn speed(results: &[Measured]) -> Result<Option<Chart>> {
    let row = |result: &Measured| {
        let speed = result.speed(result.find(Kind::Best)?);
        let goal = result.case.goals.iter().find_map(|goal| match goal {
            Goal::Faster(Kind::Best, least) => Some(*least),
            _ => None,
        });
        let bars = vec![(Kind::Qcowtool, speed, format!("{speed:.1}"))];
        Some(Row { name: result.case.name.clone(), bars, goal })
    };
    let rows: Vec<_> = results.iter().filter_map(row).collect();
    let most = rows.iter().map(|row| row.bars[0].1).fold(10.0, f64::max);
    let scale = |speed: f64| (speed / 0.5).ln().max(0.0) / (most / 0.5).ln();
    let title =
        "How many times as fast as qemu-img with its best flags (line: as fast; mark: goal)";
    draw("speed.svg", title, &rows, &scale, Some(1.0))
}

/// Data moved per second, beside the kernel's own copy.
fn throughput(results: &[Measured]) -> Result<Option<Chart>> {
    let row = |result: &Measured| {
        let moved = result.case.moved? as f64 / 1e9;
        let kinds = [Kind::Qcowtool, Kind::Best, Kind::Default, Kind::Copy];
        let bar = |kind| {
            let speed = moved / result.seconds(result.find(kind)?);
            Some((kind, speed, format!("{speed:.2}")))
        };
        let bars = kinds.into_iter().filter_map(bar).collect();
        Some(Row { name: result.case.name.clone(), bars, goal: None })
    };
    let rows: Vec<_> = results.iter().filter_map(row).collect();
    let most = rows.iter().flat_map(|row| &row.bars).map(|bar| bar.1).fold(0.0, f64::max);
    let scale = |speed: f64| speed / most;
    draw("throughput.svg", "Guest data moved, GB/s", &rows, &scale, None)
}

fn draw(
    file: &'static str,
    title: &'static str,
    rows: &[Row],
    scale: Scale<'_>,
    line: Option<f64>,
) -> Result<Option<Chart>> {
    if rows.is_empty() {
        return Ok(None);
    }
    let height = TOP + rows.iter().map(Row::height).sum::<i32>();
    let mut svg = String::new();
    {
        let size = (WIDTH as u32, height as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&PAPER).map_err(failed)?;
        text(&area, title, (24, 18), 17, HPos::Left)?;
        legend(&area, rows)?;
        if let Some(line) = line {
            stroke(&area, place(scale, line), [TOP - GAP, height - GAP], LINE)?;
        }
        let mut top = TOP;
        for row in rows {
            row.on(&area, top, scale)?;
            top += row.height();
        }
        area.present().map_err(failed)?;
    }
    Ok(Some(Chart { file, title, svg }))
}

impl Row {
    fn height(&self) -> i32 {
        self.bars.len() as i32 * BAR + GAP
    }

    fn on(&self, area: &Area<'_>, top: i32, scale: Scale<'_>) -> Result<()> {
        let bottom = top + self.height() - GAP;
        text(area, &self.name, (BARS[0] - 10, (top + bottom) / 2 - 6), 12, HPos::Right)?;
        for (index, (kind, value, figure)) in (0..).zip(&self.bars) {
            let (top, end) = (top + index * BAR, place(scale, *value).max(BARS[0] + 1));
            block(area, [(BARS[0], top), (end, top + BAR - 2)], colour(*kind))?;
            // Not across the mark of a goal.
            let goal = self.goal.map(|goal| place(scale, goal));
            let right = goal.filter(|goal| (end..end + 32).contains(goal)).unwrap_or(end);
            text(area, figure, (right + 6, top), 11, HPos::Left)?;
        }
        if let Some(goal) = self.goal {
            stroke(area, place(scale, goal), [top - 3, bottom + 1], GOAL)?;
        }
        Ok(())
    }
}

/// The colours of all kinds that the rows have.
fn legend(area: &Area<'_>, rows: &[Row]) -> Result<()> {
    let mut left = 24;
    for kind in [Kind::Qcowtool, Kind::Best, Kind::Default, Kind::Copy] {
        if rows.iter().any(|row| row.bars.iter().any(|bar| bar.0 == kind)) {
            block(area, [(left, 44), (left + 12, 56)], colour(kind))?;
            text(area, name(kind), (left + 18, 44), 12, HPos::Left)?;
            left += 40 + name(kind).len() as i32 * 7;
        }
    }
    Ok(())
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Qcowtool => "qcowtool",
        Kind::Best => "qemu-img, best flags",
        Kind::Default => "qemu-img, default",
        Kind::Copy => "plain copy of the same bytes",
        Kind::Aside => "",
    }
}

/// Told apart by people who see colours differently too.
fn colour(kind: Kind) -> RGBColor {
    match kind {
        Kind::Qcowtool => RGBColor(0x00, 0x72, 0xb2),
        Kind::Best => RGBColor(0xe6, 0x9f, 0x00),
        Kind::Default => RGBColor(0xf0, 0xd0, 0x8a),
        Kind::Copy | Kind::Aside => RGBColor(0x9a, 0xa5, 0xb1),
    }
}

fn place(scale: Scale<'_>, value: f64) -> i32 {
    BARS[0] + (scale(value) * f64::from(BARS[1] - BARS[0])) as i32
}

fn block(area: &Area<'_>, corners: [(i32, i32); 2], colour: RGBColor) -> Result<()> {
    area.draw(&Rectangle::new(corners, colour.filled())).map_err(failed)
}

fn stroke(area: &Area<'_>, left: i32, [top, bottom]: [i32; 2], colour: RGBColor) -> Result<()> {
    let ends = vec![(left, top), (left, bottom)];
    area.draw(&PathElement::new(ends, colour.stroke_width(2))).map_err(failed)
}

fn text(area: &Area<'_>, text: &str, at: (i32, i32), size: i32, anchor: HPos) -> Result<()> {
    let style: TextStyle<'_> = (FontFamily::Name(FONT), size)
        .into_text_style(area)
        .color(&INK)
        .pos(Pos::new(anchor, VPos::Top));
    area.draw(&Text::new(text.to_owned(), at, style)).map_err(failed)
}

fn failed(error: impl Error) -> Box<dyn Error> {
    format!("could not draw a chart: {error}").into()
}
