//! Flattens a disk of a guest that runs: afterwards it has no backing file, and its previous one, deleted or
//! not, is no longer needed. Or moves it to another place of its host, where its backing file may stay below it.
//!
//! ```text
//! look (the guest, its chain, what each layer holds) -> plan, or refusals -> mark -> libvirt's job, watched
//!   pull:  -> flushed by stopping the guest for a moment -> read back from the disk
//!   copy:  -> in step -> the guest uses the copy -> read back
//! ```
//!
//! Two things can go wrong that libvirt does not look after. When a pull ends, QEMU writes at once into the
//! image's header that nothing is below it, but keeps the tables that lead to what was pulled in memory: if
//! QEMU is killed then, the image is consistent, has no backing file, and is empty where its template had data. Hence the
//! flush, and hence the comparison of the tables on the disk with what all layers held before. And a
//! run that is killed leaves a job of libvirt's that no process waits for. Hence the mark: the same command, called
//! again, goes on where it was.

mod allocation;
mod compare;
mod look;
mod plan;
mod resume_record;
mod run;
mod value;

pub use allocation::AllocationSummary;
pub use look::{Looked, look};
pub use plan::plan;
pub use resume_record::ResumeRecord;
pub use run::{RunContext, flatten, go_on};
pub use value::{Below, Facts, Flattened, LivePlan, Method, Needs, Options, Place};
