//! Saves images that were deleted while a process has them open, and looks for those that no process has open
//! any more.
//!
//! [`look`] brings [`Facts`] and holds every deleted file open from then on, so that what comes after does
//! not depend on the process any more. [`plan`] is pure: it says of every file whether it can be saved,
//! where to, and if not, why. [`carry_out`] copies, proves the copy, and gives it a name that was free.
//!
//! A file is known by what is open: it must be an image that another open image names as its base, have
//! the format that is recorded there, and be open for writing in no process. Its name alone proves nothing.
//!
//! For a guest that does not run, [`search`] looks for the lost base among other files, by digest only.

mod candidates;
mod execute;
mod facts;
mod look;
mod missing;
mod pinned;
mod pinned_files;
mod plan;
mod refer;
mod value;
mod view;
mod writers;

pub use candidates::{Candidate, LostBase, LostRange, Search, SearchOptions, Verdict, search};
pub use execute::{Outcome, Rescue, Saved, State, Unrestored, carry_out};
pub use facts::{
    Content, DirectoryFacts, Facts, Gone, Need, OpenImage, Place, ProcessFacts, Reference, Taken,
    Unseen,
};
pub use look::{Looked, Whose, look};
pub use pinned_files::PinnedFiles;
pub use plan::{Options, plan};
pub use value::{Action, Code, Holder, Item, Lost, Plan, Restore};
