//! `--config FILE`: TOML whose keys are the flags of `serve`. Each value goes through the parser of its flag, so that
//! flag, environment and file can't differ in what they accept.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use clap::{Arg, ArgMatches, Args, Command, parser::ValueSource};
use toml::de::{DeTable, DeValue};

use super::{
    ServeArgs,
    small_file::{self, SmallFile},
};

/// What the file gives, one key each, leaving out what `matches` has from flags or the environment.
pub(super) fn read(path: &Path, matches: &ArgMatches) -> anyhow::Result<Vec<ArgMatches>> {
    let text = small_file::read(path)
        .and_then(SmallFile::text)
        .with_context(|| format!("--config: could not read {}", path.display()))?;
    parse(&text, matches).map_err(|problem| {
        let line = text[..problem.offset].matches('\n').count() + 1;
        anyhow!("{}:{line}: {:#}", path.display(), problem.error)
    })
}

/// The flags of `serve` by themselves, for parsing apart from the whole command line.
pub(super) fn command() -> Command {
    ServeArgs::augment_args(Command::new("serve").no_binary_name(true))
}

/// The same without the environment.
pub(super) fn without_environment(command: Command) -> Command {
    command.mut_args(|arg| arg.env(None::<&'static str>))
}

struct Problem {
    /// Where in the text it is, in bytes.
    offset: usize,
    error: anyhow::Error,
}

fn parse(text: &str, matches: &ArgMatches) -> Result<Vec<ArgMatches>, Problem> {
    let table = DeTable::parse(text).map_err(|error| Problem {
        offset: error.span().map_or(0, |span| span.start.min(text.len())),
        error: anyhow!("{}", error.message()),
    })?;
    let command =
        without_environment(command()).mut_args(|arg| arg.default_value(None::<&'static str>));
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut given = Vec::new();
    for (key, value) in entries {
        let at_key = |error| Problem {
            offset: key.span().start,
            error,
        };
        let key = key.get_ref();
        let parsed = parse_entry(&command, key, value.get_ref()).map_err(at_key)?;
        if !is_explicit(matches, &key.replace('-', "_")) {
            given.push(parsed);
        }
    }
    Ok(given)
}

fn parse_entry(command: &Command, key: &str, value: &DeValue<'_>) -> anyhow::Result<ArgMatches> {
    let Some(arg) = keys(command).find(|arg| arg.get_long() == Some(key)) else {
        let known: Vec<_> = keys(command)
            .filter(|arg| !arg.is_hide_set())
            .filter_map(Arg::get_long)
            .collect();
        bail!("unknown key {key}; there are {}", known.join(", "));
    };
    let texts = match value {
        DeValue::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(|item| scalar(item.get_ref())).collect();
            let items = items.with_context(|| format!("{key}: a list of strings is expected"))?;
            match arg.get_action() {
                clap::ArgAction::Append => items,
                _ => vec![items.join(",")],
            }
        }
        value => vec![scalar(value).with_context(|| {
            format!(
                "{key}: a string is expected, not a value of type {}",
                value.type_str()
            )
        })?],
    };
    let arguments = texts.iter().map(|text| format!("--{key}={text}"));
    command
        .clone()
        .try_get_matches_from(arguments)
        .map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            anyhow!("{key}: {}", line.strip_prefix("error: ").unwrap_or(line))
        })
}

fn keys(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|arg| arg.get_id() != "config" && arg.get_id() != "help")
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.as_str().to_owned()),
        _ => None,
    }
}

fn is_explicit(matches: &ArgMatches, id: &str) -> bool {
    matches
        .value_source(id)
        .is_some_and(|source| source != ValueSource::DefaultValue)
}
