//! How long rules take: `scale nftables|iptables SERVICES ENDPOINTS`, in a network namespace of its
//! own. Prints what building the table and the first writing cost, and single changes after that.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube_proxy::config::Mode;
use kube_proxy::kernel::Kernel;
use kube_proxy::nftables::{Local, Node};
use kube_proxy::table::{self, Changes, Here, Table};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

/// A service with its endpoints, the `n`th. `shift` moves the endpoints' addresses.
fn objects(n: u32, endpoints: u32, shift: u32) -> anyhow::Result<(Service, EndpointSlice)> {
    let name = format!("service-{n:06}");
    let [_, b, c, d] = n.to_be_bytes();
    let service = json!({
        "metadata": {"namespace": "default", "name": name},
        "spec": {"clusterIP": format!("10.{}.{c}.{d}", 96 + b), "ports": [{"port": 80}]},
    });
    let endpoints: Vec<_> = (0..endpoints)
        .map(|i| {
            let [_, b, c, d] = (n * endpoints + i + shift).to_be_bytes();
            json!({"addresses": [format!("10.{}.{c}.{d}", 128 + b)], "nodeName": "other",
                "conditions": {"ready": true}})
        })
        .collect();
    let slice = json!({
        "metadata": {"namespace": "default", "name": format!("{name}-a"),
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080}],
    });
    Ok((serde_json::from_value(service)?, serde_json::from_value(slice)?))
}

/// CPU time of this process and of the programs that it has run.
fn cpu() -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            sum +=
                Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec())?);
        }
    }
    Ok(sum)
}

/// Resident memory, MiB: now and at most.
fn memory() -> anyhow::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let of = |field: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let mib = |field| of(field).unwrap_or_default() / 1024;
    Ok(format!("{} MiB resident, at most {} MiB", mib("VmRSS:"), mib("VmHWM:")))
}

fn timed<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (before, start) = (cpu()?, Instant::now());
    let result = work().with_context(|| what.to_owned())?;
    let (wall, cpu) = (start.elapsed(), cpu()? - before);
    println!("{what:45} {:9.2} ms, CPU {:9.2} ms", ms(wall), ms(cpu));
    Ok(result)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn run(mode: Mode, services: u32, endpoints: u32) -> anyhow::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("a network namespace")?;
    let here = Here { node: "here".into(), ..Here::default() };
    let node = Node {
        addresses: vec!["192.0.2.1".parse()?],
        any_address: false,
        local: Local::Addresses("10.128.0.0/9".parse()?),
        masquerade_all: false,
        mark: 0x4000,
    };
    let all: Vec<_> =
        (0..services).map(|n| objects(n, endpoints, 0)).collect::<anyhow::Result<_>>()?;
    let mut rows = Table::new();
    let put = |rows: &mut Table, service: &Service, slices: &[&EndpointSlice]| {
        let name = service.metadata.name.clone().unwrap_or_default();
        let new = table::rows(&here, false, service, slices);
        table::update(rows, "default", &name, new)
    };
    println!("{mode:?}: {services} services of {endpoints} endpoints");
    timed("the table, from objects", || {
        for (service, slice) in &all {
            put(&mut rows, service, &[slice]);
        }
        Ok(())
    })?;
    println!("{}", memory()?);
    let mut kernel = Kernel::new(mode, false);
    let bytes =
        timed("all rules, into an empty kernel", || kernel.sync(&rows, &Changes::new(), &node))?;
    println!("{bytes} bytes; {}", memory()?);
    timed("all rules anew", || {
        kernel.distrust();
        kernel.sync(&rows, &Changes::new(), &node)
    })?;
    println!("{}", memory()?);
    for n in [services / 2, services / 3, services / 4] {
        let (service, slice) = objects(n, endpoints, 1_000_000)?;
        timed("a service has other endpoints", || {
            let changes = put(&mut rows, &service, &[&slice]);
            kernel.sync(&rows, &changes, &node)
        })?;
        let (_, slice) = objects(n, endpoints + 1, 0)?;
        timed("a service has one more endpoint", || {
            let changes = put(&mut rows, &service, &[&slice]);
            kernel.sync(&rows, &changes, &node)
        })?;
        let (service, slice) = objects(services + n, endpoints, 0)?;
        timed("a service is new", || {
            let changes = put(&mut rows, &service, &[&slice]);
            kernel.sync(&rows, &changes, &node)
        })?;
        timed("and gone", || {
            let name = service.metadata.name.clone().unwrap_or_default();
            let changes = table::update(&mut rows, "default", &name, Vec::new());
            kernel.sync(&rows, &changes, &node)
        })?;
    }
    timed("a look whether the rules are there", || kernel.check())?;
    println!("{}", memory()?);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, services, endpoints] = arguments.as_slice() else {
        bail!("usage: scale nftables|iptables SERVICES ENDPOINTS");
    };
    let mode = match mode.as_str() {
        "nftables" => Mode::Nftables,
        "iptables" => Mode::Iptables,
        other => bail!("unknown mode {other:?}"),
    };
    run(mode, services.parse()?, endpoints.parse()?)
}
