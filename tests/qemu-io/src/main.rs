//! `qemu-io` for QEMU's own tests: commands that read and write one image, through the engine of this project and nothing
//! else. With it and the program under the name `qemu-img`, `scripts/iotests own` runs those tests without QEMU. It
//! understands what they use, prints what they compare, and is not installed.
//!
//! ```console
//! $ qemu-io -f qcow2 -c 'write -P 7 0 64k' -c 'read -P 7 4k 1k' disk.qcow2
//! ```

mod arguments;
mod commands;
mod flags;
mod image;
mod requests;
mod session;
mod show;
mod state;

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use session::{Next, Session};

fn main() -> ExitCode {
    let given = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(given) => given,
        Err(error) => {
            eprintln!("qemu-io: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut session = Session::new(given.spec.clone());
    if given.spec.is_named()
        && let Err(error) = session.open(given.spec)
    {
        show::complain(&error);
        return ExitCode::FAILURE;
    }
    let mut failed = false;
    let mut run = |line: &str| {
        let next = session.run(line);
        failed |= next == Next::Failed;
        next
    };
    if given.commands.is_empty() {
        let mut lines = io::stdin().lock().lines();
        loop {
            print!("qemu-io> ");
            let _ = io::stdout().flush();
            let Some(Ok(line)) = lines.next() else { break };
            if run(&line) == Next::Quit {
                break;
            }
        }
    } else {
        for line in &given.commands {
            if run(line) == Next::Quit {
                break;
            }
        }
    }
    failed |= !session.close();
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
