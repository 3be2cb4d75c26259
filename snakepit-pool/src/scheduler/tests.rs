//! scheduler tests
