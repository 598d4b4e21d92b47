#!/usr/bin/env bash
# A kubelet without an API server runs a static pod on a containerd of its own, in a network
# namespace without a way out; it is killed, comes back, and finds the pod as it was; the pod ends
# when its manifest goes. Usage: real.sh KUBELET
set -euo pipefail
kubelet=$1
dir=$(mktemp -d)
ns=kubelet-test-$$
pids=()
cleanup() {
  set +e
  for task in $(ctl task ls -q 2>/dev/null); do ctl task kill -s KILL "$task"; done 2>/dev/null
  sleep 0.5
  for task in $(ctl task ls -q 2>/dev/null); do ctl task rm -f "$task"; done >/dev/null 2>&1
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
  sleep 1
  grep -F " $dir" /proc/self/mountinfo | cut -d' ' -f5 | sort -r | while read -r m; do umount -l "$m"; done
  for c in /sys/fs/cgroup/*/"$ns" /sys/fs/cgroup/"$ns"; do
    [ -d "$c" ] && find "$c" -depth -type d -exec rmdir {} \; 2>/dev/null
  done
  ip netns del "$ns" 2>/dev/null
  rm -rf "$dir"
}
trap cleanup EXIT
fail() { echo "FAILED: $*" >&2; tail -20 "$dir/kubelet.log" >&2 || true; exit 1; }
# Tries a command for half a minute.
eventually() { for _ in $(seq 60); do "$@" >/dev/null 2>&1 && return; sleep 0.5; done; fail "$*"; }

ip netns add "$ns"
inside() { nsenter --net="/run/netns/$ns" "$@"; }
inside ip link set lo up
mkdir -p "$dir"/{cni,root,state,manifests,logs/pods,image/fs/bin,image/out}

cat >"$dir/containerd.toml" <<C
version = 2
root = "$dir/root"
state = "$dir/state"
[grpc]
  address = "$dir/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.test/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
C
cat >"$dir/cni/10.conflist" <<C
{"cniVersion":"0.4.0","name":"test","plugins":[{"type":"bridge","bridge":"br-test","isGateway":true,
"ipam":{"type":"host-local","dataDir":"$dir/ipam","ranges":[[{"subnet":"10.244.99.0/24"}]]}}]}
C
nsenter --net="/run/netns/$ns" containerd --config "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 &
pids+=($!)

# One image is both the sandbox's and the container's.
cp "$(command -v busybox)" "$dir/image/fs/bin/busybox"
ln -s busybox "$dir/image/fs/bin/sleep"
(
  cd "$dir/image"
  tar --owner=0 --group=0 -C fs -cf out/layer.tar .
  sum=$(sha256sum out/layer.tar | cut -d' ' -f1)
  printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sleep","100000"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$(dpkg --print-architecture)" "$sum" >out/config.json
  printf '[{"Config":"config.json","RepoTags":["registry.test/pause:1"],"Layers":["layer.tar"]}]' >out/manifest.json
  tar -C out -cf image.tar manifest.json config.json layer.tar
)
ctl() { ctr -a "$dir/containerd.sock" -n k8s.io "$@"; }
eventually ctl version
eventually ctl images import "$dir/image/image.tar"

cat >"$dir/config.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$dir/containerd.sock
staticPodPath: $dir/manifests
failCgroupV1: false
podLogsDir: $dir/logs/pods
cgroupRoot: /$ns
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
C
start() {
  nsenter --net="/run/netns/$ns" "$kubelet" --config "$dir/config.yaml" --root-dir "$dir/kubelet" \
    --cert-dir "$dir/pki" --hostname-override node --v 4 >>"$dir/kubelet.log" 2>&1 &
  daemon=$!
  pids+=("$daemon")
}
cat >"$dir/manifests/pod.yaml" <<C
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: registry.test/pause:1
    imagePullPolicy: Never
    command: [sleep, "100000"]
C
running() { ctl task ls | awk '$3 == "RUNNING" {print $2}' | sort | tr '\n' ' '; }
two() { [ "$(running | wc -w)" = 2 ]; }
none() { [ "$(running | wc -w)" = 0 ] && [ -z "$(ls "$dir/kubelet/pods")" ]; }

start
eventually two
before=$(running)
inside curl -sk https://127.0.0.1:10250/pods | grep '"web-node"' >/dev/null || fail "the pod is not listed"
inside curl -s http://127.0.0.1:10248/healthz | grep ok >/dev/null || fail "not healthy"
kill -9 "$daemon"
start
sleep 4
[ "$(running)" = "$before" ] || fail "containers changed over a restart: $before / $(running)"
rm "$dir/manifests/pod.yaml"
eventually none
echo "passed"
