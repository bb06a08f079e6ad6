//! Changes of the first cluster beyond the fields that name tables.

use super::Edit;
use crate::Result;
use crate::format::{Header, HeaderArea};
use crate::image::first_cluster::{FirstCluster, editable};
use crate::image::read_first_cluster;

impl Edit {
    /// What the first cluster will say, without what the next writer has to take out of it anyway: to be changed, and
    /// given to [`set_area`](Self::set_area).
    ///
    /// # Errors
    /// As [`editable`].
    pub(crate) fn area(&self) -> Result<HeaderArea> {
        match &self.area {
            Some(area) => Ok(area.clone()),
            None => editable(&**self.image.storage()),
        }
    }

    /// Gives the image these feature bits and extensions, this version and backing file's name, with the switch.
    /// Places, lengths and the size stay those that the image has, or gets otherwise.
    pub(crate) fn set_area(&mut self, area: HeaderArea) {
        self.area = Some(area);
    }

    /// Plans the switch to `area`.
    pub(super) fn stage_area(&mut self, mut area: HeaderArea) -> Result<()> {
        let storage = self.image.storage();
        let mut cluster = read_first_cluster(&**storage)?;
        if let Some(sector) = cluster.get_mut(..self.sector.len()) {
            sector.copy_from_slice(&self.sector);
        }
        let places = Header::parse(&cluster)?;
        let header = &mut area.header;
        header.size = places.size;
        header.l1_entries = places.l1_entries;
        header.l1_table_offset = places.l1_table_offset;
        header.refcount_table_offset = places.refcount_table_offset;
        header.refcount_table_clusters = places.refcount_table_clusters;
        header.snapshot_count = places.snapshot_count;
        header.snapshots_offset = places.snapshots_offset;
        let change = FirstCluster::new(&**storage, &area)?;
        change.prepare(&mut self.staged)?;
        change.switch(&mut self.staged)?;
        change.prove(&self.staged, &area)
    }
}
