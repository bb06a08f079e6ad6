//! Puts the bands, their names and the legend in their places.

use plotters::backend::DrawingBackend;
use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::{Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontFamily, IntoTextStyle, RGBColor, TextStyle};
use qcow::Result;

use super::tally::{Amount, COLUMNS, Tally};
use super::{Caption, failed};
use crate::size::human;

/// The name of the font, in both kinds of picture.
pub(super) const FONT: &str = "sans-serif";

const INK: RGBColor = RGBColor(0x22, 0x2b, 0x36);
const FAINT: RGBColor = RGBColor(0x6b, 0x77, 0x85);
const LINE: RGBColor = RGBColor(0xc9, 0xd1, 0xda);
const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
const EMPTY: RGBColor = RGBColor(0xf6, 0xf8, 0xfa);
const ZERO: RGBColor = RGBColor(0xd3, 0xda, 0xe3);
/// Data, by depth: told apart by people who see colours differently too, and none is like the paler
/// tone of another; they repeat.
const LAYERS: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x33, 0x33, 0x33),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x8c, 0x6d, 0x31),
    RGBColor(0x7a, 0x5c, 0xb8),
];

/// Up to so many layers, the legend has a line for each.
const NAMED: usize = 4;

const MARGIN: i32 = 40;
const TITLE: i32 = 24;
const LEGEND: i32 = 64;
const DISK: i32 = 128;
const DISK_HEIGHT: i32 = 150;
/// Height that all layers share, and bounds for one.
const LAYERS_HEIGHT: i32 = 720;
const TALLEST: i32 = 46;
const LOWEST: i32 = 3;
const NAME: i32 = 20;
const AXIS: i32 = 16;

/// A picture's layout: everything in units, which `scale` turns into pixels.
#[derive(Debug)]
pub(super) struct Drawing<'a> {
    tally: &'a Tally,
    caption: &'a Caption,
    scale: i32,
}

type Area<B> = DrawingArea<B, Shift>;

impl<'a> Drawing<'a> {
    pub(super) fn new(tally: &'a Tally, caption: &'a Caption, scale: u32) -> Self {
        Self { tally, caption, scale: i32::try_from(scale).unwrap_or(1) }
    }

    /// Width and height in pixels.
    pub(super) fn size(&self) -> (u32, u32) {
        let columns = i32::try_from(COLUMNS).unwrap_or_default();
        let width = columns.saturating_add(MARGIN.saturating_mul(2));
        let height = self.top_of_layer(self.caption.layers.len()).saturating_add(AXIS);
        let pixels = |units: i32| u32::try_from(units.saturating_mul(self.scale)).unwrap_or(1);
        (pixels(width), pixels(height))
    }

    /// Draws everything.
    pub(super) fn on<B: DrawingBackend>(&self, area: &Area<B>) -> Result<()> {
        area.fill(&PAPER).map_err(|error| failed(&error.to_string()))?;
        let title = self.shortened(area, &self.caption.title, columns(), 19)?;
        self.text(area, &title, (MARGIN, TITLE), 19, INK, HPos::Left)?;
        self.legend(area)?;
        self.disk(area)?;
        for depth in 0..self.caption.layers.len() {
            self.layer(area, depth)?;
        }
        if !self.has_names() {
            let text = format!("the {} layers, the active one first", self.caption.layers.len());
            let over = self.top_of_layer(0).saturating_sub(18);
            self.text(area, &text, (MARGIN, over), 13, FAINT, HPos::Left)?;
            self.depths(area)?;
        }
        self.axis(area)?;
        area.present().map_err(|error| failed(&error.to_string()))
    }

