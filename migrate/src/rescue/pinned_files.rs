//! Files that are held open, so that they live on whatever becomes of the process that had them.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use super::view::View;
use crate::fs::fd_path;

/// Open files, by device and inode, and the roots that the processes see.
#[derive(Debug, Default)]
pub struct PinnedFiles {
    files: HashMap<(u64, u64), File>,
    views: HashMap<u32, View>,
}

impl PinnedFiles {
    pub(super) fn hold(&mut self, object: (u64, u64), file: File) {
        self.files.entry(object).or_insert(file);
    }

    pub(super) fn see(&mut self, process: u32, view: View) {
        self.views.insert(process, view);
    }

    /// What a process sees.
    pub(super) fn view(&self, process: u32) -> Option<&View> {
        self.views.get(&process)
    }

    /// The file with this device and inode.
    pub(super) fn file(&self, object: (u64, u64)) -> Option<&File> {
        self.files.get(&object)
    }

    /// Where this program can open it again.
    pub(super) fn path(&self, object: (u64, u64)) -> Option<PathBuf> {
        self.file(object).map(fd_path)
    }
}
