//! Where images of one run lie: in memory, if the machine has a place for files there.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::forge::{BASE_NAME, DATA_NAME};

/// A directory with an image, and what it may stand on beside it.
#[derive(Debug)]
pub struct Place(TempDir);

impl Place {
    /// A directory with `image` in it, as [`top`](Self::top), a backing file and a data file.
    pub fn with(image: &[u8]) -> Self {
        let memory = Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("qcow-fuzz-");
        let dir = if std::env::var_os("TMPDIR").is_none() && memory.is_dir() {
            builder.tempdir_in(memory)
        } else {
            builder.tempdir()
        };
        let place = Self(dir.expect("a temporary directory"));
        fs::write(place.top(), image).expect("an image");
        fs::write(place.path(BASE_NAME), base()).expect("a backing file");
        fs::write(place.path(DATA_NAME), data()).expect("a data file");
        place
    }

    /// The image.
    pub fn top(&self) -> PathBuf {
        self.path("top")
    }

    /// Any file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.0.path()
    }
}

/// The content of the raw backing file of all forged images. Its length is odd.
pub fn base() -> Vec<u8> {
    (0..20_001u32).map(|at| (at % 251) as u8 | 1).collect()
}

/// The content of the external data file of all forged images. Most disks are longer, some shorter.
pub fn data() -> Vec<u8> {
    (0..70_001u32).map(|at| (at % 241) as u8 ^ (at / 512) as u8).collect()
}