    fn legend<B: DrawingBackend>(&self, area: &Area<B>) -> Result<()> {
        let totals = self.tally.totals();
        let all = |part: fn(&Amount) -> u64| totals.iter().map(part).fold(0, u64::saturating_add);
        let mut items = Vec::new();
        if totals.len() <= NAMED {
            for (depth, total) in totals.iter().enumerate() {
                let name = if totals.len() == 1 {
                    "data".to_owned()
                } else {
                    format!("data, layer {depth}")
                };
                items.push((vec![colour(depth)], format!("{name}: {}", human(total.data))));
            }
        } else {
            let data = human(all(|total| total.data));
            items.push((LAYERS.to_vec(), format!("data, a colour for each layer: {data}")));
        }
        let (compressed, zero) = (all(|total| total.compressed), all(|total| total.zero));
        let nothing = self.tally.length().saturating_sub(all(Amount::sum));
        for (colour, what, bytes) in [
            (pale(colour(0)), "compressed (paler)", compressed),
            (ZERO, "zeros", zero),
            (EMPTY, "unallocated", nothing),
        ] {
            if bytes > 0 {
                items.push((vec![colour], format!("{what}: {}", human(bytes))));
            }
        }
        let (mut left, mut top) = (MARGIN, LEGEND);
        for (colours, text) in items {
            let letters = i32::try_from(text.len()).unwrap_or_default();
            let stripe = if colours.len() == 1 { 13 } else { 5 };
            let swatch = i32::try_from(colours.len()).unwrap_or(1).saturating_mul(stripe);
            let width = letters.saturating_mul(6).saturating_add(swatch).saturating_add(43);
            if left.saturating_add(width) > columns().saturating_add(MARGIN) {
                (left, top) = (MARGIN, top.saturating_add(20));
            }
            for (place, colour) in (0..).zip(&colours) {
                let at = left.saturating_add(stripe.saturating_mul(place));
                self.block(area, (at, top), (stripe, 13), *colour)?;
            }
            self.frame(area, (left, top), (swatch, 13))?;
            let text_at = (left.saturating_add(swatch).saturating_add(7), top.saturating_add(3));
            self.text(area, &text, text_at, 13, INK, HPos::Left)?;
            left = left.saturating_add(width);
        }
        Ok(())
    }

    /// The band of the whole disk: in each column what all layers contribute, deepest lowest.
    fn disk<B: DrawingBackend>(&self, area: &Area<B>) -> Result<()> {
        self.block(area, (MARGIN, DISK), (columns(), DISK_HEIGHT), EMPTY)?;
        for index in 0..columns() {
            let mut parts = Vec::new();
            for (depth, amount) in self.column(index).enumerate().rev() {
                parts.extend([
                    (amount.data, colour(depth)),
                    (amount.compressed, pale(colour(depth))),
                ]);
            }
            let zero = self.column(index).map(|amount| amount.zero).fold(0, u64::saturating_add);
            parts.push((zero, ZERO));
            self.stack(area, index, (DISK, DISK_HEIGHT), &parts)?;
        }
        self.frame(area, (MARGIN, DISK), (columns(), DISK_HEIGHT))?;
        let over = DISK.saturating_sub(18);
        self.text(area, "the guest's disk", (MARGIN, over), 13, FAINT, HPos::Left)
    }

    /// The band of one layer: what the guest gets from it.
    fn layer<B: DrawingBackend>(&self, area: &Area<B>, depth: usize) -> Result<()> {
        let (top, height) = (self.top_of_layer(depth), self.layer_height());
        self.block(area, (MARGIN, top), (columns(), height), EMPTY)?;
        for index in 0..columns() {
            let amount = self.column(index).nth(depth).unwrap_or_default();
            let parts = [
                (amount.data, colour(depth)),
                (amount.compressed, pale(colour(depth))),
                (amount.zero, ZERO),
            ];
            self.stack(area, index, (top, height), &parts)?;
        }
        if !self.has_names() {
            return Ok(());
        }
        self.frame(area, (MARGIN, top), (columns(), height))?;
        let total = self.tally.totals().get(depth).copied().unwrap_or_default();
        let (total, right) = (contribution(&total), MARGIN.saturating_add(columns()));
        let over = top.saturating_sub(18);
        self.text(area, &total, (right, over), 13, FAINT, HPos::Right)?;
        let name = self.caption.layers.get(depth).map_or("", String::as_str);
        let room = columns().saturating_sub(self.width(area, &total, 13)?).saturating_sub(24);
        let name = self.shortened(area, &format!("layer {depth}: {name}"), room, 13)?;
        self.text(area, &name, (MARGIN, over), 13, INK, HPos::Left)
    }

