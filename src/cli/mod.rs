//! The command line: the clap tree, and one file per subcommand.

pub mod accept;
mod admin_client;
pub mod check;
pub mod delete;
pub mod demo;
mod difference;
pub mod explain;
pub mod healthcheck;
pub mod history;
pub mod put;
pub mod register;
pub mod rollback;
pub mod routes;
mod scope;
pub mod serve;
mod target;
pub mod version;
pub mod wait;
pub mod waiting;

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Usage;

/// A load balancer whose routing table lives in etcd
///
/// Any number of instances watch one etcd cluster: `etcdctl put /hosts/blog.example.com/10.0.0.7:4000 ''` adds an
/// upstream to all of them, `etcdctl del` removes it, and no request is lost on the way.
#[derive(Debug, Parser)]
#[command(
    name = "waypost",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 120,
    after_help = "\
Examples:
  waypost demo                                      see it work, with nothing to install
  waypost serve --etcd http://127.0.0.1:2379        route as the keys in etcd say
  waypost put blog.example.com 10.0.0.7:4000        add an upstream
  waypost explain http://blog.example.com/          why this request goes where it goes

`waypost help COMMAND` says more about each."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Demo(demo::Demo),
    Routes(routes::Routes),
    Explain(explain::Explain),
    Put(put::Put),
    Delete(delete::Delete),
    Register(Box<register::Register>),
    Check(check::Check),
    Wait(wait::Wait),
    Accept(accept::Accept),
    History(history::History),
    Rollback(rollback::Rollback),
    Healthcheck(healthcheck::Healthcheck),
    Version(version::Version),
}

/// Parses the arguments, runs the command, and says how it ended: 0 done, 1 failed, 2 usage.
pub fn run() -> ExitCode {
    let parsed = parse(env::args_os()).and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((cli, matches))
    });
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return refuse(&error),
    };
    let outcome = match cli.command {
        // Its runtime is its own: it outlives no signal, and has threads to spare for decoding a million keys.
        Command::Serve(command) => command.run(matches.subcommand_matches("serve")),
        Command::Version(command) => command.run(),
        Command::Demo(command) => blocking(command.run()),
        Command::Routes(command) => blocking(command.run()),
        Command::Explain(command) => blocking(command.run()),
        Command::Put(command) => blocking(command.run()),
        Command::Delete(command) => blocking(command.run()),
        Command::Register(command) => blocking(command.run()),
        Command::Check(command) => blocking(command.run()),
        Command::Wait(command) => blocking(command.run()),
        Command::Accept(command) => blocking(command.run()),
        Command::History(command) => blocking(command.run()),
        Command::Rollback(command) => blocking(command.run()),
        Command::Healthcheck(command) => blocking(command.run()),
    };
    outcome.unwrap_or_else(|error| fail(&error))
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, clap::Error> {
    command().try_get_matches_from(arguments)
}

fn command() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        let closing = command.get_after_help().map(ToString::to_string);
        let command = command.mut_args(without_empty_environment);
        match closing {
            Some(closing) => command.after_help(unwrapped(&closing)),
            None => command,
        }
    })
}

/// With one line for each paragraph: clap breaks it where the terminal ends. Examples, which are indented, stay as
/// they are.
fn unwrapped(text: &str) -> String {
    let mut unwrapped = String::with_capacity(text.len());
    let mut goes_on = false;
    for line in text.lines() {
        let is_prose = !line.is_empty() && !line.starts_with(' ');
        if !unwrapped.is_empty() {
            unwrapped.push(if goes_on && is_prose { ' ' } else { '\n' });
        }
        unwrapped.push_str(line);
        goes_on = is_prose;
    }
    unwrapped
}

/// `WAYPOST_LISTEN=` means the same as none: docker-compose passes variables on that way.
fn without_empty_environment(arg: clap::Arg) -> clap::Arg {
    let is_empty = |name| env::var_os(name).is_some_and(|value| value.is_empty());
    match arg.get_env().is_some_and(is_empty) {
        true => arg.env(None::<&'static str>),
        false => arg,
    }
}

fn blocking(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

/// Prints on standard output. Whoever has stopped reading has seen enough: the exit code still tells the verdict.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// A text from etcd as one line of ours: it must not steer the terminal, nor look like a line of its own.
fn plain(text: &[u8]) -> String {
    let plain = |character: char| match character.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => character,
    };
    String::from_utf8_lossy(text).chars().map(plain).collect()
}

/// What clap has to say: help and version on standard output, a usage error on standard error.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    match text.strip_prefix("error: ") {
        Some(text) => eprint!("waypost: {text}"),
        None => eprint!("{text}"),
    }
    ExitCode::from(2)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    if let Some(error) = error.downcast_ref::<clap::Error>() {
        return refuse(error);
    }
    // `waypost routes | head` is no failure.
    let is_closed_pipe = |cause: &(dyn std::error::Error + 'static)| {
        let error = cause.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(is_closed_pipe) {
        return ExitCode::SUCCESS;
    }
    eprintln!("waypost: {error:#}");
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_summary_and_examples() {
        let command = Cli::command();
        command.clone().debug_assert();
        for command in command.get_subcommands() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} has no summary");
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.contains("waypost "), "{name} has no examples");
            let mut examples = help.lines().filter(|line| line.starts_with(' '));
            // Where nobody says how wide the terminal is, clap takes it for 100.
            let wide = examples.find(|line| line.chars().count() > 100);
            assert_eq!(wide, None, "{name}");
        }
    }

    #[test]
    fn help_breaks_its_closing_words_only_where_the_terminal_ends() {
        const WIDTH: usize = 80;
        let mut command = command().term_width(WIDTH);
        command.build();
        for command in command.get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            let lines: Vec<_> = help.lines().collect();
            for pair in lines.windows(2) {
                let [first, second] = [pair[0], pair[1]];
                let is_prose = |line: &str| line.starts_with(|c: char| c.is_ascii_alphabetic());
                let next = second.split(' ').next().unwrap_or_default();
                assert!(
                    !is_prose(first) || !is_prose(second) || first.len() + next.len() >= WIDTH,
                    "{first}\n{second}"
                );
            }
        }
    }

    #[test]
    fn flags_of_serve_have_an_environment_twin() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("it is there");
        for arg in serve.get_arguments().filter(|arg| arg.get_id() != "help") {
            let flag = arg.get_long().expect("serve has flags only");
            let twin = format!("WAYPOST_{}", flag.replace('-', "_").to_uppercase());
            let env = arg.get_env().and_then(|name| name.to_str());
            assert_eq!(env, Some(twin.as_str()));
        }
    }

    #[test]
    fn commands_of_later_versions_are_unknown() {
        for command in ["tunnel", ""] {
            let arguments = ["waypost", command].map(OsString::from);
            let error = parse(arguments).expect_err(command);
            assert_eq!(error.exit_code(), 2);
        }
    }
}
