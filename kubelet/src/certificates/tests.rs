//! Certificates in tests: a CA, and a keeper that asks it while time passes.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType,
};
use tokio::sync::watch;
use tokio::time::Instant;

use super::NODES;
use super::decide::Wanted;
use super::keeper::{Issued, Keeper};
use super::store::Store;

/// Signs.
pub struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(Issuer::new(params, KeyPair::generate().unwrap()))
    }

    fn sign(&self, wanted: &Wanted, from: Timestamp, until: Timestamp) -> (String, String) {
        let moment = |at: Timestamp| {
            let unix = rcgen::date_time_ymd(1970, 1, 1);
            unix + Duration::from_secs(at.as_second().try_into().unwrap())
        };
        let mut params = CertificateParams::new(wanted.names.clone()).unwrap();
        params.subject_alt_names.extend(wanted.addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, NODES);
        params.distinguished_name.push(DnType::CommonName, wanted.common_name());
        (params.not_before, params.not_after) = (moment(from), moment(until));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A node's certificate and key, PEM.
    pub fn pair(&self, node: &str, from: Timestamp, until: Timestamp) -> (String, String) {
        self.sign(&Wanted::client(node), from, until)
    }
}

/// A keeper of certificates that hold for a hour, from a CA that fails at first.
struct Scene {
    dir: tempfile::TempDir,
    wanted: watch::Sender<Option<Wanted>>,
    current: super::keeper::Current,
    /// When it was asked, in seconds since the start, and for what.
    asked: Arc<Mutex<Vec<(u64, Wanted)>>>,
    task: tokio::task::JoinHandle<()>,
}

const LIFE: SignedDuration = SignedDuration::from_hours(1);

impl Scene {
    fn start(first: Option<Wanted>, fails: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (wanted, receiver) = watch::channel(first);
        let store = Store::open(dir.path(), "kubelet-client", None).unwrap();
        let keeper = Keeper::new("test", store, None, false, receiver);
        let current = keeper.current();
        let (start, asked) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let now =
            move || Timestamp::UNIX_EPOCH + SignedDuration::try_from(start.elapsed()).unwrap();
        let (ca, log) = (Arc::new(Authority::new()), Arc::clone(&asked));
        let ask = move |wanted: Wanted| {
            let (ca, log) = (Arc::clone(&ca), Arc::clone(&log));
            async move {
                log.lock().push((start.elapsed().as_secs(), wanted.clone()));
                if log.lock().len() <= fails {
                    anyhow::bail!("not now");
                }
                let (certificates, key) = ca.sign(&wanted, now(), now() + LIFE);
                Ok(Issued { certificates, key })
            }
        };
        let task = tokio::spawn(keeper.run(now, ask));
        Self { dir, wanted, current, asked, task }
    }

    fn times(&self) -> Vec<u64> {
        self.asked.lock().iter().map(|(at, _)| *at).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_before_they_end() {
    let mut scene = Scene::start(Some(Wanted::client("a")), 0);
    let day = tokio::time::sleep(Duration::from_secs(24 * 3600));
    tokio::pin!(day);
    let mut until = None;
    loop {
        tokio::select! {
            () = &mut day => break,
            changed = scene.current.changed() => changed.unwrap(),
        }
        let pair = scene.current.borrow_and_update().clone().unwrap();
        // The one before still held.
        assert!(until.is_none_or(|before| pair.leaf.from < before));
        until = Some(pair.leaf.until);
    }
    let times = scene.times();
    let lives: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(lives.len() >= 26, "{lives:?}");
    assert!(lives.iter().all(|life| (2520..=3242).contains(life)), "{lives:?}");
    // Each has its own lot.
    assert!(lives.iter().min() != lives.iter().max(), "{lives:?}");
    let current = std::fs::read_link(scene.dir.path().join("kubelet-client-current.pem")).unwrap();
    let text = std::fs::read_to_string(current).unwrap();
    let pair = scene.current.borrow().clone().unwrap();
    assert_eq!(text, format!("{}{}", pair.chain, pair.key));
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_ever_later() {
    let mut scene = Scene::start(Some(Wanted::client("a")), 6);
    scene.current.changed().await.unwrap();
    // Each pause up to a tenth longer than 2, 4, 8, 16; then 32 s.
    let times = scene.times();
    let pauses: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let least = [2, 4, 8, 16, 32, 32];
    assert_eq!(pauses.len(), least.len());
    let good = |(pause, least): (&u64, &u64)| (*least..=least + 2).contains(pause);
    assert!(pauses.iter().zip(&least).all(good), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn other_addresses_need_another_certificate() {
    let serving = |addresses: &[&str]| {
        let addresses: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
        Wanted::serving("a", &addresses)
    };
    let mut scene = Scene::start(None, 0);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(scene.times().is_empty(), "there is nothing to ask for");
    let (first, second) = (serving(&["192.0.2.1", "a"]), serving(&["192.0.2.2", "a"]));
    for wanted in [&first, &second] {
        scene.wanted.send_replace(wanted.clone());
        scene.current.changed().await.unwrap();
        let pair = scene.current.borrow_and_update().clone().unwrap();
        assert_eq!(pair.leaf.addresses, wanted.as_ref().unwrap().addresses);
        assert_eq!(pair.leaf.names, ["a"]);
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    // Fewer are no reason, nor is none.
    scene.wanted.send_replace(serving(&["192.0.2.2"]));
    scene.wanted.send_replace(None);
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(scene.times().len(), 2);
}
