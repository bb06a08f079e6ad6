//! The requests that read and write, on an image that is open.

use std::time::Instant;

use qcow::io::Zeroes;
use qcowtool::shared;

use crate::image::Image;
use crate::show;

/// Requests are carried out in parts that end at multiples of this: a whole number of clusters of any size.
const PART: u64 = 4 << 20;

/// What is written where nothing else is said.
pub(crate) const FILL: u8 = 0xcd;

/// What came of a request, and what is to be printed.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) succeeded: bool,
    pub(crate) text: String,
}

/// A request that reads.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) at: u64,
    pub(crate) len: u64,
    /// What all bytes of a part have to be: its start within what is read, its length.
    pub(crate) verify: Option<(u8, u64, u64)>,
    pub(crate) dump: bool,
    pub(crate) copy_up: bool,
    /// It is the state of the machine that is read.
    pub(crate) state: bool,
    pub(crate) quiet: bool,
    /// The command, in whose words failures are told.
    pub(crate) name: &'static str,
}

/// A request that writes.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) what: What,
    /// Flushes before it is done.
    pub(crate) durable: bool,
    /// It is the state of the machine that is written.
    pub(crate) state: bool,
    pub(crate) quiet: bool,
    pub(crate) name: &'static str,
}

/// What is written.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// These bytes, again and again.
    Bytes(Vec<u8>),
    /// The same, compressed.
    Compressed(Vec<u8>),
    /// Zeros.
    Zeroes(Zeroes),
    /// Nothing: the range is not needed any more.
    Discard,
}

fn parts(at: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    let end = at + len;
    let mut now = at;
    std::iter::from_fn(move || {
        let next = ((now / PART + 1) * PART).min(end);
        let part = (next > now).then_some((now, (next - now) as usize));
        now = next;
        part
    })
}

impl Read {
    /// Carries it out.
    pub(crate) fn run(&self, image: &Image) -> Outcome {
        let begin = Instant::now();
        let (mut wrong, mut text) = (false, String::new());
        let result = if image.holds(self.at, self.len) {
            self.read(image, &mut wrong, &mut text)
        } else {
            Err("Input/output error".to_owned())
        };
        if let Err(error) = result {
            text += &format!("{} failed: {error}\n", self.name);
            return Outcome { succeeded: false, text };
        }
        if let Some((_, start, len)) = self.verify.filter(|_| wrong) {
            let at = self.at + start;
            text += &format!("Pattern verification failed at offset {at}, {len} bytes\n");
        }
        if !self.quiet {
            text += &show::done("read", self.len, self.at, begin.elapsed());
        }
        Outcome { succeeded: !wrong, text }
    }

    fn read(&self, image: &Image, wrong: &mut bool, text: &mut String) -> Result<(), String> {
        let failed = |error: qcow::Error| shared::failed(&error);
        if self.copy_up {
            image.copy_up(self.at, self.len).map_err(failed)?;
        }
        for (at, len) in parts(self.at, self.len) {
            let mut buf = vec![0xab; len];
            image.read(&mut buf, at).map_err(failed)?;
            if let Some((pattern, start, verified)) = self.verify {
                let first = (self.at + start).max(at);
                let past = (self.at + start + verified).min(at + len as u64);
                if first < past {
                    let part = &buf[(first - at) as usize..(past - at) as usize];
                    *wrong |= part.iter().any(|&byte| byte != pattern);
                }
            }
            if self.dump {
                *text += &show::dump(&buf, at);
            }
        }
        Ok(())
    }
}

impl Write {
    /// Carries it out.
    pub(crate) fn run(&self, image: &Image) -> Outcome {
        let begin = Instant::now();
        let result = if image.holds(self.at, self.len) {
            self.write(image).map_err(|error| shared::failed(&error))
        } else {
            Err("Input/output error".to_owned())
        };
        let verb = if matches!(self.what, What::Discard) { "discard" } else { "wrote" };
        let text = match &result {
            Err(error) => format!("{} failed: {error}\n", self.name),
            Ok(()) if self.quiet => String::new(),
            Ok(()) => show::done(verb, self.len, self.at, begin.elapsed()),
        };
        Outcome { succeeded: result.is_ok(), text }
    }

    fn write(&self, image: &Image) -> qcow::Result<()> {
        let disk = image.disk()?;
        let first = image.place(self.at);
        match &self.what {
            What::Zeroes(how) => disk.write_zeroes(first, self.len, *how)?,
            What::Discard => disk.discard(first, self.len)?,
            What::Bytes(bytes) => {
                for (at, len) in parts(first, self.len) {
                    disk.write_at(&repeated(bytes, at - first, len), at)?;
                }
            }
            What::Compressed(bytes) => {
                let unit = disk.cluster_size().unwrap_or(PART);
                for start in (0..self.len).step_by(unit as usize) {
                    let len = unit.min(self.len - start) as usize;
                    disk.write_compressed(&repeated(bytes, start, len), first + start)?;
                }
            }
        }
        if self.durable { disk.flush() } else { Ok(()) }
    }
}

/// `len` bytes of a pattern that repeats, from `start` on.
fn repeated(pattern: &[u8], start: u64, len: usize) -> Vec<u8> {
    if let [byte] = pattern {
        return vec![*byte; len];
    }
    let skipped = (start % pattern.len() as u64) as usize;
    pattern.iter().cycle().skip(skipped).take(len).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_at_whole_clusters_and_at_the_end() {
        let found: Vec<_> = parts(PART - 512, PART + 1024).collect();
        assert_eq!(found, [(PART - 512, 512), (PART, PART as usize), (2 * PART, 512)]);
        assert_eq!(parts(7, 0).count(), 0);
    }

    #[test]
    fn a_pattern_goes_on_from_part_to_part() {
        assert_eq!(repeated(b"abc", 4, 5), b"bcabc");
        assert_eq!(repeated(&[7], 4, 2), [7, 7]);
    }
}
