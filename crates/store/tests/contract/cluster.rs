//! What is particular to etcd: that it goes away and comes back, and TLS.

use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use store::etcd::Options;
use store::{Expect, ListRequest, Outcome, Store, StoreError, WatchEvent};

use crate::engines::{EtcdServer, connect};

async fn create(store: &dyn Store, key: &'static str) -> Result<Outcome, StoreError> {
    store.put(Bytes::from(key), Bytes::from("x"), Expect::Absent, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_requests_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = EtcdServer::start(folder.path(), &[]);
    let mut options = Options::new(vec![server.url("http")]);
    options.request_timeout = Duration::from_secs(2);
    let store = connect(options).await;
    let mut watch = store.watch(Bytes::from("/"), 2).await.unwrap();
    assert_eq!(create(store.as_ref(), "/a").await.unwrap(), Outcome::Done(2));
    assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Changes { revision: 2, .. }))));

    server.kill();
    let error = create(store.as_ref(), "/lost").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_) | StoreError::Unknown(_)), "{error:?}");
    let error = store.get(b"/a", None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");

    server.restart(folder.path());
    let found = loop {
        match store.get(b"/a", None).await {
            Ok((_, found)) => break found,
            Err(StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    };
    assert!(found.is_some(), "an acknowledged write is gone");
    let Outcome::Done(last) = create(store.as_ref(), "/b").await.unwrap() else {
        panic!("not created")
    };
    loop {
        match watch.next().await {
            Some(Ok(WatchEvent::Changes { revision, .. })) if revision == last => break,
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn pem(folder: &Path, name: &str, content: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_show_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let ca_file = pem(at, "ca.pem", &ca_cert.pem());
    let issue = |name: &str, purpose: Vec<ExtendedKeyUsagePurpose>| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = purpose;
        let cert = params.signed_by(&key, &issuer).unwrap();
        let cert = pem(at, &format!("{name}.pem"), &cert.pem());
        (cert, pem(at, &format!("{name}.key"), &key.serialize_pem()))
    };
    // etcd uses its certificate also as a client of itself.
    let both = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let (server_cert, server_key) = issue("server", both);
    let (cert, key) = issue("client", vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let flags = [
        format!("--cert-file={}", server_cert.display()),
        format!("--key-file={}", server_key.display()),
        format!("--trusted-ca-file={}", ca_file.display()),
        "--client-cert-auth".to_owned(),
    ];
    let server = EtcdServer::start(at, &flags);
    let mut options = Options::new(vec![server.url("https")]);
    options.ca_file = Some(ca_file);
    options.cert_file = Some(cert);
    options.key_file = Some(key);
    let store = connect(options.clone()).await;
    assert_eq!(create(store.as_ref(), "/a").await.unwrap(), Outcome::Done(2));
    let request =
        ListRequest { prefix: Bytes::new(), start: Bound::Unbounded, limit: 0, revision: None };
    assert_eq!(store.list(request).await.unwrap().kvs.len(), 1);

    options.key_file = None;
    let error = store::etcd::Etcd::connect(options.clone()).await.err();
    assert!(matches!(error, Some(StoreError::Unavailable(_))), "half a pair: {error:?}");
    options.cert_file = None;
    let error = store::etcd::Etcd::connect(options).await.err();
    assert!(matches!(error, Some(StoreError::Unavailable(_))), "no certificate: {error:?}");
}
