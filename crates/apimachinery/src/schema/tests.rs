use super::*;

fn field<'r>(message: &str, name: &str) -> &'r Field {
    let registry = Registry::builtin();
    let id = registry.by_name(message).expect("a message");
    registry.json_field(id, name).expect("a field")
}

#[test]
fn knows_the_kinds() {
    let registry = Registry::builtin();
    for (version, kind, message) in [
        ("v1", "Pod", "io.k8s.api.core.v1.Pod"),
        ("v1", "PodList", "io.k8s.api.core.v1.PodList"),
        ("v1", "Status", "io.k8s.apimachinery.pkg.apis.meta.v1.Status"),
        ("apps/v1", "Deployment", "io.k8s.api.apps.v1.Deployment"),
        ("apps/v1", "DeleteOptions", "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
        ("batch/v1", "WatchEvent", "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent"),
        ("meta.k8s.io/v1", "Table", "io.k8s.apimachinery.pkg.apis.meta.v1.Table"),
        ("autoscaling/v1", "Scale", "io.k8s.api.autoscaling.v1.Scale"),
    ] {
        let gvk = GroupVersionKind::from_api_version(version, kind);
        let id = registry.kind(&gvk).unwrap_or_else(|| panic!("{gvk}"));
        assert_eq!(registry.message(id).name, message);
    }
    assert_eq!(registry.kind(&GroupVersionKind::new("", "v1", "Nothing")), None);
}

#[test]
fn knows_the_fields() {
    let containers = field("io.k8s.api.core.v1.PodSpec", "containers");
    assert_eq!(containers.number, 2);
    assert_eq!(containers.list, ListType::Map(vec!["name".into()]));
    assert_eq!(containers.merge_key.as_deref(), Some("name"));
    assert_eq!(containers.patch_strategy, ["merge"]);
    assert!(containers.required && !containers.omitempty);

    let ports = field("io.k8s.api.core.v1.Container", "ports");
    assert_eq!(ports.list, ListType::Map(vec!["containerPort".into(), "protocol".into()]));
    let protocol = field("io.k8s.api.core.v1.ContainerPort", "protocol");
    assert_eq!(protocol.default, Some("TCP".into()));
    assert_eq!(protocol.go.as_deref(), Some("v1.Protocol"));

    // Inlined messages are flattened in JSON and nested in protobuf.
    assert!(!field("io.k8s.api.core.v1.Volume", "emptyDir").required);
    let registry = Registry::builtin();
    let volume = registry.message(registry.by_name("io.k8s.api.core.v1.Volume").expect("Volume"));
    assert_eq!(volume.fields[1].json, "volumeSource");
    assert!(volume.fields[1].inline && volume.fields[1].number == 2);
    assert!(field("io.k8s.api.core.v1.EnvVarSource", "configMapKeyRef").atomic);
}

#[test]
fn every_message_is_sound() {
    let registry = Registry::builtin();
    for (i, message) in registry.messages.iter().enumerate() {
        let mut names = std::collections::HashSet::new();
        let mut numbers = std::collections::HashSet::new();
        for f in registry.json_fields(MessageId(i as u32)) {
            assert!(names.insert(&f.json), "{}: two fields {}", message.name, f.json);
        }
        for f in message.fields.iter().filter(|f| f.number != 0) {
            assert!(numbers.insert(f.number), "{}: two fields {}", message.name, f.number);
        }
    }
}
