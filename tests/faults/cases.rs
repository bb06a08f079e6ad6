//! The commands that are disturbed, on images so small that every call they make can be.

/// A command that is run again and again, each time in a new directory.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// As in the shell; `SRC/` is the directory of the sources.
    pub(crate) line: &'static str,
    /// What it makes, there or not yet.
    pub(crate) makes: &'static [&'static str],
    /// What is at the first of them before.
    pub(crate) old: Option<&'static [u8]>,
    /// The image of the sources that it changes, as `image`.
    pub(crate) changes: Option<&'static str>,
    /// What comes through a pipe.
    pub(crate) input: Option<&'static str>,
    /// The codes with which it says that it failed.
    pub(crate) failures: &'static [i32],
}

const OLD: &[u8] = b"what was there before";

pub(crate) const fn case(name: &'static str, line: &'static str) -> Case {
    let (makes, old, changes, input) = (&[] as &[_], None, None, None);
    Case { name, line, makes, old, changes, input, failures: &[1] }
}

const fn making(name: &'static str, line: &'static str) -> Case {
    Case { makes: &["new"], ..case(name, line) }
}

const fn replacing(name: &'static str, line: &'static str) -> Case {
    Case { old: Some(OLD), ..making(name, line) }
}

const fn repairing(name: &'static str, line: &'static str, image: &'static str) -> Case {
    Case { changes: Some(image), ..case(name, line) }
}

/// Those that make something.
pub(crate) const MAKERS: [Case; 19] = [
    making("create raw", "create new 64k"),
    making("create raw, full", "create -o preallocation=full new 64k"),
    making("create qcow2", "create -f qcow2 new 1M"),
    replacing("create over another", "create -f qcow2 --force new 1M"),
    making("create metadata", "create -f qcow2 -o preallocation=metadata new 1M"),
    making("create falloc", "create -f qcow2 -o preallocation=falloc,cluster_size=4k new 64k"),
    making("create overlay", "create -f qcow2 -b SRC/top -F qcow2 new"),
    Case {
        makes: &["new", "data"],
        ..case("create with data file", "create -f qcow2 -o data_file=data new 64k")
    },
    making("flatten", "flatten --threads 1 --digest SRC/top new"),
    replacing("flatten over another", "flatten --threads 1 --force SRC/top new"),
    making("flatten to raw", "flatten --threads 1 -O raw SRC/top new"),
    making("flatten -c", "flatten --threads 1 -c SRC/top new"),
    making("flatten --direct", "flatten --threads 1 --direct SRC/top new"),
    Case {
        makes: &["new", "data"],
        ..case("flatten with data file", "flatten --threads 1 -o data_file=data SRC/top new")
    },
    Case { input: Some("small.raw"), ..making("flatten a stream", "flatten --threads 1 - new") },
    making("convert --bitmaps", "convert --threads 1 --bitmaps SRC/marked new"),
    making(
        "convert --bitmaps onto a backing file",
        "convert --threads 1 --bitmaps -o cluster_size=4k -B SRC/base -F qcow2 SRC/marked new",
    ),
    making("checksum --manifest", "checksum --threads 1 --manifest new SRC/top"),
    making("map --picture", "map --picture new.svg SRC/top").drawing(),
];

impl Case {
    const fn making_new(self) -> Self {
        Self { makes: &["new"], ..self }
    }

    const fn drawing(self) -> Self {
        Self { makes: &["new.svg"], ..self }
    }
}

/// Those that make something with several threads, for what need not be the same each time.
pub(crate) const MANY_THREADS: [Case; 5] = [
    making("create metadata", "create -f qcow2 -o preallocation=metadata new 1M"),
    making("flatten", "flatten --threads 3 SRC/top new"),
    replacing("flatten over another", "flatten --threads 3 --force SRC/top new"),
    making("flatten to raw", "flatten --threads 3 -O raw SRC/top new"),
    making("flatten -c", "flatten --threads 3 -c SRC/top new"),
];

/// Those that share space with their source, or have it copied, where that can be.
pub(crate) const SHARERS: [Case; 4] = [
    making("flatten", "flatten --threads 1 -o cluster_size=4k SRC/top new"),
    making("flatten to raw", "flatten --threads 1 -O raw --digest SRC/top new"),
    making(
        "flatten a raw image",
        "flatten --threads 1 -f raw -o cluster_size=4k SRC/small.raw new",
    ),
    Case {
        makes: &["new", "data"],
        ..case(
            "flatten with data file",
            "flatten --threads 1 -o data_file=data,cluster_size=4k SRC/top new",
        )
    },
];