    /// Depths beside layers that have no names.
    fn depths<B: DrawingBackend>(&self, area: &Area<B>) -> Result<()> {
        let step = self.layer_height().saturating_add(self.gap()).max(1);
        let every = usize::try_from(20_i32.div_euclid(step)).unwrap_or(1).max(1);
        for depth in (0..self.caption.layers.len()).step_by(every) {
            let place = (MARGIN.saturating_sub(6), self.top_of_layer(depth).saturating_sub(4));
            self.text(area, &depth.to_string(), place, 10, FAINT, HPos::Right)?;
        }
        Ok(())
    }

    /// The text as it is if it fits, else with an ellipsis for its middle: the ends of a name tell
    /// more.
    fn shortened<B: DrawingBackend>(
        &self,
        area: &Area<B>,
        text: &str,
        room: i32,
        size: i32,
    ) -> Result<String> {
        let letters: Vec<char> = text.chars().collect();
        let mut kept = letters.len();
        let mut shown = text.to_owned();
        while kept > 2 && self.width(area, &shown, size)? > room {
            kept = kept.saturating_sub(kept.div_euclid(16).max(1));
            let (tail, head) = (kept.div_euclid(2), kept.div_ceil(2));
            let last = letters.len().saturating_sub(tail);
            let ends = letters.get(..head).into_iter().chain(letters.get(last..));
            let ends: Vec<String> = ends.map(|part| part.iter().collect()).collect();
            shown = ends.join("\u{2026}");
        }
        Ok(shown)
    }

    /// How wide a text is, in units.
    fn width<B: DrawingBackend>(&self, area: &Area<B>, text: &str, size: i32) -> Result<i32> {
        let font = (FontFamily::Name(FONT), size.saturating_mul(self.scale));
        let style: TextStyle<'_> = font.into_text_style(area);
        let (pixels, _) =
            area.estimate_text_size(text, &style).map_err(|error| failed(&error.to_string()))?;
        Ok(i32::try_from(pixels).unwrap_or(i32::MAX).div_euclid(self.scale.max(1)))
    }

    /// Offsets along the disk, under the last band.
    fn axis<B: DrawingBackend>(&self, area: &Area<B>) -> Result<()> {
        let bottom = self.top_of_layer(self.caption.layers.len()).saturating_sub(self.gap());
        for part in 0..=4 {
            let eighth = u128::from(self.tally.length()).saturating_mul(part).div_euclid(4);
            let offset = self.tally.start().saturating_add(u64::try_from(eighth).unwrap_or(0));
            let part = i32::try_from(part).unwrap_or_default();
            let left = columns().saturating_mul(part).div_euclid(4).saturating_add(MARGIN);
            self.block(area, (left, bottom), (1, 6), FAINT)?;
            let anchor = match part {
                0 => HPos::Left,
                4 => HPos::Right,
                _ => HPos::Center,
            };
            self.text(area, &human(offset), (left, bottom.saturating_add(10)), 12, FAINT, anchor)?;
        }
        Ok(())
    }

    /// One column of a band: its parts from the bottom up, each as high as its share.
    fn stack<B: DrawingBackend>(
        &self,
        area: &Area<B>,
        index: i32,
        (top, height): (i32, i32),
        parts: &[(u64, RGBColor)],
    ) -> Result<()> {
        let whole = self.tally.column_length(u64::try_from(index).unwrap_or_default());
        let pixels = height.saturating_mul(self.scale);
        let mut below: u64 = 0;
        let bottom = top.saturating_add(height).saturating_mul(self.scale);
        let left = index.saturating_add(MARGIN).saturating_mul(self.scale);
        for &(bytes, colour) in parts.iter().filter(|(bytes, _)| *bytes > 0) {
            let from = share(below, whole, pixels);
            below = below.saturating_add(bytes);
            // Whatever is there can be seen.
            let to = share(below, whole, pixels).max(from.saturating_add(1).min(pixels));
            let corners = [
                (left, bottom.saturating_sub(to)),
                (left.saturating_add(self.scale), bottom.saturating_sub(from)),
            ];
            fill(area, corners, colour)?;
        }
        Ok(())
    }

    /// What the layers contribute to a column, the active one first.
    fn column(&self, index: i32) -> impl DoubleEndedIterator<Item = Amount> + ExactSizeIterator {
        let index = usize::try_from(index).unwrap_or_default();
        self.tally
            .columns()
            .iter()
            .map(move |columns| columns.get(index).copied().unwrap_or_default())
    }

