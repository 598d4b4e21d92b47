//! Command lines, read the way upstream's are (pflag): `--name value`, `--name=value`, bools
//! without a value, unknown flags named in the error.

use std::ffi::OsString;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

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
    let command = T::command().name(name).bin_name(name);
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
