//! What to do with a certificate, as it is now (upstream: `client-go/util/certificate`,
//! `kubelet/certificate/transport.go`).

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::pair::Leaf;

/// Certificates are renewed when this part of their life is over, and up to [`SPREAD`] more:
/// nodes that were made together do not all ask at once.
const EARLIEST: f64 = 0.7;
const SPREAD: f64 = 0.2;
/// The first pause after a failure; it doubles up to the longest.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(32);
/// Pauses are up to so much longer.
const JITTER: f64 = 0.1;
/// A kubelet that had no certificate for so long, though the API server answers, ends: its
/// supervisor starts it again, with the credentials for a first certificate.
const WITHOUT: SignedDuration = SignedDuration::from_mins(5);

/// What a certificate is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub node: String,
    /// Other names, in order.
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

impl Wanted {
    /// The subject of nodes (Node authorization).
    pub fn common_name(&self) -> String {
        format!("system:node:{}", self.node)
    }

    /// That of a client, who has no other names.
    pub fn client(node: &str) -> Self {
        Self { node: node.to_owned(), names: Vec::new(), addresses: Vec::new() }
    }

    /// That of a server at these addresses of the node; none without an IP address.
    pub fn serving(node: &str, addresses: &[String]) -> Option<Self> {
        let mut wanted = Self::client(node);
        for address in addresses {
            match address.parse() {
                Ok(ip) => wanted.addresses.push(ip),
                Err(_) => wanted.names.push(address.clone()),
            }
        }
        wanted.names.sort();
        wanted.names.dedup();
        wanted.addresses.sort_by_key(ToString::to_string);
        wanted.addresses.dedup();
        Some(wanted).filter(|wanted| !wanted.addresses.is_empty())
    }

    /// What a certificate lacks of it. What it has besides does no harm.
    fn lacks(&self, leaf: &Leaf) -> Option<String> {
        if leaf.common_name != self.common_name() {
            return Some(format!("the name {}", self.common_name()));
        }
        if !leaf.organizations.iter().any(|o| o == super::NODES) {
            return Some(format!("the organization {}", super::NODES));
        }
        let name = self.names.iter().find(|name| !leaf.names.contains(name));
        let address = self.addresses.iter().find(|address| !leaf.addresses.contains(address));
        name.cloned().or_else(|| address.map(ToString::to_string))
    }
}

/// Why a certificate is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Missing,
    /// The one that there is was only for the beginning.
    Provisional,
    Lacks(String),
    Due,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is not known what to ask for.
    Rest,
    /// Nothing before then.
    Until(Timestamp),
    Ask(Why),
}

/// Decides. `share` is this certificate's lot, from 0 to 1.
pub fn step(
    leaf: Option<&Leaf>,
    provisional: bool,
    wanted: Option<&Wanted>,
    share: f64,
    now: Timestamp,
) -> Step {
    let Some(wanted) = wanted else { return Step::Rest };
    let Some(leaf) = leaf else { return Step::Ask(Why::Missing) };
    if provisional {
        return Step::Ask(Why::Provisional);
    }
    if let Some(what) = wanted.lacks(leaf) {
        return Step::Ask(Why::Lacks(what));
    }
    let life = leaf.until.duration_since(leaf.from).as_secs_f64();
    let spent = SignedDuration::from_secs_f64(life * (EARLIEST + SPREAD * share));
    match leaf.from.checked_add(spent) {
        Ok(due) if now < due => Step::Until(due),
        _ => Step::Ask(Why::Due),
    }
}

/// The pause after so many failures in a row.
pub fn pause(failures: u32, share: f64) -> Duration {
    let doubled = FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    match doubled < LONGEST {
        true => doubled.mul_f64(1.0 + JITTER * share),
        false => LONGEST,
    }
}

/// How a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Well,
    /// It has no certificate that holds.
    Without,
    /// So for so long that only another beginning helps.
    Lost,
}

