//! pool
#![warn(missing_docs)]
#![allow(dead_code)]
mod scheduler;
