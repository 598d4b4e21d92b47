//! Command lines, read the way upstream's are (pflag): `--name value`, `--name=value`, bools
//! without a value, unknown flags named in the error.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Parser};

/// How reading a command line ended, when not with a value.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// `--help` or `--version`: the text to print before ending well.
    #[error("{0}")]
    Print(String),
    /// `unknown flag: --foo` and the like.
    #[error("{0}")]
    Usage(String),
}

/// Reads the arguments that follow the program's name.
///
/// # Errors
/// [`CliError::Usage`] names the flag that is unknown or has a wrong value.
pub fn parse<T: Parser>(name: &'static str, args: &[OsString]) -> Result<T, CliError> {
    let argv = std::iter::once(OsString::from(name)).chain(args.iter().cloned());
    // Of a flag that is given twice the last counts, as in units that add to others; lists grow.
    let command = T::command().name(name).bin_name(name).mut_args(|arg| match arg.get_action() {
        ArgAction::Set => {
            let own = arg.get_id().clone();
            arg.overrides_with(own)
        }
        _ => arg,
    });
    let result =
        command.try_get_matches_from(argv).and_then(|mut m| T::from_arg_matches_mut(&mut m));
    result.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            CliError::Print(error.render().to_string())
        }
        ErrorKind::UnknownArgument => {
            let flag = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::String(flag)) => flag.as_str(),
                _ => "",
            };
            match flag.starts_with('-') {
                true => CliError::Usage(format!("unknown flag: {flag}")),
                false => CliError::Usage(format!("unknown argument: {flag}")),
            }
        }
        _ => CliError::Usage(error.render().to_string().trim_end().to_owned()),
    })
}

/// A bool flag as pflag has it: `--x`, `--x=true`, `--x=false`. Use with
/// `#[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
/// default_value_t = .., action = clap::ArgAction::Set)]`, or the `flag!` macro-free way below.
pub fn bool_arg(name: &'static str, default: &'static str, help: &'static str) -> clap::Arg {
    clap::Arg::new(name)
        .long(name)
        .help(help)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .default_value(default)
        .value_parser(clap::value_parser!(bool))
        .action(clap::ArgAction::Set)
}

/// A duration as Go writes it: `1m30s`, `1.5h`, `250ms`, `0`. Not negative.
///
/// # Errors
/// Quotes the text.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |why: &str| format!("time: {why} {text:?}");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong("invalid duration"));
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| wrong("invalid duration"))?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                "" => return Err(wrong("missing unit in duration")),
                unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong("invalid duration"))
}

/// Upstream's flags of a component that are known and have no effect here, with upstream's
/// defaults: see [`NoEffect`].
pub trait Table: Clone + std::fmt::Debug + Send + Sync + 'static {
    const FLAGS: &'static [(&'static str, &'static str)];
}

/// Such flags of every component that has a [`Table`].
const SHARED: &[(&str, &str)] = &[
    ("feature-gates", ""),
    ("kube-api-content-type", "application/vnd.kubernetes.protobuf"),
    ("log-flush-frequency", "5s"),
    ("log-json-info-buffer-size", "0"),
    ("log-json-split-stream", "false"),
    ("log-text-info-buffer-size", "0"),
    ("log-text-split-stream", "false"),
    ("logging-format", "text"),
    ("show-hidden-metrics-for-version", ""),
    ("vmodule", ""),
];

fn known<T: Table>() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    SHARED.iter().chain(T::FLAGS)
}

/// To be flattened into a component's flags: takes the flags of a table when they say what is so
/// anyway, upstream's default. Anything else is an error that names the flag.
#[derive(Clone, Debug, Default)]
pub struct NoEffect<T>(std::marker::PhantomData<T>);

