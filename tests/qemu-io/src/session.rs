//! One run of the program: the image that is open, and the requests that are under way.

use std::process::abort;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use qcow::CancelToken;
use qcow::chain::OpenOptions;
use qcow::ops::info::{FormatSpecific, InfoOptions, info};
use qcow::ops::resize::{NewSize, ResizeOptions, resize};
use qcowtool::shared;

use crate::commands::{self, Command, Wrong};
use crate::flags::Parsed;
use crate::image::{Image, Spec};
use crate::requests::{Outcome, Read};
use crate::show;
use crate::state::{Stretched, stretch};

/// What comes after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Done,
    Failed,
    Quit,
}

#[derive(Debug)]
pub(crate) struct Session {
    /// How images are opened unless the command says otherwise.
    defaults: Spec,
    image: Option<(Spec, Arc<Image>)>,
    /// While requests are for the state of the machine.
    stretched: Option<Stretched>,
    /// Requests under way, in the order in which they were given.
    beside: Vec<JoinHandle<Outcome>>,
}

impl Session {
    pub(crate) fn new(defaults: Spec) -> Self {
        Self { defaults, image: None, stretched: None, beside: Vec::new() }
    }

    /// Opens the image.
    ///
    /// # Errors
    /// The lines to print.
    pub(crate) fn open(&mut self, spec: Spec) -> Result<(), String> {
        let image = Image::open(&spec)?;
        self.image = Some((spec, Arc::new(image)));
        Ok(())
    }

    /// Closes the image, once all requests are done. Whether all went well.
    pub(crate) fn close(&mut self) -> bool {
        let done = self.wait();
        let Some((spec, image)) = self.image.take() else { return done };
        let closed = match Arc::into_inner(image).map(Image::close) {
            Some(Err(error)) => {
                show::complain(&shared::failed(&error));
                false
            }
            _ => done,
        };
        let undone = self.stretched.take().map(|stretched| stretched.undo(&spec.file()?));
        undone.is_none_or(|undone| undone.map_err(|why| show::complain(&why)).is_ok()) && closed
    }

    /// Has requests go to the state of the machine, as far as `end` of it, or to the disk.
    fn turn(&mut self, end: Option<u64>) -> bool {
        let Some((spec, image)) = &self.image else { return true };
        if match end {
            Some(end) => self.stretched.is_some() && image.holds(0, end),
            None => self.stretched.is_none(),
        } {
            return true;
        }
        let spec = spec.clone();
        let closed = self.close();
        let turned = self.reopened(&spec, end).map_err(|why| show::complain(&why));
        if turned.is_err() && self.image.is_none() {
            // What comes next is for the disk.
            let _ = self.open(spec);
        }
        closed && turned.is_ok()
    }

    fn reopened(&mut self, spec: &Spec, end: Option<u64>) -> Result<(), String> {
        self.stretched = end.map(|end| stretch(&spec.file()?, end)).transpose()?;
        let start = self.stretched.as_ref().map_or(0, |stretched| stretched.start);
        let image = Image::open(spec)?.from(start);
        self.image = Some((spec.clone(), Arc::new(image)));
        Ok(())
    }

    /// Waits for the requests under way, and tells of them in the order in which they were given.
    fn wait(&mut self) -> bool {
        let mut succeeded = true;
        for thread in self.beside.drain(..) {
            succeeded &= thread.join().is_ok_and(printed);
        }
        succeeded
    }

    /// Carries out one line.
    pub(crate) fn run(&mut self, line: &str) -> Next {
        let command = match commands::parse(line) {
            Ok(None) => return Next::Done,
            Ok(Some(command)) => command,
            Err(Wrong::Unknown(text)) => {
                eprintln!("{text}");
                return Next::Failed;
            }
            Err(Wrong::Argument(text)) => {
                println!("{text}");
                return Next::Failed;
            }
        };
        if !self.turn(command.end_in_state()) {
            return Next::Failed;
        }
        let succeeded = match command {
            Command::Quit => return Next::Quit,
            Command::Abort => abort(),
            Command::Raise(signal) => signal_hook::low_level::raise(signal).is_ok(),
            Command::Sleep(milliseconds) => {
                thread::sleep(Duration::from_millis(milliseconds));
                true
            }
            Command::WaitForAll => self.wait(),
            Command::Open(given) => self.opened(&given),
            Command::Close => self.close(),
            Command::Reopen(given) => self.reopen(&given),
            Command::Truncate(size) => self.truncate(size),
            other => match self.image.clone() {
                Some((spec, image)) => self.request(other, &spec, &image),
                None => {
                    eprintln!("no file open, try 'help open'");
                    false
                }
            },
        };
        if succeeded { Next::Done } else { Next::Failed }
    }

