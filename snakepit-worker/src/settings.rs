//! The settings of launchers that error messages name.

pub use snakepit_session::settings::Setting;

/// The Python interpreter of the workers.
pub const PYTHON: Setting = Setting::new("Builder::python", "python");
/// The command that runs a worker.
pub const WORKER_COMMAND: Setting = Setting::new("Builder::worker_command", "worker-command");
/// The time from the launch of a worker until it accepts calls.
pub const START_TIMEOUT: Setting = Setting::new("Builder::start_timeout", "start-timeout");
/// The parent of the run directory.
pub const RUN_DIR: Setting = Setting::new("Builder::run_dir", "run-dir");

/// All settings of this module.
pub const ALL: &[Setting] = &[PYTHON, WORKER_COMMAND, START_TIMEOUT, RUN_DIR];
