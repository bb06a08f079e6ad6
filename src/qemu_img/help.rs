//! The help, one text for all commands: programs look into it for options.

/// What `--help` prints.
pub(super) fn text() -> String {
    format!("{HEAD}{COMMANDS}{TAIL}")
}

const HEAD: &str = concat!(
    "qemu-img version 10.0.2 (qcowtool ",
    env!("CARGO_PKG_VERSION"),
    ")
usage: qemu-img [standard options] command [command options]
QCOW2 and raw images, by qcowtool in the place of QEMU's disk image utility

    '-h', '--help'       print this text
    '-V', '--version'    print the version
    '-T', '--trace'      accepted, does nothing

Commands:
"
);

const COMMANDS: &str = "  \
amend [--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename
  bench [-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] [-o offset] [--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename
  bitmap (--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] [-g granularity] [--object objectdef] [--image-opts | -f fmt] filename bitmap
  check [--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache] [-U] filename
  commit [--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename
  compare [--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2
  convert [--object objectdef] [--image-opts] [--target-image-opts] [--target-is-zero] [--bitmaps [--skip-broken-bitmaps]] [-U] [-C] [-c] [-p] [-q] [-n] [-f fmt] [-t cache] [-T src_cache] [-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] [-l snapshot_param] [-S sparse_size] [-r rate_limit] [-m num_coroutines] [-W] [--salvage] filename [filename2 [...]] output_filename
  create [--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]
  dd [--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output
  info [--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename
  map [--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] filename
  measure [--output=ofmt] [-O output_fmt] [-o options] [--size N | [--object objectdef] [--image-opts] [-f fmt] [-l snapshot_param] filename]
  rebase [--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] [-c] -b backing_file [-F backing_fmt] filename
  resize [--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] filename [+ | -]size
  snapshot [--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename
";

const TAIL: &str = "
Sizes are in bytes, or have a suffix k, M, G, T, P or E, each 1024 times the one before.
The options of a new image are listed by 'create -f fmt -o help', those of amend by 'amend -f fmt -o help'.
Cache modes: none, writeback, writethrough, directsync, unsafe.
What differs from QEMU's program is described in docs/qemu-img.md.

Supported formats: qcow2 raw
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_find_what_they_look_for() {
        let text = text();
        let lines = || text.lines();
        assert!(lines().any(|l| l.starts_with("  bitmap (") && l.ends_with(" filename bitmap")));
        assert!(lines().any(|line| line.contains(" info ") && line.contains("-U")));
        assert!(text.contains("--target-is-zero"));
        assert!(
            lines().any(|line| line.starts_with("Supported formats:") && line.contains("qcow2"))
        );
    }
}
