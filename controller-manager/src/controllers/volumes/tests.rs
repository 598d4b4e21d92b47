//! Claims and volumes in every state, and what is done about them.

use super::*;
use crate::action::Action;
use client::volumes::BOUND_BY_CONTROLLER;

fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
    let mut object = json!({
        "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]},
        "status": {"phase": "Available"},
    });
    merge(&mut object, more);
    Arc::new(serde_json::from_value(object).expect("a volume"))
}

fn claim(more: Value) -> PersistentVolumeClaim {
    let mut object = json!({
        "metadata": {"namespace": "n", "name": "c", "uid": "u", "resourceVersion": "2"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    });
    merge(&mut object, more);
    serde_json::from_value(object).expect("a claim")
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn planned(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    classes: &[Value],
) -> Vec<String> {
    let classes: Vec<Arc<StorageClass>> = classes
        .iter()
        .map(|c| Arc::new(serde_json::from_value(c.clone()).expect("a class")))
        .collect();
    let look = claim::Look { volumes, classes: &classes, waiting: &|_| vec!["p".to_owned()] };
    told(&claim::plan(claim, &look))
}

/// What is done, in short: written objects by name with what they hold.
fn told(plan: &Plan) -> Vec<String> {
    let one = |action: &Action| match action {
        Action::Update(target, object) => {
            let (notes, spec) = (&object["metadata"]["annotations"], &object["spec"]);
            format!("{} {notes} {spec}", target.key.name)
        }
        Action::UpdatePart(target, "status", object) => {
            format!("{}/status {}", target.key.name, object["status"])
        }
        Action::Event(_, _, reason, _) => (*reason).to_owned(),
        other => panic!("{other:?}"),
    };
    plan.actions.iter().map(one).collect()
}

#[test]
fn the_smallest_that_fits_is_bound() {
    let volumes = [
        volume("big", "10Gi", json!({})),
        volume("fit", "2Gi", json!({})),
        volume("small", "1Mi", json!({})),
        volume("taken", "1Gi", json!({"spec": {"claimRef": {"namespace": "n", "name": "d"}}})),
        volume("other-class", "1Gi", json!({"spec": {"storageClassName": "x"}})),
        volume("other-mode", "1Gi", json!({"spec": {"volumeMode": "Block"}})),
        volume("many", "1Gi", json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}})),
        volume("released", "1Gi", json!({"status": {"phase": "Released"}})),
    ];
    let done = planned(&claim(json!({})), &volumes, &[]);
    assert_eq!(done.len(), 4, "{done:?}");
    assert!(done[0].starts_with("fit ") && done[0].contains("\"uid\":\"u\""), "{done:?}");
    assert!(done[0].contains(BOUND_BY_CONTROLLER), "{done:?}");
    assert_eq!(done[1], r#"fit/status {"phase":"Bound"}"#);
    assert!(done[2].contains(r#""volumeName":"fit""#) && done[2].contains(BIND_COMPLETED));
    assert!(done[3].contains(r#""capacity":{"storage":"2Gi"}"#), "{done:?}");
    // One that is reserved comes first, whatever its size.
    let mut with = volumes.to_vec();
    let reserved = json!({"spec": {"claimRef": {"namespace": "n", "name": "c"}}});
    with.push(volume("reserved", "20Gi", reserved));
    let done = planned(&claim(json!({})), &with, &[]);
    assert!(done[0].starts_with("reserved ") && !done[0].contains(BOUND_BY_CONTROLLER), "{done:?}");
}

#[test]
fn what_is_bound_already_stays_as_it_is() {
    let bound = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}},
        "spec": {"volumeName": "v"},
        "status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}});
    let claimed = |uid: &str| {
        json!({"spec": {"claimRef": {"namespace": "n", "name": "c", "uid": uid}},
            "status": {"phase": "Bound"}})
    };
    let claim = claim(bound);
    assert_eq!(planned(&claim, &[volume("v", "1Gi", claimed("u"))], &[]), Vec::<String>::new());
    assert_eq!(told(&volume::claimed(&volume("v", "1Gi", claimed("u")), &claim)), [""; 0]);
    for (volumes, reason) in
        [(vec![], "ClaimLost"), (vec![volume("v", "1Gi", claimed("another"))], "ClaimMisbound")]
    {
        let done = planned(&claim, &volumes, &[]);
        assert!(done[0].starts_with("c/status") && done[0].contains("Lost"), "{done:?}");
        assert_eq!(done[1], reason);
    }
}

#[test]
fn claims_without_a_volume_are_told_why() {
    let class = |name: &str, more: Value| {
        let mut class = json!({"metadata": {"name": name}, "provisioner": "driver.example.com"});
        merge(&mut class, more);
        class
    };
    let of = |name: &str| json!({"spec": {"storageClassName": name}});
    let classless = || {
        let mut claim = claim(json!({}));
        claim.spec.as_mut().expect("a spec").storage_class_name = None;
        claim
    };
    assert_eq!(planned(&claim(json!({})), &[], &[]), ["FailedBinding"]);
    assert_eq!(planned(&classless(), &[], &[]), ["FailedBinding"]);
    let default = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    let done = planned(&classless(), &[], &[class("d", default)]);
    assert!(done[0].contains(r#""storageClassName":"d""#), "{done:?}");
    assert_eq!(planned(&claim(of("x")), &[], &[]), ["ProvisioningFailed"]);
    let late = json!({"volumeBindingMode": "WaitForFirstConsumer"});
    assert_eq!(
        planned(&claim(of("x")), &[volume("v", "1Gi", of("x"))], &[class("x", late)]),
        ["WaitForPodScheduled"]
    );
    let done = planned(&claim(of("x")), &[], &[class("x", json!({}))]);
    assert!(done[0].contains("driver.example.com"), "{done:?}");
    assert_eq!(done[1], "ExternalProvisioning");
    let in_tree = json!({"provisioner": "kubernetes.io/no-provisioner"});
    assert_eq!(planned(&claim(of("x")), &[], &[class("x", in_tree)]), ["ProvisioningFailed"]);
}

#[test]
fn a_volume_asked_for_must_fit() {
    let asks = claim(json!({"spec": {"volumeName": "v"}}));
    assert_eq!(planned(&asks, &[], &[]), [""; 0]);
    assert_eq!(planned(&asks, &[volume("v", "1Mi", json!({}))], &[]), ["VolumeMismatch"]);
    let taken = json!({"spec": {"claimRef": {"namespace": "n", "name": "d", "uid": "x"}}});
    assert_eq!(planned(&asks, &[volume("v", "1Gi", taken)], &[]), ["FailedBinding"]);
    assert_eq!(planned(&asks, &[volume("v", "1Gi", json!({}))], &[]).len(), 4);
}

#[test]
fn volumes_follow_their_claims() {
    let of = |policy: &str, more: Value| {
        let mut spec = json!({"persistentVolumeReclaimPolicy": policy,
            "claimRef": {"namespace": "n", "name": "c", "uid": "u"}});
        merge(&mut spec, more);
        volume("v", "1Gi", json!({"spec": spec, "status": {"phase": "Bound"}}))
    };
    let released = r#"v/status {"phase":"Released"}"#;
    assert_eq!(told(&volume::released(&of("Retain", json!({})))), [released]);
    let again = |policy: &str, mut spec: Value| {
        spec["persistentVolumeReclaimPolicy"] = policy.into();
        let status = json!({"phase": "Released"});
        told(&volume::released(&volume("v", "1Gi", json!({"spec": spec, "status": status}))))
    };
    assert_eq!(again("Retain", json!({})), [""; 0]);
    assert_eq!(again("Delete", json!({"csi": {"driver": "d", "volumeHandle": "h"}})), [""; 0]);
    for (policy, reason) in [("Delete", "VolumeFailedDelete"), ("Recycle", "VolumeFailedRecycle")] {
        let done = again(policy, json!({}));
        assert!(done[0].contains("Failed"), "{done:?}");
        assert_eq!(done[1], reason);
    }
    // Its claim took another.
    let elsewhere = claim(json!({"spec": {"volumeName": "w"}}));
    let done = told(&volume::claimed(&of("Retain", json!({})), &elsewhere));
    assert!(done[0].contains("claimRef") && !done[0].contains("uid"), "{done:?}");
    let mut ours = PersistentVolume::clone(&of("Retain", json!({})));
    ours.metadata.annotations = Some([(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned())].into());
    let done = told(&volume::claimed(&ours, &elsewhere));
    assert!(!done[0].contains("claimRef") && !done[0].contains("yes"), "{done:?}");
    let freed = volume("v", "1Gi", json!({"status": {"phase": "Pending"}}));
    assert_eq!(told(&volume::available(&freed)).len(), 1);
}

#[test]
fn one_thing_is_written_at_a_time() {
    let volumes = [volume("v", "1Gi", json!({}))];
    let look = claim::Look { volumes: &volumes, classes: &[], waiting: &|_| Vec::new() };
    let plan = one_write(claim::plan(&claim(json!({})), &look));
    assert!(matches!(&plan.actions[..], [Action::Update(target, _)] if target.key.name == "v"));
}
