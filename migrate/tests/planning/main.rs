//! Plans: facts become a plan or refusals; plans carried out on models of hosts.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

mod evacuate;
mod hook;
mod live_plan;
mod live_run;
mod plan_domain;
mod plan_facts;
mod plan_files;
mod plan_model;
mod plan_proofs;
mod plan_rows;
mod plan_seal;
mod preflight;
mod remedies;
