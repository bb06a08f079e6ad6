//! What pictures are drawn on: units that become pixels, text that fits, and the colours of all pictures.

use plotters::backend::DrawingBackend;
use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::{Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontFamily, IntoTextStyle, RGBColor, TextStyle};
use qcow::Result;

use super::failed;

/// The name of the font, in both kinds of picture.
pub(super) const FONT: &str = "sans-serif";

pub(super) const INK: RGBColor = RGBColor(0x22, 0x2b, 0x36);
pub(super) const FAINT: RGBColor = RGBColor(0x6b, 0x77, 0x85);
pub(super) const LINE: RGBColor = RGBColor(0xc9, 0xd1, 0xda);
pub(super) const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
pub(super) const EMPTY: RGBColor = RGBColor(0xf6, 0xf8, 0xfa);

/// Space around every picture, in units.
pub(super) const MARGIN: i32 = 40;
/// Where the title is.
pub(super) const TITLE: i32 = 24;

/// An area to draw on, in units: `scale` turns them into pixels.
pub(crate) struct Canvas<'a, B: DrawingBackend> {
    area: &'a DrawingArea<B, Shift>,
    scale: i32,
}

impl<B: DrawingBackend> std::fmt::Debug for Canvas<'_, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Canvas").field("scale", &self.scale).finish_non_exhaustive()
    }
}

impl<'a, B: DrawingBackend> Canvas<'a, B> {
    pub(super) fn new(area: &'a DrawingArea<B, Shift>, scale: i32) -> Result<Self> {
        area.fill(&PAPER).map_err(|error| failed(&error.to_string()))?;
        Ok(Self { area, scale })
    }

    /// Pixels of a unit.
    pub(super) fn scale(&self) -> i32 {
        self.scale
    }

    /// Says that everything is drawn.
    pub(super) fn present(&self) -> Result<()> {
        self.area.present().map_err(|error| failed(&error.to_string()))
    }

    /// Text whose upper left, upper middle or upper right is there.
    pub(super) fn text(
        &self,
        text: &str,
        (left, top): (i32, i32),
        size: i32,
        colour: RGBColor,
        anchor: HPos,
    ) -> Result<()> {
        let font = (FontFamily::Name(FONT), size.saturating_mul(self.scale));
        let style: TextStyle<'_> =
            font.into_text_style(self.area).color(&colour).pos(Pos::new(anchor, VPos::Top));
        let place = (left.saturating_mul(self.scale), top.saturating_mul(self.scale));
        self.area
            .draw(&Text::new(text.to_owned(), place, style))
            .map_err(|error| failed(&error.to_string()))
    }

    /// How wide a text is, in units.
    pub(super) fn width(&self, text: &str, size: i32) -> Result<i32> {
        let font = (FontFamily::Name(FONT), size.saturating_mul(self.scale));
        let style: TextStyle<'_> = font.into_text_style(self.area);
        let (pixels, _) = self
            .area
            .estimate_text_size(text, &style)
            .map_err(|error| failed(&error.to_string()))?;
        Ok(i32::try_from(pixels).unwrap_or(i32::MAX).div_euclid(self.scale.max(1)))
    }

    /// The text as it is if it fits, else with an ellipsis for its middle: the ends of a name tell
    /// more.
    pub(super) fn shortened(&self, text: &str, room: i32, size: i32) -> Result<String> {
        let letters: Vec<char> = text.chars().collect();
        let mut kept = letters.len();
        let mut shown = text.to_owned();
        while kept > 2 && self.width(&shown, size)? > room {
            kept = kept.saturating_sub(kept.div_euclid(16).max(1));
            let (tail, head) = (kept.div_euclid(2), kept.div_ceil(2));
            let last = letters.len().saturating_sub(tail);
            let ends = letters.get(..head).into_iter().chain(letters.get(last..));
            let ends: Vec<String> = ends.map(|part| part.iter().collect()).collect();
            shown = ends.join("\u{2026}");
        }
        Ok(shown)
    }

    /// A filled rectangle.
    pub(super) fn block(
        &self,
        place: (i32, i32),
        size: (i32, i32),
        colour: RGBColor,
    ) -> Result<()> {
        self.pixels(self.corners(place, size), colour)
    }

    /// The border of a rectangle.
    pub(super) fn frame(&self, place: (i32, i32), size: (i32, i32)) -> Result<()> {
        self.border(place, size, LINE)
    }

    /// The border of a rectangle, in a colour.
    pub(super) fn border(
        &self,
        place: (i32, i32),
        size: (i32, i32),
        colour: RGBColor,
    ) -> Result<()> {
        self.area
            .draw(&Rectangle::new(self.corners(place, size), colour.stroke_width(1)))
            .map_err(|error| failed(&error.to_string()))
    }

    /// A filled rectangle between two corners, in pixels.
    pub(super) fn pixels(&self, corners: [(i32, i32); 2], colour: RGBColor) -> Result<()> {
        self.area
            .draw(&Rectangle::new(corners, colour.filled()))
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
