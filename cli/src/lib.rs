//! The mesh from the command line: `loam`, also as `kubectl loam`.
//!
//! A command asks the cluster, decides with pure functions over what it heard, and gives a [`output::Report`] or a
//! [`fault::Fault`]. What it found is on standard output, what went wrong on standard error.

pub mod args;
pub mod capture;
pub mod chart;
pub mod check;
pub mod code;
pub mod completion;
pub mod config;
pub mod enroll;
pub mod fault;
pub mod helm;
pub mod install;
pub mod mtls;
pub mod names;
pub mod node;
pub mod output;
pub mod session;
pub mod status;
pub mod style;
pub mod table;
pub mod version;
pub mod waypoint;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::FromArgMatches;

use args::waypoint::Command as Waypoint;
use args::{Cli, Command, Common, Config};
use code::{Code, Exit};
use fault::Fault;
use output::Look;
use session::Session;
use style::Style;

/// Does what the command line says. `program` is what a person types to come here.
pub fn main(program: &'static str) -> ExitCode {
    let cli = match read(program) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let done = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(&cli, program)),
        Err(error) => Err(Fault::new(Code::Files, "start", error.to_string(), "ulimit -a")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => exit(Exit::No),
        Err(fault) => {
            say(&fault.text(program));
            exit(fault.code.exit())
        }
    }
}

fn read(program: &'static str) -> Result<Cli, ExitCode> {
    let told = |error: clap::Error| {
        if !error.use_stderr() {
            // Help and version. Nobody is left to tell when this fails.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        let text = error.to_string();
        say(&format!("error {}: {}", Code::Usage, text.strip_prefix("error: ").unwrap_or(&text)));
        exit(Exit::Usage)
    };
    let matches = args::command(program).bin_name(program).try_get_matches().map_err(told)?;
    Cli::from_arg_matches(&matches).map_err(told)
}

/// Does it, and prints what was found. False where the answer is no.
async fn run(cli: &Cli, program: &'static str) -> Result<bool, Fault> {
    let look = Look { format: cli.common.output, style: Style::of_stdout(), program };
    let (text, answer) = match &cli.command {
        Command::Completion(args) => (completion::script(args.shell), true),
        Command::Waypoint(args::waypoint::Waypoint { namespace, command: Waypoint::Generate(wanted) }) => {
            (look.render(&waypoint::generate(namespace.as_deref(), wanted))?, true)
        }
        Command::Version(args) if args.client => (look.render(&version::own())?, true),
        command => ask(&Session::open(&cli.common).await?, &cli.common, command, look).await?,
    };
    write(&text)?;
    Ok(answer)
}

/// Does what needs a cluster. Gives what to print, and whether the answer is yes.
async fn ask(session: &Session, common: &Common, command: &Command, look: Look) -> Result<(String, bool), Fault> {
    Ok(match command {
        Command::Check(args) => {
            let checked = if args.pre { check::before(session).await? } else { check::after(session).await? };
            (look.render(&checked)?, checked.passed())
        }
        Command::Install(args) => {
            if !args.skip_checks {
                let checked = check::before(session).await?;
                if !checked.passed() {
                    return Ok((look.render(&checked)?, false));
                }
            }
            (look.render(&install::install(session, common, args).await?)?, true)
        }
        Command::Upgrade(args) => (look.render(&install::upgrade(session, common, args).await?)?, true),
        Command::Uninstall(args) => (look.render(&install::uninstall(session, common, args).await?)?, true),
        Command::Enroll(args) => (look.render(&enroll::run(session, args, true).await?)?, true),
        Command::Unenroll(args) => (look.render(&enroll::run(session, args, false).await?)?, true),
        Command::Status(args) => match &args.namespace {
            Some(name) => (look.render(&status::detail(session, name).await?)?, true),
            None => (look.render(&status::overview(session).await?)?, true),
        },
        Command::Config(Config::Get(args)) => (look.render(&config::get::run(session, args).await?)?, true),
        Command::Config(Config::Diff(args)) => {
            let compared = config::diff::run(session, args).await?;
            (look.render(&compared)?, compared.agrees())
        }
        Command::Waypoint(args) => {
            let namespace = session.namespace_or_default(args.namespace.as_deref());
            match &args.command {
                Waypoint::Generate(wanted) => (look.render(&waypoint::generate(Some(namespace), wanted))?, true),
                Waypoint::Apply(args) => (look.render(&waypoint::apply::run(session, namespace, args).await?)?, true),
                Waypoint::List(args) => (look.render(&waypoint::list::run(session, namespace, args).await?)?, true),
                Waypoint::Status(args) => {
                    let told = waypoint::status::run(session, namespace, args).await?;
                    (look.render(&told)?, told.programmed())
                }
                Waypoint::Delete(args) => {
                    let deleted = waypoint::delete::run(session, namespace, args).await?;
                    (look.render(&deleted)?, deleted.complete())
                }
            }
        }
        Command::Version(_) => (look.render(&version::all(session).await?)?, true),
        Command::Completion(args) => (completion::script(args.shell), true),
    })
}

fn write(text: &str) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Fault::new(Code::Files, "write to standard output", error.to_string(), "df -h .")),
    }
}

fn say(text: &str) {
    // Nobody is left to tell when this fails.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn exit(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
