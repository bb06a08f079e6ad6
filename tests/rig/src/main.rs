//! The rig for shell scripts: `rig run COMMAND...` runs a command outside of two hosts that live as long
//! as it does; in it, `rig` does to them what [`USAGE`] says.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, exit};

const USAGE: &str = "\
usage: rig run COMMAND...            run COMMAND beside two new hosts, which go when it ends
In COMMAND, HOST being a or b:
       rig exec HOST WORDS...        run a program in HOST
       rig template FILE [MIB]       make a bootable template, a raw image (64 MiB)
       rig check FILE [MIB]          check every sector of a guest's raw disk, print the number of writes
       rig xml GUEST DISK            print the XML of a guest that boots from a QCOW2 image
Environment: RIG (this program), RIG_DIR (the rig's directory), RIG_RSH (runs words on B, when called on A)";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["run", program, ref rest @ ..] => run(program, rest),
        ["exec", host @ ("a" | "b"), ref rest @ ..] if !rest.is_empty() => {
            let directory = std::env::var_os("RIG_DIR").expect("to be called in 'rig run'");
            let host = rig::Host::at(directory.as_ref(), if host == "a" { 'a' } else { 'b' });
            let error =
                host.command(rest[0]).args(&rest[1..]).stdin(std::process::Stdio::inherit()).exec();
            panic!("nsenter: {error}");
        }
        ["template", file] => template("64").write(file.as_ref()),
        ["template", file, mib] => template(mib).write(file.as_ref()),
        ["check", file] => check(file, "64"),
        ["check", file, mib] => check(file, mib),
        ["xml", guest, disk] => {
            print!("{}", rig::guest::xml(guest, "none", &[rig::Disk::qcow2(disk)]));
        }
        _ => {
            eprintln!("{USAGE}");
            exit(1);
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    if let Some(why) = rig::rig::missing() {
        eprintln!("rig: no two hosts here: {why}");
        exit(1);
    }
    let rig = rig::Rig::up();
    let status = Command::new(program)
        .args(arguments)
        .env("RIG", std::env::current_exe().expect("a name"))
        .env("RIG_DIR", rig.directory())
        .env("RIG_RSH", rig.b.remote_shell())
        .status();
    drop(rig);
    match status {
        Ok(status) => exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))),
        Err(error) => {
            eprintln!("rig: {program}: {error}");
            exit(127);
        }
    }
}

fn template(mib: &str) -> rig::Template {
    let mib: u64 = mib.parse().expect("a number of MiB");
    rig::Template { size: mib << 20, ..rig::Template::default() }
}

fn check(raw: &str, mib: &str) {
    match template(mib).check(raw.as_ref(), rig::Kind::Boot) {
        Ok(writes) => println!("{writes}"),
        Err(why) => {
            eprintln!("rig: {why}");
            exit(1);
        }
    }
}
