//! Workers as child processes.
#[derive(Debug)]
pub struct ProcessConfig;
#[derive(Debug)]
pub struct ProcessLauncher;