impl<T: Table> clap::Args for NoEffect<T> {
    fn augment_args(command: clap::Command) -> clap::Command {
        known::<T>().fold(command, |command, (name, default)| {
            let arg = clap::Arg::new(*name).long(*name).hide(true);
            let arg = arg.action(clap::ArgAction::Append).allow_hyphen_values(true);
            command.arg(match *default {
                "true" | "false" => {
                    arg.num_args(0..=1).require_equals(true).default_missing_value("true")
                }
                _ => arg.num_args(1),
            })
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<T: Table> clap::FromArgMatches for NoEffect<T> {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        for (name, default) in known::<T>() {
            let given = matches.get_many::<String>(name).into_iter().flatten();
            if let Some(value) = given.into_iter().find(|value| !same(value, default)) {
                let text = format!("--{name}={value}: not supported\n");
                return Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, text));
            }
        }
        Ok(Self(std::marker::PhantomData))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        Self::from_arg_matches(matches).map(drop)
    }
}

/// Whether two values of a flag mean the same.
fn same(a: &str, b: &str) -> bool {
    a == b
        || matches!((duration(a), duration(b)), (Ok(a), Ok(b)) if a == b)
        || matches!((a.parse::<f64>(), b.parse::<f64>()), (Ok(a), Ok(b)) if a == b)
}

/// Splits `a=b,c=d`.
///
/// # Errors
/// Says which piece has no `=`.
pub fn key_values(text: &str) -> Result<Vec<(String, String)>, String> {
    text.split(',')
        .filter(|piece| !piece.is_empty())
        .map(|piece| match piece.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            None => Err(format!("malformed pair, expect string=string: {piece}")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let cases = [
            ("15s", Ok(15_000)),
            ("1m30s", Ok(90_000)),
            ("1.5h", Ok(5_400_000)),
            ("250ms", Ok(250)),
            ("0", Ok(0)),
            ("", Err("time: invalid duration \"\"")),
            ("5", Err("time: missing unit in duration \"5\"")),
            ("5d", Err("time: unknown unit \"d\" in duration \"5d\"")),
            ("-5s", Err("time: invalid duration \"-5s\"")),
        ];
        for (text, wanted) in cases {
            let got = duration(text).map(|d| d.as_millis());
            assert_eq!(got, wanted.map_err(str::to_owned), "{text}");
        }
    }

    #[derive(Clone, Debug)]
    struct Known;
    impl Table for Known {
        const FLAGS: &'static [(&'static str, &'static str)] =
            &[("burst", "30"), ("profiling", "true"), ("period", "1m0s"), ("bind", "")];
    }

    #[derive(Debug, Parser)]
    struct Flags {
        #[arg(long)]
        name: Option<String>,
        #[arg(long, value_delimiter = ',')]
        list: Vec<String>,
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        on: Option<bool>,
        #[command(flatten)]
        _known: NoEffect<Known>,
    }

    #[test]
    fn the_last_of_a_flags_values_counts_and_lists_grow() {
        let args = ["--name=a", "--list=a,b", "--on=false", "--list", "c", "--name", "b", "--on"];
        let flags: Flags = parse("test", &args.map(OsString::from)).expect("good flags");
        assert_eq!((flags.name.as_deref(), flags.on), (Some("b"), Some(true)));
        assert_eq!(flags.list, ["a", "b", "c"]);
    }

    #[test]
    fn flags_without_effect_may_only_say_what_is_so() {
        let cases: [(&[&str], &str); 9] = [
            (&["--name=x", "--burst=30"], ""),
            (&["--burst", "30.0", "--period=60s"], ""),
            (&["--profiling", "--name", "x"], ""),
            (&["--bind="], ""),
            (&["--burst=31"], "--burst=31: not supported"),
            (&["--profiling=false"], "--profiling=false: not supported"),
            (&["--period", "61s"], "--period=61s: not supported"),
            (&["--bind=x"], "--bind=x: not supported"),
            (&["--brust=30"], "unknown flag: --brust"),
        ];
        for (args, wanted) in cases {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            let said = parse::<Flags>("test", &args).err().map(|e| e.to_string());
            let said = said.unwrap_or_default();
            assert!(said.ends_with(wanted) && said.is_empty() == wanted.is_empty(), "{said:?}");
        }
    }
}
