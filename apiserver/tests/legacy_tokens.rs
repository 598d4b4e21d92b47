//! Tokens that Secrets hold: their use is tracked, and those marked invalid are refused.

mod common;

use std::time::Duration;

use apimachinery::legacy_tokens::{LAST_USED, TRACKING, day};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, Fixture};
use component::keys::SigningKey;
use jiff::Timestamp;
use serde_json::{Value, json};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// The tokens of Secrets of these names, each of the service account `sa`.
async fn tokens<const N: usize>(f: &Fixture, secrets: [(&str, Value); N]) -> [&'static str; N] {
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({"metadata": {"name": "sa"}, "secrets": [{"name": "auto"}]});
    let account = f.post(accounts, &account).await.expect(201);
    let pem = std::fs::read(f.dir.path().join("sa.key")).expect("a file");
    let key = SigningKey::parse(&pem).expect("a key");
    let mut all = [""; N];
    for (token, (name, labels)) in all.iter_mut().zip(secrets) {
        let claims = json!({
            "iss": "kubernetes/serviceaccount",
            "sub": "system:serviceaccount:default:sa",
            "kubernetes.io/serviceaccount/namespace": "default",
            "kubernetes.io/serviceaccount/secret.name": name,
            "kubernetes.io/serviceaccount/service-account.name": "sa",
            "kubernetes.io/serviceaccount/service-account.uid": account["metadata"]["uid"],
        });
        let made = key.sign(&claims).expect("a token");
        let secret = json!({"type": "kubernetes.io/service-account-token",
            "metadata": {"name": name, "labels": labels,
                "annotations": {"kubernetes.io/service-account.name": "sa"}},
            "data": {"token": STANDARD.encode(&made)}});
        f.post(SECRETS, &secret).await.expect(201);
        *token = made.leak();
    }
    all
}

/// Asks something that every user may, with a token.
async fn whoami(f: &mut Fixture, token: &'static str) -> Answer {
    let admin = std::mem::replace(&mut f.token, token);
    let answer = f.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).await;
    f.token = admin;
    answer
}

/// Whether a Secret says that its token was used, and today.
async fn noted(f: &Fixture, name: &str, before: Timestamp) -> bool {
    let secret = f.get(&format!("{SECRETS}/{name}")).await.expect(200);
    let label = secret["metadata"]["labels"][LAST_USED].as_str().unwrap_or("").to_owned();
    // It may be midnight.
    [day(before), day(Timestamp::now())].contains(&label)
}

#[tokio::test]
async fn use_is_noted_warned_of_and_counted() {
    let mut f = Fixture::new().await;
    let before = Timestamp::now();
    let old = json!({LAST_USED: "2020-01-01"});
    let bad = json!({INVALID_SINCE: "2020-01-01"});
    let secrets = [("auto", json!({})), ("manual", old), ("refused", bad)];
    let [auto, manual, refused] = tokens(&f, secrets).await;
    assert!(!noted(&f, "auto", before).await && !noted(&f, "manual", before).await);
    let warning = "299 - \"Use tokens from the TokenRequest API or manually created secret-based \
                   tokens instead of auto-generated secret-based tokens.\"";
    for (name, token, warned) in
        [("auto", auto, warning), ("auto", auto, warning), ("manual", manual, "")]
    {
        let answer = whoami(&mut f, token).await;
        let user = answer.expect(201)["status"]["userInfo"]["username"].clone();
        assert_eq!(user, "system:serviceaccount:default:sa");
        assert_eq!(answer.header("warning"), warned, "{name}");
        assert!(noted(&f, name, before).await, "{name}");
    }

    whoami(&mut f, refused).await.expect(401);
    assert!(noted(&f, "refused", before).await);
    let review = json!({"spec": {"token": refused}});
    let review = f.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.expect(201);
    assert_eq!(
        review["status"]["error"],
        "[invalid bearer token, the token in secret default/refused for service account default/sa \
         has been marked invalid. Use tokens from the TokenRequest API or manually created \
         secret-based tokens, or remove the 'kubernetes.io/legacy-token-invalid-since' label from \
         the secret to temporarily allow use of this token]"
    );

    let metrics = f.get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    for line in [
        // An accepted token is remembered for a while, a refused one is not.
        "serviceaccount_legacy_tokens_total 4",
        "serviceaccount_legacy_auto_token_uses_total 1",
        "serviceaccount_legacy_manual_token_uses_total 1",
        "serviceaccount_invalid_legacy_auto_token_uses_total 2",
        "serviceaccount_stale_tokens_total 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}");
    }
}

#[tokio::test]
async fn a_config_map_says_since_when_use_is_tracked() {
    let before = Timestamp::now();
    let f = Fixture::new().await;
    let path = format!("/api/v1/namespaces/{}/configmaps/{}", TRACKING.0, TRACKING.1);
    let says = async |known: &dyn Fn(&str) -> bool| {
        let waiting = async {
            loop {
                let answer = f.get(&path).await;
                let found = (answer.code == 200).then(|| answer.json());
                let map = found.filter(|map| known(map["data"]["since"].as_str().unwrap_or("")));
                if let Some(map) = map {
                    return map;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("in time")
    };
    let today = |since: &str| [day(before), day(Timestamp::now())].contains(&since.to_owned());
    let mut map = says(&today).await;
    // What is no day is repaired, what is one stays.
    map["data"] = json!({"since": "some day", "other": "x"});
    f.put(&path, &map).await.expect(200);
    let mut map = says(&today).await;
    assert_eq!(map["data"]["other"], "x");
    map["data"]["since"] = "2020-01-31".into();
    f.put(&path, &map).await.expect(200);
    says(&|since| since == "2020-01-31").await;
    // A later server on the same store leaves it, too.
    let f = Fixture::over(f.stop().await, |_| {}).await;
    let map = f.get(&path).await.expect(200);
    assert_eq!(map["data"]["since"], "2020-01-31");
}