    fn layer_height(&self) -> i32 {
        let layers = i32::try_from(self.caption.layers.len()).unwrap_or(i32::MAX).max(1);
        LAYERS_HEIGHT.div_euclid(layers).saturating_sub(NAME).clamp(LOWEST, TALLEST)
    }

    /// Many layers are drawn without their names.
    fn has_names(&self) -> bool {
        self.layer_height() >= 10
    }

    fn gap(&self) -> i32 {
        if self.has_names() { NAME.saturating_add(10) } else { 1 }
    }

    fn top_of_layer(&self, depth: usize) -> i32 {
        let depth = i32::try_from(depth).unwrap_or(i32::MAX);
        let step = self.layer_height().saturating_add(self.gap());
        let first = DISK.saturating_add(DISK_HEIGHT).saturating_add(NAME).saturating_add(18);
        first.saturating_add(depth.saturating_mul(step))
    }

    fn text<B: DrawingBackend>(
        &self,
        area: &Area<B>,
        text: &str,
        (left, top): (i32, i32),
        size: i32,
        colour: RGBColor,
        anchor: HPos,
    ) -> Result<()> {
        let font = (FontFamily::Name(FONT), size.saturating_mul(self.scale));
        let style: TextStyle<'_> =
            font.into_text_style(area).color(&colour).pos(Pos::new(anchor, VPos::Top));
        let place = (left.saturating_mul(self.scale), top.saturating_mul(self.scale));
        area.draw(&Text::new(text.to_owned(), place, style))
            .map_err(|error| failed(&error.to_string()))
    }

    fn block<B: DrawingBackend>(
        &self,
        area: &Area<B>,
        (left, top): (i32, i32),
        (width, height): (i32, i32),
        colour: RGBColor,
    ) -> Result<()> {
        fill(area, self.corners((left, top), (width, height)), colour)
    }

    fn frame<B: DrawingBackend>(
        &self,
        area: &Area<B>,
        place: (i32, i32),
        size: (i32, i32),
    ) -> Result<()> {
        area.draw(&Rectangle::new(self.corners(place, size), LINE.stroke_width(1)))
            .map_err(|error| failed(&error.to_string()))
    }

    fn corners(&self, (left, top): (i32, i32), (width, height): (i32, i32)) -> [(i32, i32); 2] {
        let scaled = |units: i32| units.saturating_mul(self.scale);
        [
            (scaled(left), scaled(top)),
            (scaled(left.saturating_add(width)), scaled(top.saturating_add(height))),
        ]
    }
}

fn fill<B: DrawingBackend>(
    area: &Area<B>,
    corners: [(i32, i32); 2],
    colour: RGBColor,
) -> Result<()> {
    area.draw(&Rectangle::new(corners, colour.filled())).map_err(|error| failed(&error.to_string()))
}

/// Data of the layer at this depth.
fn colour(depth: usize) -> RGBColor {
    LAYERS.iter().cycle().nth(depth).copied().unwrap_or(INK)
}

/// Half-way to white: compressed data of the same layer.
fn pale(RGBColor(red, green, blue): RGBColor) -> RGBColor {
    let pale = |part: u8| part.midpoint(u8::MAX);
    RGBColor(pale(red), pale(green), pale(blue))
}

fn columns() -> i32 {
    i32::try_from(COLUMNS).unwrap_or_default()
}

/// `part` of `whole` in pixels of `height`.
fn share(part: u64, whole: u64, height: i32) -> i32 {
    let height = u128::try_from(height).unwrap_or_default();
    let pixels = u128::from(part.min(whole)).saturating_mul(height).checked_div(whole.into());
    pixels.and_then(|pixels| i32::try_from(pixels).ok()).unwrap_or(0)
}

/// What the guest gets from a layer, in words.
fn contribution(total: &Amount) -> String {
    let parts = [(total.data, "data"), (total.compressed, "compressed"), (total.zero, "zeros")];
    let words: Vec<_> = parts
        .iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, what)| format!("{} {what}", human(*bytes)))
        .collect();
    if words.is_empty() { "nothing visible".to_owned() } else { words.join(", ") }
}