/// Those whose source is changed while they read it; it is `image`.
pub(crate) const WHILE_CHANGED: [Case; 11] = [
    changing("flatten", "flatten --threads 1 image new").making_new(),
    changing("flatten to raw", "flatten --threads 1 -O raw image new").making_new(),
    changing("flatten to a stream", "flatten --threads 1 image -"),
    changing("checksum", "checksum --threads 1 image"),
    changing("checksum, SHA-256", "checksum --threads 1 --algorithm sha256 image"),
    changing("checksum, tree hash", "checksum --threads 1 --algorithm blake3-tree image"),
    changing("flatten to a raw stream", "flatten --threads 1 -O raw image -"),
    changing("check", "check --threads 1 image"),
    changing("map", "map --output json image"),
    changing("measure", "measure -O qcow2 image"),
    Case {
        failures: &[2, 3, 4],
        ..changing("compare", "compare --threads 1 -f qcow2 -F raw image SRC/sound.raw")
    },
];

const fn changing(name: &'static str, line: &'static str) -> Case {
    Case { changes: Some("sound"), ..case(name, line) }
}

/// Those that only look, and those that only print.
pub(crate) const READERS: [Case; 9] = [
    case("info", "info --backing-chain SRC/top"),
    case("map", "map --output json SRC/top"),
    case("measure", "measure -O qcow2 SRC/top"),
    case("checksum", "checksum --threads 1 SRC/top"),
    case("check", "check --threads 1 --output json SRC/top"),
    Case {
        failures: &[2, 3, 4],
        ..case("compare", "compare --threads 1 -f qcow2 -F raw SRC/top SRC/same.raw")
    },
    case("flatten to a stream", "flatten --threads 1 SRC/top -"),
    case("flatten to a raw stream", "flatten --threads 1 -O raw SRC/top -"),
    case(
        "checksum --untrusted",
        "checksum --threads 1 --untrusted -f qcow2 --allow-dir SRC SRC/top",
    ),
];

/// Those that repair an image where it is.
pub(crate) const REPAIRS: [Case; 3] = [
    repairing("check -r leaks", "check --threads 1 -r leaks image", "leaks"),
    repairing("check -r all", "check --threads 1 -r all image", "corrupt"),
    repairing("check -r all, refcounts anew", "check --threads 1 -r all image", "uncounted"),
];

/// Those that change an image where it is by one switch of its header, and give back space after it.
pub(crate) const CHANGES: [Case; 2] = [
    repairing("bitmap", "bitmap --threads 1 --add image b", "sound"),
    repairing("amend", "amend --threads 1 -o refcount_bits=64 image", "sound"),
];

/// Those that give back space: free places, and then the end of the file.
pub(crate) const SPARSIFIERS: [Case; 2] = [
    repairing("sparsify", "sparsify --threads 1 image", "wiped"),
    repairing("sparsify --compact", "sparsify --threads 1 --compact image", "gappy"),
];

/// Those that work in place, and leave the disk as it is.
pub(crate) const IN_PLACE: [Case; 4] = [
    repairing("snapshot -c", "snapshot -c s image", "sound"),
    repairing("snapshot -d", "snapshot -d t image", "wiped"),
    // To no backing file: an empty name.
    repairing("rebase", "rebase --threads 1 -b  image", "over"),
    repairing("bitmap --merge", "bitmap --threads 1 --merge b image other", "merged"),
];

/// Writes into a file that exists.
pub(crate) const OVERWRITER: Case = Case {
    old: Some(&[0xa5; 256 << 10]),
    ..making("flatten -n", "flatten --threads 1 -n -O raw SRC/top new")
};

/// The case of this name.
pub(crate) fn by_name(name: &str) -> &'static Case {
    static OTHERS: [Case; 1] = [OVERWRITER];
    static CASES: [&[Case]; 8] =
        [&MAKERS, &READERS, &REPAIRS, &CHANGES, &SPARSIFIERS, &IN_PLACE, &SHARERS, &OTHERS];
    let mut cases = CASES.iter().copied().flatten();
    cases.find(|case| case.name == name).unwrap_or_else(|| panic!("no case '{name}'"))
}

/// A repair of many sectors, for where it need not be run too often.
pub(crate) const SCATTERED: Case =
    repairing("check -r all, scattered", "check --threads 1 -r all image", "scattered");
