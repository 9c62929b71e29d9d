//! The process's own log: on standard error, for people or as JSON.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::config::LogFormat;

/// Starts logging. A second call, as from tests in one process, changes nothing.
pub fn start(filter: &str, format: LogFormat) {
    // h2 warns of every client that breaks the protocol: whoever connects could fill the log.
    let filter =
        EnvFilter::try_new(format!("h2=error,{filter}")).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // It would be told to standard error, and a standard error that nobody reads any more would then panic.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    let _ = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}

/// Checks a filter such as `info` or `warn,waypost::source=debug`.
///
/// # Errors
///
/// What is wrong with it, in words.
pub fn parse_filter(text: &str) -> Result<String, String> {
    // `EnvFilter` takes a misspelt level for the name of a module, and would log nothing at all.
    let words = text.split(',').map(str::trim);
    for word in words.filter(|word| !word.contains(['=', ':', '['])) {
        let level = word.parse::<LevelFilter>().ok();
        level.filter(|_| !word.is_empty()).ok_or_else(|| {
            format!("{word:?} is no level: write error, warn, info, debug, trace or off")
        })?;
    }
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!(
            "{error}: write error, warn, info, debug or trace, or a list such as info,waypost=debug"
        )),
    }
}

/// What tests read of the log.
#[cfg(test)]
pub mod testing {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    /// What is logged meanwhile, line by line.
    pub fn logged(act: impl FnOnce()) -> Vec<String> {
        struct Log(Arc<Mutex<Vec<u8>>>);

        impl io::Write for Log {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(text);
                Ok(text.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Log(writer.clone()))
            .finish();
        tracing::subscriber::with_default(subscriber, act);
        let text = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::parse_filter;

    #[test]
    fn filters_are_checked() {
        for good in ["info", "off", "warn,waypost::source=debug"] {
            assert_eq!(parse_filter(good), Ok(good.to_owned()));
        }
        for bad in ["", "verbose", "info,", "waypost=loud", "a=b=c"] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }
}
