//! A host is emptied: its guests go to one or several others, planned as one.
//!
//! What is known of all guests and destinations ([`Fleet`]) becomes a plan ([`place`]): which guest goes where, in
//! which order, and which cannot and why. No destination gets more than it has. Both are pure; [`look`] fills the
//! fleet in from what a preflight finds.
//!
//! An [`Evacuation`] carries the plan out: so many guests at a time ([`Schedule`]), each a migration of its own, under a
//! journal from which a later process goes on. What is done for one guest is [`Work`]; [`Migrations`] is the real one.

mod fleet;
mod journal;
mod look;
mod migrations;
mod place;
mod report;
mod room;
mod run;
mod schedule;
mod show;
mod value;

pub use fleet::{Candidate, Capacity, Destination, Fleet};
pub use journal::Orders;
pub use look::{Limits, Looking, Way, look};
pub use migrations::{Migrations, Programs, Spare};
pub use place::place;
pub use report::{Ending, Evacuated, Event, Moved, Outcome, REPORT_SCHEMA, Watcher};
pub use run::{Evacuation, Stops, Work};
pub use schedule::{Begins, Schedule};
pub use value::{Assignment, At, EvacuationPlan, Left, SCHEMA, Share, Taken, Total};
