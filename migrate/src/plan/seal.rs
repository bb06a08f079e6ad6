//! A plan as a file: written with its digest, and not read without it being right.

use super::value::{Plan, SCHEMA};
use crate::{Error, Result};

/// Set before what is digested, so that it is never taken for the digest of anything else.
const CONTEXT: &str = "qcowtool plan digest 1";

impl Plan {
    /// The plan with the digest of what is in it.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if it has a path that is no UTF-8.
    pub fn sealed(mut self) -> Result<Self> {
        self.digest = self.content_digest()?;
        Ok(self)
    }

    /// The plan as JSON, for a file or for another program.
    ///
    /// # Errors
    /// As [`sealed`](Self::sealed).
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|error| unwritable(&error))
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if it is no plan, one of another version, or one that was
    /// changed after it was made.
    pub fn from_json(text: &str) -> Result<Self> {
        /// What is looked at before anything else.
        #[derive(serde::Deserialize)]
        struct Start {
            schema: String,
        }
        let not_a_plan = |error: serde_json::Error| {
            Error::usage(format!("this is no plan: {error}")).hint("give a file that plan wrote")
        };
        let start: Start = serde_json::from_str(text).map_err(not_a_plan)?;
        check_schema(&start.schema)?;
        let plan: Self = serde_json::from_str(text).map_err(not_a_plan)?;
        plan.check()?;
        Ok(plan)
    }

    /// Checks that this is a plan of our version, and as it was made.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) if not.
    pub fn check(&self) -> Result<()> {
        check_schema(&self.schema)?;
        if self.digest == self.content_digest()? {
            return Ok(());
        }
        Err(Error::usage("the plan was changed after it was made: its digest is wrong")
            .hint("make a new plan; what shall be different belongs into the policy"))
    }

    /// Digest of everything but the digest.
    fn content_digest(&self) -> Result<String> {
        let bare = Self { digest: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&bare).map_err(|error| unwritable(&error))?;
        let digest = blake3::Hasher::new_derive_key(CONTEXT).update(&text).finalize();
        Ok(digest.to_hex().to_string())
    }
}

/// Checks the name and version of a plan's JSON form.
fn check_schema(schema: &str) -> Result<()> {
    if schema == SCHEMA {
        return Ok(());
    }
    Err(Error::usage(format!("this is a plan of the form '{schema}', not '{SCHEMA}'"))
        .hint("make a new plan with this version of the program"))
}

fn unwritable(error: &serde_json::Error) -> Error {
    Error::usage(format!("the plan has no JSON form: {error}"))
}
