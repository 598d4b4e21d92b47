//! Validation of probes and lifecycle hooks.

use apimachinery::field::ErrorList;

use super::super::check::{At, invalid_each, nonnegative, port_or_name, supported};
use super::containers::Surroundings;

/// The probes and hooks of a container.
pub fn all(errors: &mut ErrorList, container: &At<'_>, pod: &Surroundings<'_>) {
    lifecycle(errors, &container.at("lifecycle"), pod);
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let at = container.at(field);
        if !at.is_set() {
            continue;
        }
        probe(errors, &at, pod);
        let threshold = at.at("successThreshold");
        if field == "readinessProbe" {
            let grace = at.at("terminationGracePeriodSeconds");
            if grace.is_set() {
                errors.push(grace.invalid("must not be set for readinessProbes"));
            }
        } else if threshold.int() != 1 {
            errors.push(threshold.invalid_as(threshold.int(), "must be 1"));
        }
    }
}

fn probe(errors: &mut ErrorList, at: &At<'_>, pod: &Surroundings<'_>) {
    handler(errors, at, pod, &["exec", "httpGet", "tcpSocket", "grpc"]);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        nonnegative(errors, &at.at(field));
    }
    let grace = at.at("terminationGracePeriodSeconds");
    if grace.opt_int().is_some_and(|s| s <= 0) {
        errors.push(grace.invalid("must be greater than 0"));
    }
}

fn lifecycle(errors: &mut ErrorList, at: &At<'_>, pod: &Surroundings<'_>) {
    for hook in ["postStart", "preStop"] {
        let hook = at.at(hook);
        if hook.is_set() {
            handler(errors, &hook, pod, &["exec", "httpGet", "tcpSocket", "sleep"]);
        }
    }
    let signal = at.at("stopSignal");
    if signal.is_set() {
        match pod.os {
            None => errors
                .push(signal.forbidden("may not be set for containers with empty `spec.os.name`")),
            Some("windows") => supported(errors, &signal, &["SIGKILL", "SIGTERM"]),
            Some(_) if !is_linux_signal(signal.str()) => errors.push(signal.not_supported(&[])),
            Some(_) => {}
        }
    }
}

fn is_linux_signal(name: &str) -> bool {
    const NAMES: [&str; 34] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT",
        "KILL", "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM",
        "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
    ];
    let Some(name) = name.strip_prefix("SIG") else { return false };
    let real_time = |from: &str, sign: char, most: u8| {
        name.strip_prefix(from).is_some_and(|rest| {
            let offset = rest.strip_prefix(sign).and_then(|n| n.parse::<u8>().ok());
            rest.is_empty() || offset.is_some_and(|n| (1..=most).contains(&n))
        })
    };
    NAMES.contains(&name) || real_time("RTMIN", '+', 15) || real_time("RTMAX", '-', 14)
}

/// Exactly one of the ways to act, and that one well-formed.
fn handler(errors: &mut ErrorList, at: &At<'_>, pod: &Surroundings<'_>, ways: &[&str]) {
    let mut found = false;
    for way in ways {
        let action = at.at(way);
        if !action.is_set() {
            continue;
        }
        if found {
            errors.push(action.forbidden("may not specify more than 1 handler type"));
            continue;
        }
        found = true;
        match *way {
            "exec" if action.at("command").is_empty() => {
                errors.push(action.at("command").required(""));
            }
            "httpGet" => http_get(errors, &action),
            "tcpSocket" | "grpc" => port_or_name(errors, &action.at("port")),
            "sleep" => sleep(errors, &action, pod.grace_period),
            _ => {}
        }
    }
    if !found {
        errors.push(at.required("must specify a handler type"));
    }
}

fn http_get(errors: &mut ErrorList, at: &At<'_>) {
    if at.at("path").is_empty() {
        errors.push(at.at("path").required(""));
    }
    port_or_name(errors, &at.at("port"));
    supported(errors, &at.at("scheme"), &["HTTP", "HTTPS"]);
    for header in at.at("httpHeaders").items() {
        let name = header.at("name").str();
        let valid =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !valid {
            let message = "a valid HTTP header must consist of alphanumeric characters or '-' \
                           (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
            invalid_each(
                errors,
                &At::new(header.at("name").value(), at.at("httpHeaders").path().clone()),
                vec![message.to_owned()],
            );
        }
    }
}

fn sleep(errors: &mut ErrorList, at: &At<'_>, grace_period: Option<i64>) {
    let seconds = at.at("seconds").int();
    if let Some(grace) = grace_period
        && !(0..=grace).contains(&seconds)
    {
        errors.push(at.invalid_as(
            seconds,
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
        ));
    }
}
