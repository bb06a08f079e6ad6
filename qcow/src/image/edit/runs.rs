//! L2 tables that are made when they are written, in clusters one behind the other: their bytes are never all in memory.

use std::fmt;
use std::sync::Arc;

use super::Edit;
use crate::exact::{Exact, to_usize};
use crate::format::{Geometry, HostOffset};
use crate::image::update::Pieces;
use crate::io::{Storage, read_padded};
use crate::{Error, Result};

/// How tables are made: the same whenever they are asked for.
pub(super) trait Make: fmt::Debug + Send + Sync + 'static {
    /// What one table is made of.
    type Table: fmt::Debug + Send + Sync;

    /// Makes a table, which fills a cluster.
    ///
    /// # Errors
    /// As reading what it is made of.
    fn make(&self, table: &Self::Table, geometry: Geometry) -> Result<Vec<u8>>;
}

/// New tables, in the order in which they get their places.
#[derive(Debug)]
pub(super) struct Runs<M: Make> {
    make: Arc<M>,
    geometry: Geometry,
    runs: Vec<Run<M>>,
}

impl<M: Make> Runs<M> {
    pub(super) fn new(geometry: Geometry, make: M) -> Self {
        Self { make: Arc::new(make), geometry, runs: Vec::new() }
    }

    /// Adds a table that goes to `place`.
    pub(super) fn add(&mut self, place: HostOffset, table: M::Table) -> Result<()> {
        match self.runs.last_mut() {
            Some(run) if run.end()? == place.0 => run.tables.push(table),
            _ => self.runs.push(Run {
                make: Arc::clone(&self.make),
                geometry: self.geometry,
                start: place.0,
                tables: vec![table],
            }),
        }
        Ok(())
    }

    /// Has all of them written.
    pub(super) fn write(self, edit: &mut Edit) -> Result<()> {
        self.runs.into_iter().try_for_each(|run| edit.write_pieces(Arc::new(run)))
    }
}

#[derive(Debug)]
struct Run<M: Make> {
    make: Arc<M>,
    geometry: Geometry,
    start: u64,
    tables: Vec<M::Table>,
}

impl<M: Make> Run<M> {
    fn end(&self) -> Result<u64> {
        self.start.plus(self.count().times(self.piece_len())?)
    }
}

impl<M: Make> Pieces for Run<M> {
    fn start(&self) -> u64 {
        self.start
    }

    fn piece_len(&self) -> u64 {
        self.geometry.cluster_size()
    }

    fn count(&self) -> u64 {
        self.tables.len() as u64
    }

    fn piece(&self, number: u64) -> Result<Vec<u8>> {
        let table = self.tables.get(to_usize(number));
        let table = table.ok_or_else(|| Error::internal("there is no such L2 table"))?;
        self.make.make(table, self.geometry)
    }
}

/// The bytes of the table at `host`.
pub(super) fn read_table(
    storage: &dyn Storage,
    host: HostOffset,
    geometry: Geometry,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; to_usize(geometry.cluster_size())];
    read_padded(storage, &mut bytes, host.0).map_err(|error| error.structure("L2 table"))?;
    Ok(bytes)
}