/// Judges a client whose certificate ends `until`, who had one `last`; whether the API server
/// `answers` what it is asked.
pub fn standing(
    until: Option<Timestamp>,
    last: Timestamp,
    answers: bool,
    now: Timestamp,
) -> Standing {
    if until.is_some_and(|until| now <= until) {
        return Standing::Well;
    }
    match answers && now.duration_since(last) > WITHOUT {
        true => Standing::Lost,
        false => Standing::Without,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn leaf() -> Leaf {
        Leaf {
            common_name: "system:node:a".into(),
            organizations: vec!["system:nodes".into()],
            names: vec!["a".into(), "b".into()],
            addresses: vec!["192.0.2.1".parse().unwrap()],
            from: at(1000),
            until: at(2000),
        }
    }

    fn serving(addresses: &[&str]) -> Option<Wanted> {
        let addresses: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
        Wanted::serving("a", &addresses)
    }

    #[test]
    fn steps() {
        let client = Some(Wanted::client("a"));
        let lacks = |what: &str| Step::Ask(Why::Lacks(what.to_owned()));
        let nobody = Leaf { organizations: Vec::new(), ..leaf() };
        let cases = [
            (None, false, client.clone(), 0.0, 1000, Step::Ask(Why::Missing)),
            (None, false, None, 0.0, 1000, Step::Rest),
            (Some(leaf()), true, client.clone(), 0.0, 1000, Step::Ask(Why::Provisional)),
            // From 70 to 90 % of its life.
            (Some(leaf()), false, client.clone(), 0.0, 1000, Step::Until(at(1700))),
            (Some(leaf()), false, client.clone(), 1.0, 1899, Step::Until(at(1900))),
            (Some(leaf()), false, client.clone(), 0.0, 1700, Step::Ask(Why::Due)),
            (Some(leaf()), false, client.clone(), 1.0, 1900, Step::Ask(Why::Due)),
            (Some(leaf()), false, client.clone(), 1.0, 3000, Step::Ask(Why::Due)),
            (
                Some(leaf()),
                false,
                Some(Wanted::client("c")),
                0.0,
                1000,
                lacks("the name system:node:c"),
            ),
            (Some(nobody), false, client, 0.0, 1000, lacks("the organization system:nodes")),
            // More names than wanted do no harm.
            (Some(leaf()), false, serving(&["192.0.2.1", "a"]), 0.5, 1000, Step::Until(at(1800))),
            (Some(leaf()), false, serving(&["192.0.2.1", "c"]), 0.5, 1000, lacks("c")),
            (Some(leaf()), false, serving(&["192.0.2.2"]), 0.5, 1000, lacks("192.0.2.2")),
            // It is kept while nothing else can be asked for.
            (Some(leaf()), false, serving(&["a"]), 0.0, 1950, Step::Rest),
        ];
        for (leaf, provisional, wanted, share, now, want) in cases {
            let got = step(leaf.as_ref(), provisional, wanted.as_ref(), share, at(now));
            assert_eq!(got, want, "{leaf:?} {wanted:?} {share} {now}");
        }
    }

    #[test]
    fn servers_have_sorted_names_and_at_least_one_address() {
        let wanted = serving(&["192.0.2.9", "b", "192.0.2.10", "a", "b", "2001:db8::1"]).unwrap();
        assert_eq!(wanted.names, ["a", "b"]);
        let addresses: Vec<String> = wanted.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.10", "192.0.2.9", "2001:db8::1"]);
        assert_eq!(serving(&["a"]), None);
        assert_eq!(serving(&[]), None);
    }

    #[test]
    fn pauses_double() {
        let pauses: Vec<u64> = (1..8).map(|n| pause(n, 0.0).as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(pause(1, 1.0), Duration::from_millis(2200));
        assert_eq!(pause(u32::MAX, 1.0), LONGEST);
    }

    #[test]
    fn standings() {
        for (until, last, answers, now, want) in [
            (Some(2000), 1990, false, 2000, Standing::Well),
            (Some(2000), 2000, true, 2001, Standing::Without),
            (None, 1000, true, 1300, Standing::Without),
            // A request that waits for approval is no answer.
            (None, 1000, false, 9000, Standing::Without),
            (None, 1000, true, 1301, Standing::Lost),
            (Some(2000), 2000, true, 2301, Standing::Lost),
        ] {
            let got = standing(until.map(at), at(last), answers, at(now));
            assert_eq!(got, want, "{until:?} {last} {answers} {now}");
        }
    }
}
