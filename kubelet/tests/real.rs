//! Runs a kubelet with a container runtime of its own. Needs root, containerd, runc, the network
//! plugins and a static busybox, so it runs only when asked to.

use std::process::Command;

#[test]
fn a_static_pod_outlives_the_kubelet() {
    if std::env::var("COXSWAIN_REAL").as_deref() != Ok("1") {
        eprintln!("skipped: set COXSWAIN_REAL=1 to run against a real containerd (needs root)");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real.sh");
    // The example is built with the tests, beside them.
    let test = std::env::current_exe().expect("path of the test");
    let kubelet = test.ancestors().nth(2).expect("target directory").join("examples/kubelet");
    let status = Command::new("bash").arg(script).arg(kubelet).status().expect("bash");
    assert!(status.success(), "{script} failed: {status}");
}
