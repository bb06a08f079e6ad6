//! Prepares storage for migrations.
