//! Puts the bands, their names and the legend in their places.

use plotters::backend::DrawingBackend;
use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;
use qcow::Result;

use super::canvas::{Canvas, EMPTY, FAINT, INK, MARGIN, TITLE};
use super::tally::{Amount, COLUMNS, Tally};
use super::{Caption, Picture};
use crate::size::human;

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

/// Up to this number of layers, the legend has a line for each.
const NAMED: usize = 4;

const LEGEND: i32 = 64;
const DISK: i32 = 128;
const DISK_HEIGHT: i32 = 150;
/// Height that all layers share, and bounds for one.
const LAYERS_HEIGHT: i32 = 720;
const TALLEST: i32 = 46;
const LOWEST: i32 = 3;
const NAME: i32 = 20;
const AXIS: i32 = 16;

/// The picture of a map.
#[derive(Debug)]
pub(crate) struct Bands<'a> {
    /// What there is.
    pub(crate) tally: &'a Tally,
    /// What is written beside it.
    pub(crate) caption: &'a Caption,
}

impl Picture for Bands<'_> {
    fn size(&self) -> (i32, i32) {
        let width = columns().saturating_add(MARGIN.saturating_mul(2));
        (width, self.top_of_layer(self.caption.layers.len()).saturating_add(AXIS))
    }

    fn on<B: DrawingBackend>(&self, canvas: &Canvas<'_, B>) -> Result<()> {
        let title = canvas.shortened(&self.caption.title, columns(), 19)?;
        canvas.text(&title, (MARGIN, TITLE), 19, INK, HPos::Left)?;
        self.legend(canvas)?;
        self.disk(canvas)?;
        for depth in 0..self.caption.layers.len() {
            self.layer(canvas, depth)?;
        }
        if !self.has_names() {
            let text = format!("the {} layers, the active one first", self.caption.layers.len());
            let over = self.top_of_layer(0).saturating_sub(18);
            canvas.text(&text, (MARGIN, over), 13, FAINT, HPos::Left)?;
            self.depths(canvas)?;
        }
        self.axis(canvas)
    }
}

impl Bands<'_> {
    fn legend<B: DrawingBackend>(&self, canvas: &Canvas<'_, B>) -> Result<()> {
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
                canvas.block((at, top), (stripe, 13), *colour)?;
            }
            canvas.frame((left, top), (swatch, 13))?;
            let text_at = (left.saturating_add(swatch).saturating_add(7), top.saturating_add(3));
            canvas.text(&text, text_at, 13, INK, HPos::Left)?;
            left = left.saturating_add(width);
        }
        Ok(())
    }

    /// The band of the whole disk: in each column what all layers contribute, deepest lowest.
    fn disk<B: DrawingBackend>(&self, canvas: &Canvas<'_, B>) -> Result<()> {
        canvas.block((MARGIN, DISK), (columns(), DISK_HEIGHT), EMPTY)?;
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
            self.stack(canvas, index, (DISK, DISK_HEIGHT), &parts)?;
        }
        canvas.frame((MARGIN, DISK), (columns(), DISK_HEIGHT))?;
        let over = DISK.saturating_sub(18);
        canvas.text("the guest's disk", (MARGIN, over), 13, FAINT, HPos::Left)
    }

    /// The band of one layer: what the guest gets from it.
    fn layer<B: DrawingBackend>(&self, canvas: &Canvas<'_, B>, depth: usize) -> Result<()> {
        let (top, height) = (self.top_of_layer(depth), self.layer_height());
        canvas.block((MARGIN, top), (columns(), height), EMPTY)?;
        for index in 0..columns() {
            let amount = self.column(index).nth(depth).unwrap_or_default();
            let parts = [
                (amount.data, colour(depth)),
                (amount.compressed, pale(colour(depth))),
                (amount.zero, ZERO),
            ];
            self.stack(canvas, index, (top, height), &parts)?;
        }
        if !self.has_names() {
            return Ok(());
        }
        canvas.frame((MARGIN, top), (columns(), height))?;
        let total = self.tally.totals().get(depth).copied().unwrap_or_default();
        let (total, right) = (contribution(&total), MARGIN.saturating_add(columns()));
        let over = top.saturating_sub(18);
        canvas.text(&total, (right, over), 13, FAINT, HPos::Right)?;
        let name = self.caption.layers.get(depth).map_or("", String::as_str);
        let room = columns().saturating_sub(canvas.width(&total, 13)?).saturating_sub(24);
        let name = canvas.shortened(&format!("layer {depth}: {name}"), room, 13)?;
        canvas.text(&name, (MARGIN, over), 13, INK, HPos::Left)
    }

    /// Depths beside layers that have no names.
    fn depths<B: DrawingBackend>(&self, canvas: &Canvas<'_, B>) -> Result<()> {
        let step = self.layer_height().saturating_add(self.gap()).max(1);
        let every = usize::try_from(20_i32.div_euclid(step)).unwrap_or(1).max(1);
        for depth in (0..self.caption.layers.len()).step_by(every) {
            let place = (MARGIN.saturating_sub(6), self.top_of_layer(depth).saturating_sub(4));
            canvas.text(&depth.to_string(), place, 10, FAINT, HPos::Right)?;
        }
        Ok(())
    }

    /// Offsets along the disk, under the last band.
    fn axis<B: DrawingBackend>(&self, canvas: &Canvas<'_, B>) -> Result<()> {
        let bottom = self.top_of_layer(self.caption.layers.len()).saturating_sub(self.gap());
        for part in 0..=4 {
            let eighth = u128::from(self.tally.length()).saturating_mul(part).div_euclid(4);
            let offset = self.tally.start().saturating_add(u64::try_from(eighth).unwrap_or(0));
            let part = i32::try_from(part).unwrap_or_default();
            let left = columns().saturating_mul(part).div_euclid(4).saturating_add(MARGIN);
            canvas.block((left, bottom), (1, 6), FAINT)?;
            let anchor = match part {
                0 => HPos::Left,
                4 => HPos::Right,
                _ => HPos::Center,
            };
            canvas.text(&human(offset), (left, bottom.saturating_add(10)), 12, FAINT, anchor)?;
        }
        Ok(())
    }

    /// One column of a band: its parts from the bottom up, each as high as its share.
    fn stack<B: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, B>,
        index: i32,
        (top, height): (i32, i32),
        parts: &[(u64, RGBColor)],
    ) -> Result<()> {
        let whole = self.tally.column_length(u64::try_from(index).unwrap_or_default());
        let pixels = height.saturating_mul(canvas.scale());
        let mut below: u64 = 0;
        let bottom = top.saturating_add(height).saturating_mul(canvas.scale());
        let left = index.saturating_add(MARGIN).saturating_mul(canvas.scale());
        for &(bytes, colour) in parts.iter().filter(|(bytes, _)| *bytes > 0) {
            let from = share(below, whole, pixels);
            below = below.saturating_add(bytes);
            // Whatever is there can be seen.
            let to = share(below, whole, pixels).max(from.saturating_add(1).min(pixels));
            let corners = [
                (left, bottom.saturating_sub(to)),
                (left.saturating_add(canvas.scale()), bottom.saturating_sub(from)),
            ];
            canvas.pixels(corners, colour)?;
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
