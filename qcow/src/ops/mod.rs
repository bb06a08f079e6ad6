//! One module per operation, each with its own `Options` and `Outcome`.

pub mod amend;
pub mod backing;
pub mod bench;
pub mod bitmap;
pub mod check;
pub mod commit;
pub mod compare;
pub mod copy;
pub mod create;
pub mod digest;
pub(crate) mod edit;
pub mod flatten;
pub mod info;
pub mod map;
pub mod measure;
mod not_carried;
pub mod rebase;
pub mod resize;
pub mod snapshot;
pub mod sparsify;
mod target;
mod users;
mod work;

pub use crate::threads::usual_threads;
pub use not_carried::{NotCarried, Property};
pub use target::{Preallocation, Qcow2Options, RawOptions, TargetOptions};
pub use users::begin;
pub use work::salvage::DamageReport;

pub(crate) use crate::chain::{path_text, path_texts};
pub(crate) use target::new_disk_size;
