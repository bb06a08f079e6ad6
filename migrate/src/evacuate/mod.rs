//! A host is emptied: its guests go to one or several others, planned as one.
//!
//! What is known of all guests and destinations ([`Fleet`]) becomes a plan ([`place`]): which guest goes where, in
//! which order, and which cannot and why. No destination gets more than it has. Both are pure; [`look`] fills the
//! fleet in from what a preflight finds.

mod fleet;
mod look;
mod place;
mod room;
mod show;
mod value;

pub use fleet::{Candidate, Capacity, Destination, Fleet};
pub use look::{Limits, Looking, Way, look};
pub use place::place;
pub use value::{Assignment, At, EvacuationPlan, Left, SCHEMA, Share, Taken, Total};
