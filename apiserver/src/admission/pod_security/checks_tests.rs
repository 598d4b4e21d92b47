use super::*;
use serde_json::json;

/// A container that the restricted standard allows, with changes of its security context.
fn container(name: &str, changes: Value) -> Value {
    let mut context = json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    if let (Some(context), Some(changes)) = (context.as_object_mut(), changes.as_object()) {
        for (key, value) in changes {
            context.insert(key.clone(), value.clone());
        }
    }
    json!({"name": name, "securityContext": context})
}

fn with(level: Level, minor: u32, pod: &Value) -> String {
    let standard = Standard { level, version: Version::Minor(minor) };
    let all = evaluate(standard, pod);
    let texts: Vec<String> = all.iter().map(|v| format!("{}: {}", v.reason, v.detail)).collect();
    texts.join(" | ")
}

#[test]
fn rules() {
    use Level::{Baseline, Restricted};
    let spec = |spec: Value| json!({"spec": spec});
    let one = |c: Value| spec(json!({"containers": [c]}));
    let context = |c: Value| one(container("c", c));
    let two = |c: Value| {
        spec(
            json!({"initContainers": [container("i", c.clone())], "containers": [container("c", c)]}),
        )
    };
    let add = |caps: &[&str]| json!({"capabilities": {"drop": ["ALL"], "add": caps}});
    let sysctl = |name: &str| spec(json!({"securityContext": {"sysctls": [{"name": name}]}}));
    let mut ports = container("c", json!({}));
    ports["ports"] = json!([{"hostPort": 80}, {"hostPort": 443}, {"containerPort": 1}]);
    let mut probe = container("c", json!({}));
    probe["livenessProbe"] = json!({"httpGet": {"host": "1.2.3.4"}});
    let mut annotated = context(json!({}));
    annotated["metadata"]["annotations"] = json!({
        "container.apparmor.security.beta.kubernetes.io/c": "unconfined",
        "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
    });
    let volume = |v: Value| spec(json!({"volumes": [v]}));
    let mut own_users = context(json!({"procMount": "Unmasked", "runAsUser": 0}));
    own_users["spec"]["hostUsers"] = false.into();
    let mut windows = one(json!({"name": "c", "securityContext": {"runAsNonRoot": true}}));
    windows["spec"]["os"] = json!({"name": "windows"});

    let cases = [
        (Restricted, 35, context(json!({})), ""),
        (Restricted, 35, spec(json!({})), ""),
        (Baseline, 35, one(json!({"name": "c"})), ""),
        (
            Baseline,
            35,
            two(json!({"privileged": true})),
            r#"privileged: containers "i", "c" must not set securityContext.privileged=true"#,
        ),
        (
            Baseline,
            35,
            spec(json!({"hostNetwork": true, "hostIPC": true})),
            "host namespaces: hostNetwork=true, hostIPC=true",
        ),
        (
            Baseline,
            35,
            volume(json!({"name": "v", "hostPath": {}})),
            r#"hostPath volumes: volume "v""#,
        ),
        (
            Restricted,
            35,
            volume(json!({"name": "v", "hostPath": {}})),
            r#"restricted volume types: volume "v" uses restricted volume type "hostPath""#,
        ),
        (Restricted, 35, volume(json!({"name": "v", "emptyDir": {}})), ""),
        (Baseline, 35, one(ports), r#"hostPort: container "c" uses hostPorts 443, 80"#),
        (
            Baseline,
            34,
            one(probe.clone()),
            r#"probe or lifecycle host: container "c" uses probe or lifecycle host "1.2.3.4""#,
        ),
        (Baseline, 33, one(probe), ""),
        (
            Baseline,
            35,
            context(add(&["NET_ADMIN", "CHOWN"])),
            r#"non-default capabilities: container "c" must not include "NET_ADMIN" in securityContext.capabilities.add"#,
        ),
        (
            Restricted,
            35,
            context(add(&["CHOWN"])),
            r#"unrestricted capabilities: container "c" must not include "CHOWN" in securityContext.capabilities.add"#,
        ),
        (Restricted, 35, context(add(&["NET_BIND_SERVICE"])), ""),
        (
            Restricted,
            35,
            context(json!({"capabilities": {}})),
            r#"unrestricted capabilities: container "c" must set securityContext.capabilities.drop=["ALL"]"#,
        ),
        (Restricted, 21, context(json!({"capabilities": {}})), ""),
        (
            Restricted,
            35,
            context(json!({"allowPrivilegeEscalation": null})),
            r#"allowPrivilegeEscalation != false: container "c" must set securityContext.allowPrivilegeEscalation=false"#,
        ),
        (
            Restricted,
            35,
            context(json!({"runAsNonRoot": false})),
            r#"runAsNonRoot != true: container "c" must not set securityContext.runAsNonRoot=false"#,
        ),
        (
            Restricted,
            35,
            context(json!({"runAsNonRoot": null})),
            r#"runAsNonRoot != true: pod or container "c" must set securityContext.runAsNonRoot=true"#,
        ),
        (
            Restricted,
            35,
            context(json!({"runAsUser": 0})),
            r#"runAsUser=0: container "c" must not set runAsUser=0"#,
        ),
        (Restricted, 22, context(json!({"runAsUser": 0})), ""),
        (
            Baseline,
            35,
            context(json!({"procMount": "Unmasked"})),
            r#"procMount: container "c" must not set securityContext.procMount to "Unmasked""#,
        ),
        (Baseline, 35, own_users.clone(), ""),
        (
            Restricted,
            35,
            own_users,
            r#"procMount: container "c" must not set securityContext.procMount to "Unmasked""#,
        ),
        (
            Baseline,
            35,
            context(json!({"seLinuxOptions": {"type": "x", "user": "u", "role": "r"}})),
            r#"seLinuxOptions: container "c" set forbidden securityContext.seLinuxOptions: type "x"; user may not be set; role may not be set"#,
        ),
        (Baseline, 31, context(json!({"seLinuxOptions": {"type": "container_engine_t"}})), ""),
        (
            Baseline,
            30,
            context(json!({"seLinuxOptions": {"type": "container_engine_t"}})),
            r#"seLinuxOptions: container "c" set forbidden securityContext.seLinuxOptions: type "container_engine_t""#,
        ),
        (
            Baseline,
            35,
            context(json!({"seccompProfile": {"type": "Unconfined"}})),
            r#"seccompProfile: container "c" must not set securityContext.seccompProfile.type to "Unconfined""#,
        ),
        (
            Restricted,
            35,
            context(json!({"seccompProfile": null})),
            r#"seccompProfile: pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost""#,
        ),
        (
            Baseline,
            18,
            annotated.clone(),
            r#"forbidden AppArmor profile: annotation must not set AppArmor profile type to "container.apparmor.security.beta.kubernetes.io/c="unconfined"" | seccompProfile: forbidden annotation seccomp.security.alpha.kubernetes.io/pod="unconfined""#,
        ),
        (
            Baseline,
            35,
            context(json!({"appArmorProfile": {"type": "Unconfined"}})),
            r#"forbidden AppArmor profile: container "c" must not set AppArmor profile type to "Unconfined""#,
        ),
        (Baseline, 35, sysctl("kernel.msgmax"), "forbidden sysctls: kernel.msgmax"),
        (Baseline, 31, sysctl("net.ipv4.tcp_rmem"), "forbidden sysctls: net.ipv4.tcp_rmem"),
        (Baseline, 32, sysctl("net.ipv4.tcp_rmem"), ""),
        (
            Baseline,
            26,
            sysctl("net.ipv4.ip_local_reserved_ports"),
            "forbidden sysctls: net.ipv4.ip_local_reserved_ports",
        ),
        (
            Baseline,
            35,
            spec(json!({"securityContext": {"windowsOptions": {"hostProcess": true}}})),
            "hostProcess: pod must not set securityContext.windowsOptions.hostProcess=true",
        ),
        (Restricted, 35, windows.clone(), ""),
        (
            Restricted,
            24,
            windows,
            r#"allowPrivilegeEscalation != false: container "c" must set securityContext.allowPrivilegeEscalation=false | unrestricted capabilities: container "c" must set securityContext.capabilities.drop=["ALL"] | seccompProfile: pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost""#,
        ),
    ];
    for (level, minor, pod, want) in cases {
        assert_eq!(with(level, minor, &pod), want, "{level:?} v1.{minor} {pod}");
    }
}

#[test]
fn checks_are_in_order() {
    for checks in [&BASELINE[..], &RESTRICTED[..]] {
        assert!(checks.is_sorted_by_key(|c| c.id));
        assert!(checks.iter().all(|c| c.forms.is_sorted_by_key(|f| f.0)));
    }
}
