//! The foundation service: settings, boot table, supervisor, command line.
pub mod settings;
pub mod supervisor;
