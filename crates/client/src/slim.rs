//! What the caches of a process leave out: what nobody but an object's own node reads. Objects in
//! them are never written back whole.

use std::any::Any;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};

/// Keeps of a pod what others than its node ask for; leaves other kinds as they are.
pub fn without_what_nodes_read<K: Any>(object: &mut K) {
    if let Some(pod) = (object as &mut dyn Any).downcast_mut::<Pod>() {
        if let Some(spec) = &mut pod.spec {
            slim_spec(spec);
        }
        if let Some(status) = &mut pod.status {
            status.ephemeral_container_statuses = None;
            let lists = [&mut status.container_statuses, &mut status.init_container_statuses];
            lists.into_iter().flatten().flatten().for_each(slim_status);
        }
    }
}

fn slim_spec(spec: &mut PodSpec) {
    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(slim);
    spec.ephemeral_containers = None;
    // Claims are protected, bound and waited for.
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some());
        volumes.shrink_to_fit();
    }
    spec.dns_config = None;
    spec.host_aliases = None;
    spec.image_pull_secrets = None;
    spec.security_context = None;
}

/// Image, ports and resources stay.
fn slim(container: &mut Container) {
    *container = Container {
        name: std::mem::take(&mut container.name),
        image: container.image.take(),
        ports: container.ports.take(),
        resources: container.resources.take(),
        restart_policy: container.restart_policy.take(),
        ..Container::default()
    };
}

fn slim_status(status: &mut ContainerStatus) {
    status.container_id = None;
    status.image = String::new();
    status.image_id = String::new();
    status.last_state = None;
    status.user = None;
    status.volume_mounts = None;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_schedulers_and_controllers_read_stays() {
        let pod = json!({
            "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {
                "nodeName": "n",
                "tolerations": [{"key": "k"}],
                "containers": [{"name": "c", "image": "i", "command": ["x"], "env": [{"name": "E"}],
                    "ports": [{"containerPort": 80, "hostPort": 8080}],
                    "resources": {"requests": {"cpu": "1"}},
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
                "volumes": [{"name": "t", "emptyDir": {}},
                    {"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{"name": "c",
                "image": "i", "imageID": "sha", "ready": true, "restartCount": 2,
                "state": {"terminated": {"exitCode": 3}}}]},
        });
        let mut pod: Pod = serde_json::from_value(pod).expect("a pod");
        without_what_nodes_read(&mut pod);
        let left = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {
                "nodeName": "n",
                "tolerations": [{"key": "k"}],
                "containers": [{"name": "c", "image": "i",
                    "ports": [{"containerPort": 80, "hostPort": 8080}],
                    "resources": {"requests": {"cpu": "1"}}}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{"name": "c",
                "image": "", "imageID": "", "ready": true, "restartCount": 2,
                "state": {"terminated": {"exitCode": 3}}}]},
        });
        assert_eq!(serde_json::to_value(&pod).expect("JSON"), left);
    }
}
