//! Carries out the part of a plan that comes before the guest moves: bases are brought, new images made
//! and proven.

mod image;