    fn request(&mut self, command: Command, spec: &Spec, image: &Arc<Image>) -> bool {
        let writes = matches!(command, Command::Write(_) | Command::WriteBeside(_));
        if writes && !image.is_writable() {
            show::complain("Block node is read-only");
            return false;
        }
        match command {
            Command::Read(read) => printed(Read { copy_up: spec.copy_on_read, ..read }.run(image)),
            Command::Write(write) => printed(write.run(image)),
            Command::ReadBeside(read) => self.beside(image, move |image| read.run(image)),
            Command::WriteBeside(write) => self.beside(image, move |image| write.run(image)),
            Command::Flush => told(image.flush()),
            Command::Alloc { at, len, shown } => {
                let sum = image.allocation(at, len.min(image.size().saturating_sub(at)));
                told(sum.map(|parts| {
                    let sum: u64 = parts.iter().filter(|part| part.2).map(|part| part.1).sum();
                    println!("{sum}/{len} bytes allocated at offset {shown}");
                }))
            }
            Command::Map => told(image.allocation(0, image.size()).map(|parts| {
                for (at, len, there) in parts {
                    let word = if there { "    allocated" } else { "not allocated" };
                    println!(
                        "{} ({len:#x}) bytes {word} at offset {} ({at:#x})",
                        show::size(len),
                        show::size(at)
                    );
                }
            })),
            Command::Length => {
                println!("{}", show::size(image.size()));
                true
            }
            Command::Info => describe(spec),
            _ => false,
        }
    }

    /// Has a request carried out beside what comes after it.
    fn beside(
        &mut self,
        image: &Arc<Image>,
        run: impl FnOnce(&Image) -> Outcome + Send + 'static,
    ) -> bool {
        let image = Arc::clone(image);
        self.beside.push(thread::spawn(move || run(&image)));
        true
    }

    fn opened(&mut self, given: &Parsed) -> bool {
        if self.image.is_some() {
            eprintln!("file open already, try 'help close'");
            return false;
        }
        let spec = Spec {
            name: given.operands.first().cloned().unwrap_or_default(),
            options: lists(given),
            format: self.defaults.format.filter(|_| !names_driver(given)),
            image_opts: self.defaults.image_opts,
            read_only: given.has('r'),
            snapshot: given.has('s'),
            copy_on_read: given.has('C'),
            force_share: given.has('U'),
        };
        self.open(spec).map_err(|error| show::complain(&error)).is_ok()
    }

    fn reopen(&mut self, given: &Parsed) -> bool {
        let Some((spec, image)) = &self.image else {
            eprintln!("no file open, try 'help open'");
            return false;
        };
        let wanted = lists(given);
        let cluster_size = image.disk().ok().and_then(|disk| disk.cluster_size());
        if let Err(why) = shared::check_tuning(&wanted, cluster_size) {
            show::complain(&why);
            return false;
        }
        let mut spec = spec.clone();
        for (key, value) in wanted {
            if key == "read-only" {
                spec.read_only = value == "on";
            }
        }
        spec.read_only = (spec.read_only || given.has('r')) && !given.has('w');
        let closed = self.close();
        self.open(spec).map_err(|error| show::complain(&error)).is_ok() && closed
    }

    /// Gives the disk another size.
    fn truncate(&mut self, size: u64) -> bool {
        let Some((spec, _)) = &self.image else { return false };
        let spec = spec.clone();
        let closed = self.close();
        let open = OpenOptions::default().format(spec.format);
        let options = ResizeOptions::default().open(open).shrink(true);
        let (size, cancel) = (NewSize::Exactly(size), CancelToken::new());
        let file = spec.file().unwrap_or_default();
        let resized = resize(&file, size, &options, &qcow::Silent, &cancel);
        let reopened = self.open(spec).map_err(|error| show::complain(&error)).is_ok();
        told(resized.map(|_| ())) && closed && reopened
    }
}

fn printed(outcome: Outcome) -> bool {
    print!("{}", outcome.text);
    outcome.succeeded
}

fn told(result: qcow::Result<()>) -> bool {
    result.map_err(|error| show::complain(&shared::failed(&error))).is_ok()
}

fn lists(given: &Parsed) -> Vec<(String, String)> {
    given.all('o').flat_map(|list| shared::option_list(list.as_bytes())).collect()
}

fn names_driver(given: &Parsed) -> bool {
    lists(given).iter().any(|(key, _)| key == "driver")
}

fn describe(spec: &Spec) -> bool {
    let options = InfoOptions::default();
    let file = spec.file().unwrap_or_default();
    let found = info(&file, &options).map(|images| images.into_iter().next());
    told(found.map(|image| {
        let Some(image) = image else { return };
        println!("format name: {}", image.format);
        let cluster = image.cluster_size.unwrap_or(0);
        let coverage = cluster * cluster / 8;
        let state = if coverage == 0 { 0 } else { image.virtual_size.next_multiple_of(coverage) };
        println!("cluster size: {}", show::size(cluster));
        println!("vm state offset: {}", show::size(state));
        if let Some(FormatSpecific::Qcow2(qcow2)) = &image.format_specific {
            println!("Format specific information:\n    compat: {}", qcow2.compat);
        }
    }))
}
