//! Manifests that several tests use.

/// A Deployment of the test server, and its Service on port 80.
pub fn web(name: &str, replicas: u32) -> String {
    format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers:
      - name: server
        image: localhost/test:1
        command: [testserver]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: http}}]
"
    )
}

/// The head of an object of the core group, up to its spec.
fn head(kind: &str, name: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: {kind}
metadata: {{name: {name}}}
spec:"
    )
}

/// A pod that does nothing, with more of its one container and of its spec.
fn idler(name: &str, more: &str) -> String {
    let head = head("Pod", name);
    format!(
        r"{head}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/test:1
    command: [sleep, infinity]
{more}"
    )
}

/// A pod that does nothing, for running commands in.
pub fn idle(name: &str) -> String {
    idler(name, "")
}

/// A volume of a class of its own, whose source this is, and what else follows in its spec.
pub fn volume(name: &str, source: &str) -> String {
    let head = head("PersistentVolume", name);
    format!(
        r"{head}
  capacity: {{storage: 2Gi}}
  accessModes: [ReadWriteOnce]
  storageClassName: {name}
  {source}
"
    )
}

/// A claim to a volume of a class.
pub fn claim(name: &str, class: &str) -> String {
    let head = head("PersistentVolumeClaim", name);
    format!(
        r"{head}
  accessModes: [ReadWriteOnce]
  storageClassName: {class}
  resources: {{requests: {{storage: 1Gi}}}}
"
    )
}

/// A pod that does nothing, with a claim's volume at `/disk`.
pub fn user(name: &str, claim: &str) -> String {
    let disk = format!(
        r"    volumeMounts: [{{name: disk, mountPath: /disk}}]
  volumes: [{{name: disk, persistentVolumeClaim: {{claimName: {claim}}}}}]
"
    );
    idler(name, &disk)
}

/// A pod whose one container runs a shell script.
pub fn script(name: &str, script: &str) -> String {
    let script = serde_json::Value::from(script);
    let head = head("Pod", name);
    format!(
        r"{head}
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers: [{{name: main, image: 'localhost/test:1', command: [sh, -c, {script}]}}]
"
    )
}

/// What the pods of [`each`] do.
pub enum Each {
    Idles,
    /// The test server runs, on this port of the node.
    Serves {
        host_port: u16,
    },
}

/// A DaemonSet of that name.
pub fn each(what: Each) -> String {
    let (command, more) = match what {
        Each::Idles => ("sleep, infinity", String::new()),
        Each::Serves { host_port } => (
            "testserver",
            format!(
                "env: [{{name: DRAIN_SECONDS, value: '0'}}], ports: [{{containerPort: 8080, hostPort: \
                 {host_port}}}]"
            ),
        ),
    };
    format!(
        r"
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: each}}
spec:
  selector: {{matchLabels: {{app: each}}}}
  template:
    metadata: {{labels: {{app: each}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: main, image: 'localhost/test:1', command: [{command}], {more}}}]
"
    )
}

/// `count` ConfigMaps, one document each, whose names start with `prefix`.
pub fn maps(prefix: &str, count: usize) -> String {
    let map =
        |i| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {prefix}-{i}}}\n");
    (0..count).map(map).collect()
}
