//! What an operator sees: metrics, the access log, the process's own log.

pub mod access_log;
pub mod cells;
pub mod logging;
pub mod metrics;
pub mod process;
