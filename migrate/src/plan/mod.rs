//! Facts and a policy become a plan, or refusals. Pure: nothing here looks at a host.
//!
//! The decision table (which row fits a disk) and the proof obligations (when an incremental copy may
//! be used) live here and nowhere else.

mod policy;
mod value;

pub use policy::{PathMap, Policy, Style, Verify};
pub use value::{
    Action, BasePlan, CopyMode, DiskPlan, Flag, Mode, NewImage, Plan, Predicted, Proof, Refusal,
    Row, SCHEMA, SeedHow, Warning,
};

use crate::facts::Facts;

/// Decides for every disk what to do, or says why not.
///
/// # Errors
/// All refusals, not only the first.
pub fn plan(_facts: &Facts, _policy: &Policy) -> Result<Plan, Vec<Refusal>> {
    Err(vec![])
}
