//! What the tests of stores share.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(crate) use fixtures::pattern::noise;
use migrate::facts::Identity;
use migrate::store::{LocalStore, Mode, Store};
use qcow::chain::{Chain, Format, OpenOptions};
use qcow::{CancelToken, Observer, Silent};

/// A directory that stands for a host, with one directory in it for images.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: LocalStore,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("host/images")).unwrap();
        let store = LocalStore::new(&dir.path().join("host")).unwrap();
        Self { dir, store }
    }

    /// Where a path of the host really is.
    pub(crate) fn real(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join("host").join(path.as_ref().strip_prefix("/").unwrap())
    }

    /// Its files, as another store.
    pub(crate) fn local(&self) -> LocalStore {
        LocalStore::new(&self.real("/")).unwrap()
    }

    pub(crate) fn put(&self, path: &str, content: &File) -> migrate::Result<Identity> {
        put(&self.store, path, content)
    }

    /// Names of the images.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.real("/images")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub(crate) fn put(store: &dyn Store, path: &str, content: &File) -> migrate::Result<Identity> {
    store.put(Path::new(path), content, Mode::Private, &Silent, &CancelToken::new())
}

/// A file of `len` bytes with data at these places.
pub(crate) fn sparse(len: u64, data: &[(u64, Vec<u8>)]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    for (offset, bytes) in data {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file
}

pub(crate) fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The tree hash of a raw disk.
pub(crate) fn tree_hash(raw: &Path) -> String {
    let options = OpenOptions::default().format(Format::Raw);
    let chain = Chain::open(raw, &options).unwrap();
    qcow::ops::digest::tree_hash(&chain, 1, &Silent, &CancelToken::new()).unwrap().root.to_string()
}

/// Stops what it watches at the first opportunity.
pub(crate) struct Stopper(pub(crate) CancelToken);

impl Observer for Stopper {
    fn progress(&self, _done: u64, _total: u64) {
        self.0.cancel();
    }
}
