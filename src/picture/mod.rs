//! Pictures: a map as bands, one for the disk as the guest sees it and one for each layer; and backing-file
//! dependencies as boxes with lines between them.

mod canvas;
mod draw;
mod file;
mod graph;
mod tally;

use std::path::Path;

use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::drawing::IntoDrawingArea;
use plotters::style::{FontStyle, register_font};
use qcow::{Error, Result};

use canvas::{Canvas, FONT};
use draw::Bands;
pub(crate) use file::PictureFile;
pub(crate) use graph::Graph;
use tally::Tally;

/// Bitmaps have this many pixels for each unit of the drawing, so that text is crisp.
const PIXELS: i32 = 2;

/// What a picture is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Svg,
    Png,
}

impl Kind {
    /// By the file's extension.
    ///
    /// # Errors
    /// `Usage` for any other than `.svg` and `.png`.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => Err(Error::usage("a picture's name ends in .svg or .png").file(path)),
        }
    }
}

/// What is written beside the bands.
#[derive(Debug)]
pub(crate) struct Caption {
    /// What is shown.
    pub(crate) title: String,
    /// The name of each layer, the active one first.
    pub(crate) layers: Vec<String>,
}

/// Something that can be drawn.
pub(crate) trait Picture {
    /// Width and height in units.
    fn size(&self) -> (i32, i32);

    /// Draws everything.
    ///
    /// # Errors
    /// `Io` if drawing fails.
    fn on<B: DrawingBackend>(&self, canvas: &Canvas<'_, B>) -> Result<()>;
}

/// The picture's bytes.
///
/// # Errors
/// `Io` if drawing fails.
pub(crate) fn draw(kind: Kind, picture: &impl Picture) -> Result<Vec<u8>> {
    // A font of our own: what the system has differs, and may be nothing.
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| failed("the font cannot be read"))?;
    let (width, height) = picture.size();
    let pixels = |units: i32, scale| u32::try_from(units.saturating_mul(scale)).unwrap_or(1);
    match kind {
        Kind::Svg => {
            let mut text = String::new();
            let area = SVGBackend::with_string(&mut text, (pixels(width, 1), pixels(height, 1)))
                .into_drawing_area();
            on(picture, &Canvas::new(&area, 1)?)?;
            drop(area);
            Ok(text.into_bytes())
        }
        Kind::Png => {
            let (width, height) = (pixels(width, PIXELS), pixels(height, PIXELS));
            let bytes = u64::from(width).saturating_mul(height.into()).saturating_mul(3);
            let mut buffer = vec![0; usize::try_from(bytes).unwrap_or_default()];
            let area = BitMapBackend::with_buffer(&mut buffer, (width, height)).into_drawing_area();
            on(picture, &Canvas::new(&area, PIXELS)?)?;
            drop(area);
            encode(&buffer, width, height)
        }
    }
}

fn on<B: DrawingBackend>(picture: &impl Picture, canvas: &Canvas<'_, B>) -> Result<()> {
    picture.on(canvas)?;
    canvas.present()
}

fn encode(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|error| failed(&error.to_string()))?;
    writer.write_image_data(pixels).map_err(|error| failed(&error.to_string()))?;
    writer.finish().map_err(|error| failed(&error.to_string()))?;
    Ok(bytes)
}

fn failed(why: &str) -> Error {
    Error::io("could not draw the picture", std::io::Error::other(why.to_owned()))
}
