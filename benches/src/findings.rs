//! What the report is made of.

use crate::machine::Machine;
use crate::measure::Measured;

/// What a run of the suite found out.
pub(crate) struct Findings {
    pub(crate) machine: Machine,
    /// What was left out or is particular to these figures.
    pub(crate) remarks: Vec<String>,
    pub(crate) results: Vec<Measured>,
}
