//! How outcomes and errors look: text that is safe to show on a terminal, and JSON.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

use clap::ValueEnum;
use qcow::Escaped;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

/// How outcomes and errors are printed: as text for people, or as JSON for programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    #[default]
    Human,
    Json,
}

/// Prints a line to standard error. That this fails cannot be reported anywhere.
pub(crate) fn eprint_line(line: impl Display) {
    // In one piece: standard error is not buffered, and others may write there too.
    let line = format!("{}\n", Escaped(&line.to_string()));
    let _ = io::stderr().write_all(line.as_bytes());
}

/// A path as it can be shown on a terminal.
pub(crate) fn shown(path: &Path) -> String {
    Escaped(&path.to_string_lossy()).to_string()
}

/// JSON as `qemu-img` lays it out, with a newline at the end.
pub(crate) fn to_json(value: &impl Serialize) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, Layout::default()))?;
    bytes.push(b'\n');
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Four spaces a level, empty lists on two lines, and ASCII only, so that a name from an image
/// cannot do anything to a terminal.
#[derive(Debug, Default)]
struct Layout {
    depth: usize,
}

impl Layout {
    fn open(&mut self, writer: &mut (impl Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth = self.depth.saturating_add(1);
        writer.write_all(bracket)
    }

    fn close(&mut self, writer: &mut (impl Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        self.new_line(writer)?;
        writer.write_all(bracket)
    }

    fn next(&self, writer: &mut (impl Write + ?Sized), first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(b",")?;
        }
        self.new_line(writer)
    }

    fn new_line(&self, writer: &mut (impl Write + ?Sized)) -> io::Result<()> {
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(b"    "))
    }
}

impl Formatter for Layout {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        fragment.chars().try_for_each(|c| {
            if (' '..='~').contains(&c) {
                return write!(writer, "{c}");
            }
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(writer, "\\u{unit:04X}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_laid_out_as_qemu_img_lays_it_out() {
        let value = serde_json::json!({
            "children": [],
            "format-specific": {"type": "file", "data": {}},
            "sizes": [1, 2]
        });
        let expected = concat!(
            "{\n",
            "    \"children\": [\n",
            "    ],\n",
            "    \"format-specific\": {\n",
            "        \"type\": \"file\",\n",
            "        \"data\": {\n",
            "        }\n",
            "    },\n",
            "    \"sizes\": [\n",
            "        1,\n",
            "        2\n",
            "    ]\n",
            "}\n"
        );
        assert_eq!(to_json(&value).unwrap(), expected);
    }

    #[test]
    fn json_is_ascii_and_reads_back_equal() {
        let text = "tab\t \"quoted\" \\ ü 𝄞 \u{7f} \u{9b}31m \u{202e}";
        let json = to_json(&text).unwrap();
        assert!(json.trim_end().bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
