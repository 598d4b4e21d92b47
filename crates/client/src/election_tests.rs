use super::*;

const WALL: Timestamp = Timestamp::UNIX_EPOCH;

fn at(start: Instant, seconds: u64) -> Now {
    let wall = WALL + jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0));
    Now { instant: start + Duration::from_secs(seconds), wall }
}

fn held_by(holder: &str, renewed: u64) -> Record {
    let now = at(Instant::now(), renewed);
    Record {
        holder: holder.into(),
        lease_seconds: 15,
        acquired: Some(WALL),
        renewed: Some(now.wall),
        transitions: 3,
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_judged_by_how_long_it_stood_unchanged() {
    let start = Instant::now();
    // Seconds, what is found, and who is to be written with how many transitions.
    let cases: [(u64, Option<Record>, Option<(&str, i32)>); 7] = [
        (0, Some(held_by("b", 0)), None),
        (14, Some(held_by("b", 0)), None),
        // Renewed: another 15 seconds, whatever its times say.
        (20, Some(held_by("b", 1)), None),
        (34, Some(held_by("b", 1)), None),
        (36, Some(held_by("b", 1)), Some(("a", 4))),
        (37, Some(held_by("", 2)), Some(("a", 4))),
        (38, None, Some(("a", 0))),
    ];
    let mut elector = Elector::new("a", Timing::default());
    for (second, found, wanted) in cases {
        let now = at(start, second);
        let written = elector.judge(found.as_ref(), now);
        let got = written.as_ref().map(|r| (r.holder.as_str(), r.transitions));
        assert_eq!(got, wanted, "second {second}");
        if let Some(record) = written {
            assert_eq!((record.acquired, record.renewed), (Some(now.wall), Some(now.wall)));
            assert_eq!(record.lease_seconds, 15);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_renews_without_reading_while_its_lease_stands() {
    let start = Instant::now();
    let mut elector = Elector::new("a", Timing::default());
    assert_eq!(elector.renewal(at(start, 0)), None);
    let first = elector.judge(None, at(start, 0)).expect("free");
    elector.wrote(first, at(start, 0));
    assert!(elector.leads());
    let renewal = elector.renewal(at(start, 2)).expect("leads");
    assert_eq!((renewal.acquired, renewal.renewed), (Some(WALL), Some(at(start, 2).wall)));
    assert_eq!(renewal.transitions, 0);
    // Too late to be sure: it must read first.
    assert_eq!(elector.renewal(at(start, 15)), None);
    // Found another's, which stands: it no longer leads.
    assert_eq!(elector.judge(Some(&held_by("b", 16)), at(start, 16)), None);
    assert!(!elector.leads());
    assert_eq!(elector.release(&held_by("b", 16), at(start, 17)), None);
}

#[test]
fn timings_that_allow_two_leaders_are_refused() {
    let seconds = Duration::from_secs;
    let cases = [
        ((15, 10, 2), ""),
        ((10, 10, 2), "leaseDuration"),
        ((15, 2, 2), "retryPeriod"),
        ((15, 10, 0), "zero"),
    ];
    for ((lease, deadline, retry), wanted) in cases {
        let timing =
            Timing { lease: seconds(lease), deadline: seconds(deadline), retry: seconds(retry) };
        let said = timing.check().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains(wanted) && said.is_empty() == wanted.is_empty(), "{said}");
    }
}

/// A lock in memory that several candidates share, each with its own connection.
#[derive(Clone, Default)]
struct Shared {
    state: Arc<Mutex<(Option<Record>, u64)>>,
}

struct Link {
    shared: Shared,
    cut: CancellationToken,
    version: u64,
}

impl Link {
    async fn reach(&self) {
        if self.cut.is_cancelled() {
            // The other side is silent.
            std::future::pending::<()>().await;
        }
    }
}

impl Lock for Link {
    fn describe(&self) -> String {
        "kube-system/x".into()
    }

    fn about(&self) -> ObjectReference {
        ObjectReference::default()
    }

    async fn get(&mut self) -> anyhow::Result<Option<Record>> {
        self.reach().await;
        let state = self.shared.state.lock();
        self.version = state.1;
        Ok(state.0.clone())
    }

    async fn create(&mut self, record: &Record) -> anyhow::Result<()> {
        self.version = 0;
        self.update(record).await
    }

    async fn update(&mut self, record: &Record) -> anyhow::Result<()> {
        self.reach().await;
        let mut state = self.shared.state.lock();
        anyhow::ensure!(state.1 == self.version, "conflict");
        *state = (Some(record.clone()), self.version + 1);
        self.version += 1;
        Ok(())
    }
}

fn candidate(shared: &Shared, identity: &str, cut: &CancellationToken) -> Candidate<Link> {
    Candidate {
        lock: Link { shared: shared.clone(), cut: cut.clone(), version: 0 },
        identity: identity.into(),
        timing: Timing::default(),
        recorder: Recorder::none(),
        watchdog: Watchdog::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_cut_off_stops_before_the_next_begins() {
    let (shared, shutdown) = (Shared::default(), CancellationToken::new());
    let (cut, never) = (CancellationToken::new(), CancellationToken::new());
    let first = acquire(candidate(&shared, "a", &cut), &shutdown).await.expect("a leads");
    let other = shared.clone();
    let stop = shutdown.clone();
    let second = tokio::spawn(async move {
        let led = acquire(candidate(&other, "b", &never), &stop).await;
        (led, Instant::now())
    });
    sleep(Duration::from_secs(60)).await;
    assert!(!first.is_lost() && !second.is_finished(), "a renews, b waits");
    let start = Instant::now();
    cut.cancel();
    first.lost().await;
    let stopped = Instant::now();
    let (second, began) = second.await.expect("no panic");
    assert!(second.is_some());
    assert!(stopped < began, "never two at once");
    assert!(stopped - start <= Duration::from_secs(12), "{:?}", stopped - start);
    assert!(began - start <= Duration::from_secs(20), "{:?}", began - start);
    let record = shared.state.lock().0.clone().expect("there is one");
    assert_eq!((record.holder.as_str(), record.transitions), ("b", 1));
}

#[tokio::test(start_paused = true)]
async fn a_released_office_is_taken_at_the_next_attempt() {
    let (shared, shutdown) = (Shared::default(), CancellationToken::new());
    let up = CancellationToken::new();
    let first = acquire(candidate(&shared, "a", &up), &shutdown).await.expect("a leads");
    sleep(Duration::from_secs(7)).await;
    first.release().await;
    let released = shared.state.lock().0.clone().expect("there is one");
    assert_eq!((released.holder.as_str(), released.lease_seconds), ("", 1));
    let start = Instant::now();
    let second = acquire(candidate(&shared, "b", &up), &shutdown).await.expect("b leads");
    assert_eq!(start.elapsed(), Duration::ZERO);
    second.leave().await;
    let start = Instant::now();
    let third = acquire(candidate(&shared, "c", &up), &shutdown).await;
    assert!(third.is_some());
    assert!(start.elapsed() >= Duration::from_secs(15), "b has left, its lease stands");
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_a_candidacy() {
    let (shared, shutdown) = (Shared::default(), CancellationToken::new());
    let cut = CancellationToken::new();
    cut.cancel();
    shutdown.cancel();
    assert!(acquire(candidate(&shared, "a", &cut), &shutdown).await.is_none());
}

#[test]
fn identities_differ() {
    let (a, b) = (identity("host"), identity("host"));
    assert_ne!(a, b);
    assert_eq!(a.len(), "host_".len() + 36);
}
