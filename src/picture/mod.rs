//! A map drawn: one tall band for the disk as the guest sees it, one for each layer.

mod draw;
mod tally;

use std::path::Path;

use plotters::backend::{BitMapBackend, SVGBackend};
use plotters::drawing::IntoDrawingArea;
use plotters::style::{FontStyle, register_font};
use qcow::io::OutputFile;
use qcow::{Error, Result};

use draw::{Drawing, FONT};
pub(crate) use tally::Tally;

/// Bitmaps have this many pixels for each unit of the drawing, so that text is crisp.
const PIXELS: u32 = 2;

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

/// The picture's bytes.
///
/// # Errors
/// `Io` if drawing fails.
pub(crate) fn draw(kind: Kind, tally: &Tally, caption: &Caption) -> Result<Vec<u8>> {
    // A font of our own: what the system has differs, and may be nothing.
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| failed("the font cannot be read"))?;
    match kind {
        Kind::Svg => {
            let drawing = Drawing::new(tally, caption, 1);
            let mut text = String::new();
            drawing.on(&SVGBackend::with_string(&mut text, drawing.size()).into_drawing_area())?;
            Ok(text.into_bytes())
        }
        Kind::Png => {
            let drawing = Drawing::new(tally, caption, PIXELS);
            let (width, height) = drawing.size();
            let bytes = u64::from(width).saturating_mul(height.into()).saturating_mul(3);
            let mut pixels = vec![0; usize::try_from(bytes).unwrap_or_default()];
            let backend = BitMapBackend::with_buffer(&mut pixels, (width, height));
            drawing.on(&backend.into_drawing_area())?;
            encode(&pixels, width, height)
        }
    }
}

/// Writes a picture under its name when it is whole.
///
/// # Errors
/// As [`OutputFile`].
pub(crate) fn write(path: &Path, bytes: &[u8], replace: bool) -> Result<()> {
    let output = OutputFile::create(path, replace)?;
    output.write_at(bytes, 0)?;
    output.publish()
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
