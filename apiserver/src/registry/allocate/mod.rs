//! Grants of what services need one of a kind: cluster addresses and node ports.
//!
//! A grant is a conditional write to the store, so that servers that share one store never grant
//! a thing twice: an address is an IPAddress object that only one creation can make, ports are
//! bits of one RangeAllocation that is swapped by revision. These are upstream's records, and
//! both servers honour each other's.

mod families;
mod ledger;
mod ranges;

use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::object::{self, set};
use apimachinery::status::ApiError;
use async_trait::async_trait;

pub use ledger::{Ledger, Refused, StoreLedger};
pub use ranges::{AddressRange, Family, PortRange};

use super::Context;
use super::kinds::services::{
    fill_from_old, is_headless, needs_health_check, needs_node_ports, normalize_cluster_ips,
};

/// What grants to objects of one kind.
#[async_trait]
pub trait Allocator: Send + Sync + 'static {
    /// Fills in and takes what a new object needs. Runs before validation; the object may be
    /// refused yet, and then the reservation is abandoned. A dry run takes nothing.
    async fn create(
        &self,
        context: &Context<'_>,
        object: &mut Value,
        dry_run: bool,
    ) -> Result<Reservation, ApiError>;

    /// The same for an update; what the object gives up is released when the write is done.
    async fn update(
        &self,
        context: &Context<'_>,
        object: &mut Value,
        old: &Value,
        dry_run: bool,
    ) -> Result<Reservation, ApiError>;

    /// Releases what a deleted object had.
    async fn deleted(&self, object: &Value);
}

/// One thing that only one object can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    Address(IpAddr),
    Port(u16),
}

/// What a write took, and what it will give up. Finish it one way or the other: commit after the
/// object was stored, abandon when it was not.
#[must_use = "what was taken stays taken until the reservation is abandoned"]
pub struct Reservation {
    ledger: Arc<dyn Ledger>,
    taken: Vec<Grant>,
    given_up: Vec<Grant>,
}

impl Reservation {
    fn new(ledger: &Arc<dyn Ledger>) -> Self {
        Self { ledger: ledger.clone(), taken: Vec::new(), given_up: Vec::new() }
    }

    /// The object was stored: releases what it no longer has.
    pub async fn commit(self) {
        release(&*self.ledger, &self.given_up).await;
    }

    /// The object was not stored: releases what was taken for it.
    pub async fn abandon(self) {
        release(&*self.ledger, &self.taken).await;
    }

    /// What the write took.
    pub fn taken(&self) -> &[Grant] {
        &self.taken
    }
}

/// A release that fails leaves a leak, never a double grant; the log says so.
async fn release(ledger: &dyn Ledger, grants: &[Grant]) {
    for grant in grants {
        if let Err(error) = ledger.release(*grant).await {
            tracing::warn!(?grant, %error, "could not release");
        }
    }
}

/// What dry runs show for a port that would be granted.
const DRY_RUN_PORT: u16 = 32769;

/// How services are granted addresses and ports.
pub struct ServiceAllocator {
    ledger: Arc<dyn Ledger>,
    /// `--service-cluster-ip-range`, at most one of each family; the first is the default.
    ranges: Vec<AddressRange>,
    /// `--service-node-port-range`
    ports: PortRange,
    /// A number below its argument, at random.
    random: Box<dyn Fn(u64) -> u64 + Send + Sync>,
}

impl ServiceAllocator {
    pub fn new(
        ledger: Arc<dyn Ledger>,
        ranges: Vec<AddressRange>,
        ports: PortRange,
        random: impl Fn(u64) -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self { ledger, ranges, ports, random: Box::new(random) }
    }

    fn families(&self) -> Vec<Family> {
        self.ranges.iter().map(AddressRange::family).collect()
    }

    /// The configured ranges, and those of ServiceCIDR objects that are ready.
    fn all_ranges(&self, context: &Context<'_>) -> Vec<AddressRange> {
        let mut ranges = self.ranges.clone();
        let resource = apimachinery::gvk::GroupResource::new("networking.k8s.io", "servicecidrs");
        for cidr in context.reader.list(&resource, "") {
            let ready = object::list_at(&cidr, &["status", "conditions"]).iter().any(|c| {
                object::str_at(c, &["type"]) == "Ready" && object::str_at(c, &["status"]) == "True"
            });
            if !ready || !object::deletion_timestamp(&cidr).is_empty() {
                continue;
            }
            let texts = object::list_at(&cidr, &["spec", "cidrs"]).iter().filter_map(Value::as_str);
            for range in texts.filter_map(|t| t.parse().ok()).map(AddressRange::new) {
                if !ranges.contains(&range) {
                    ranges.push(range);
                }
            }
        }
        ranges
    }

    /// Takes an address for each family that has none yet, or the one that is asked for.
    async fn take_addresses(
        &self,
        context: &Context<'_>,
        service: &mut Value,
        from: usize,
        dry_run: bool,
        reservation: &mut Reservation,
    ) -> Result<(), ApiError> {
        let families = strings(service, "ipFamilies");
        let mut ips = strings(service, "clusterIPs");
        ips.resize(ips.len().max(families.len()), String::new());
        for (i, family) in families.iter().enumerate().skip(from) {
            let asked = ips[i].clone();
            let shown = strings(service, "clusterIPs");
            let taken = if asked.is_empty() {
                self.take_any(context, Family::of_name(family), service, dry_run).await
            } else {
                self.take_one(context, &asked, service, dry_run).await
            };
            let ip = taken.map_err(|refused| address_error(service, &shown, &asked, &refused))?;
            if !dry_run {
                reservation.taken.push(Grant::Address(ip));
            }
            if asked.is_empty() {
                ips[i] = ip.to_string();
            }
        }
        if let Some(first) = ips.first() {
            set(service, &["spec", "clusterIP"], first.as_str());
            set(service, &["spec", "clusterIPs"], ips);
        }
        Ok(())
    }

    async fn take_one(
        &self,
        context: &Context<'_>,
        asked: &str,
        service: &Value,
        dry_run: bool,
    ) -> Result<IpAddr, Refused> {
        let Some(ip) = apimachinery::names::parse_ip(asked) else {
            return Err(Refused::Other(format!("failed to parse service IP \"{asked}\"")));
        };
        if !self.all_ranges(context).iter().any(|r| r.grants(ip)) {
            // Upstream words it otherwise when nothing is to be taken.
            return Err(match self.ranges.first().filter(|_| dry_run) {
                Some(range) => Refused::Other(format!(
                    "the provided IP ({ip}) is not in the valid range. The range of valid IPs is \
                     {range}"
                )),
                None => Refused::NoSuchRange,
            });
        }
        if !dry_run {
            self.ledger.take_address(ip, service, context.now).await?;
        }
        Ok(ip)
    }

    async fn take_any(
        &self,
        context: &Context<'_>,
        family: Family,
        service: &Value,
        dry_run: bool,
    ) -> Result<IpAddr, Refused> {
        let resource = apimachinery::gvk::GroupResource::new("networking.k8s.io", "ipaddresses");
        for range in self.all_ranges(context).iter().filter(|r| r.family() == family) {
            if dry_run {
                return Ok(range.network());
            }
            for ip in range.candidates(&self.random) {
                if context.reader.get(&resource, "", &ip.to_string()).is_some() {
                    continue;
                }
                match self.ledger.take_address(ip, service, context.now).await {
                    Ok(()) => return Ok(ip),
                    // Another server was faster, or the cache is behind.
                    Err(Refused::Taken) => continue,
                    Err(other) => return Err(other),
                }
            }
        }
        Err(Refused::Full)
    }

    /// Takes ports: those asked for, and one for each other port of the service.
    async fn take_ports(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
        reservation: &mut Reservation,
    ) -> Result<(), ApiError> {
        let had = old.map(node_ports).unwrap_or_default();
        let allocate = object::str_at(service, &["spec", "type"]) == "NodePort"
            || object::bool_at(service, &["spec", "allocateLoadBalancerNodePorts"]);
        // Ports of one number and several protocols share a node port.
        let mut by_port: Vec<(i64, i64)> = Vec::new();
        for i in 0..object::list_at(service, &["spec", "ports"]).len() {
            let port = &object::list_at(service, &["spec", "ports"])[i];
            let (number, asked) = (int(port, "port"), int(port, "nodePort"));
            if asked == 0 && !allocate {
                continue;
            }
            let shared = by_port.iter().find(|(p, _)| *p == number).map(|(_, n)| *n);
            let wanted = match (asked, shared, old) {
                (0, Some(shared), None) => {
                    set_node_port(service, i, shared);
                    continue;
                }
                (0, _, None) => requested(service, number),
                (asked, _, _) => asked,
            };
            let granted = if wanted == 0 {
                let port = self.any_port(dry_run, reservation).await.map_err(|refused| {
                    ApiError::Internal(format!("failed to allocate a nodePort: {refused}"))
                })?;
                i64::from(port)
            } else {
                let own = had.contains(&wanted) || reserved(reservation, wanted);
                if !own && shared != Some(wanted) {
                    self.one_port(wanted, dry_run, reservation)
                        .await
                        .map_err(|refused| port_error(service, i, wanted, &refused))?;
                }
                wanted
            };
            by_port.push((number, granted));
            set_node_port(service, i, granted);
        }
        Ok(())
    }

    async fn one_port(
        &self,
        port: i64,
        dry_run: bool,
        reservation: &mut Reservation,
    ) -> Result<(), Refused> {
        if dry_run {
            return Ok(());
        }
        let Some(port) = self.ports.port(port) else {
            return Err(Refused::Other(format!(
                "provided port is not in the valid range. The range of valid ports is {}",
                self.ports
            )));
        };
        self.ledger.take_port(&self.ports, port).await?;
        reservation.taken.push(Grant::Port(port));
        Ok(())
    }

    async fn any_port(&self, dry_run: bool, reservation: &mut Reservation) -> Result<u16, Refused> {
        if dry_run {
            return Ok(DRY_RUN_PORT);
        }
        let port = self.ledger.take_any_port(&self.ports, &*self.random).await?;
        reservation.taken.push(Grant::Port(port));
        Ok(port)
    }

    async fn take_health_check_port(
        &self,
        service: &mut Value,
        dry_run: bool,
        reservation: &mut Reservation,
    ) -> Result<(), ApiError> {
        let path = ["spec", "healthCheckNodePort"];
        match object::int_at(service, &path).unwrap_or(0) {
            0 => {
                let port = self.any_port(dry_run, reservation).await.map_err(|refused| {
                    let text = "failed to allocate a HealthCheck NodePort 0";
                    ApiError::Internal(format!("{text}: {refused}"))
                })?;
                set(service, &path, port);
            }
            asked => self.one_port(asked, dry_run, reservation).await.map_err(|refused| {
                let text = format!("failed to allocate requested HealthCheck NodePort {asked}");
                ApiError::Internal(format!("{text}: {refused}"))
            })?,
        }
        Ok(())
    }

    async fn fill(
        &self,
        context: &Context<'_>,
        service: &mut Value,
        dry_run: bool,
        reservation: &mut Reservation,
    ) -> Result<(), ApiError> {
        families::init(service, None, &self.families()).map_err(|e| invalid(service, e))?;
        if has_addresses(service) {
            self.take_addresses(context, service, 0, dry_run, reservation).await?;
        }
        if needs_node_ports(service) {
            self.take_ports(service, None, dry_run, reservation).await?;
        }
        if needs_health_check(service) {
            self.take_health_check_port(service, dry_run, reservation).await?;
        }
        Ok(())
    }

    async fn refill(
        &self,
        context: &Context<'_>,
        service: &mut Value,
        old: &Value,
        dry_run: bool,
        reservation: &mut Reservation,
    ) -> Result<(), ApiError> {
        families::init(service, Some(old), &self.families()).map_err(|e| invalid(service, e))?;
        self.change_addresses(context, service, old, dry_run, reservation).await?;
        if needs_node_ports(service) {
            self.take_ports(service, Some(old), dry_run, reservation).await?;
        }
        let (now, was) = (node_ports(service), node_ports(old));
        if needs_node_ports(service) || needs_node_ports(old) {
            let kept = |port: &i64| needs_node_ports(service) && now.contains(port);
            for port in was.iter().filter(|p| !kept(p)) {
                reservation.given_up.extend(self.ports.port(*port).map(Grant::Port));
            }
        }
        match (needs_health_check(old), needs_health_check(service)) {
            (false, true) => {
                self.take_health_check_port(service, dry_run, reservation).await?;
            }
            (true, false) => {
                let port = object::int_at(old, &["spec", "healthCheckNodePort"]).unwrap_or(0);
                reservation.given_up.extend(self.ports.port(port).map(Grant::Port));
            }
            _ => {}
        }
        Ok(())
    }

    /// Addresses come and go with the type, and with the second family.
    async fn change_addresses(
        &self,
        context: &Context<'_>,
        service: &mut Value,
        old: &Value,
        dry_run: bool,
        reservation: &mut Reservation,
    ) -> Result<(), ApiError> {
        let external = |s: &Value| object::str_at(s, &["spec", "type"]) == "ExternalName";
        let (was, is) = (external(old), external(service));
        if was && !is && has_addresses(service) {
            return self.take_addresses(context, service, 0, dry_run, reservation).await;
        }
        if was || is_headless(old) {
            return Ok(());
        }
        let old_ips = strings(old, "clusterIPs");
        if is {
            reservation.given_up.extend(addresses(&old_ips));
            return Ok(());
        }
        let count = |s: &Value| strings(s, "ipFamilies").len();
        match (count(old), count(service)) {
            (1, 2) => self.take_addresses(context, service, 1, dry_run, reservation).await,
            (2, 1) => {
                reservation.given_up.extend(addresses(&old_ips).skip(1));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Allocator for ServiceAllocator {
    async fn create(
        &self,
        context: &Context<'_>,
        object: &mut Value,
        dry_run: bool,
    ) -> Result<Reservation, ApiError> {
        let mut reservation = Reservation::new(&self.ledger);
        normalize_cluster_ips(object, None);
        match self.fill(context, object, dry_run, &mut reservation).await {
            Ok(()) => Ok(reservation),
            Err(error) => {
                reservation.abandon().await;
                Err(error)
            }
        }
    }

    async fn update(
        &self,
        context: &Context<'_>,
        object: &mut Value,
        old: &Value,
        dry_run: bool,
    ) -> Result<Reservation, ApiError> {
        let mut reservation = Reservation::new(&self.ledger);
        fill_from_old(object, old);
        normalize_cluster_ips(object, Some(old));
        match self.refill(context, object, old, dry_run, &mut reservation).await {
            Ok(()) => {
                if dry_run {
                    reservation.given_up.clear();
                }
                Ok(reservation)
            }
            Err(error) => {
                reservation.abandon().await;
                Err(error)
            }
        }
    }

    async fn deleted(&self, object: &Value) {
        let mut grants: Vec<Grant> = Vec::new();
        if has_addresses(object) {
            grants.extend(addresses(&strings(object, "clusterIPs")));
        }
        grants.extend(
            node_ports(object).into_iter().filter_map(|p| self.ports.port(p)).map(Grant::Port),
        );
        if needs_health_check(object) {
            let port = object::int_at(object, &["spec", "healthCheckNodePort"]).unwrap_or(0);
            grants.extend(self.ports.port(port).map(Grant::Port));
        }
        release(&*self.ledger, &grants).await;
    }
}

fn has_addresses(service: &Value) -> bool {
    object::str_at(service, &["spec", "type"]) != "ExternalName" && !is_headless(service)
}

fn strings(service: &Value, field: &str) -> Vec<String> {
    let list = object::list_at(service, &["spec", field]);
    list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn addresses(ips: &[String]) -> impl Iterator<Item = Grant> + '_ {
    ips.iter().filter_map(|ip| apimachinery::names::parse_ip(ip)).map(Grant::Address)
}

fn int(port: &Value, field: &str) -> i64 {
    object::int_at(port, &[field]).unwrap_or(0)
}

/// The node ports that a service has.
fn node_ports(service: &Value) -> Vec<i64> {
    let ports = object::list_at(service, &["spec", "ports"]);
    ports.iter().map(|p| int(p, "nodePort")).filter(|n| *n != 0).collect()
}

/// The node port that any of the service's ports of this number asks for, or 0.
fn requested(service: &Value, number: i64) -> i64 {
    object::list_at(service, &["spec", "ports"])
        .iter()
        .find(|p| int(p, "port") == number && int(p, "nodePort") != 0)
        .map_or(0, |p| int(p, "nodePort"))
}

fn reserved(reservation: &Reservation, port: i64) -> bool {
    reservation.taken.iter().any(|g| matches!(g, Grant::Port(p) if i64::from(*p) == port))
}

fn set_node_port(service: &mut Value, index: usize, port: i64) {
    if let Some(entry) = service["spec"]["ports"].get_mut(index) {
        set(entry, &["nodePort"], port);
    }
}

fn invalid(service: &Value, errors: ErrorList) -> ApiError {
    ApiError::Invalid {
        group: String::new(),
        kind: "Service".to_owned(),
        name: object::name(service).to_owned(),
        errors,
    }
}

fn address_error(service: &Value, shown: &[String], asked: &str, refused: &Refused) -> ApiError {
    let text = match (asked, refused) {
        ("", Refused::Full) => {
            return ApiError::Internal(format!("failed to allocate a serviceIP: {refused}"));
        }
        ("", _) => format!("failed to allocate IP: {refused}"),
        (ip, _) => format!("failed to allocate IP {ip}: {refused}"),
    };
    let path = Path::new("spec").child("clusterIPs");
    invalid(service, vec![FieldError::invalid(&path, shown.to_vec(), text)])
}

fn port_error(service: &Value, index: usize, port: i64, refused: &Refused) -> ApiError {
    let text = match refused {
        Refused::Taken => "provided port is already allocated".to_owned(),
        other => other.to_string(),
    };
    let path = Path::new("spec").child("ports").index(index).child("nodePort");
    invalid(service, vec![FieldError::invalid(&path, port, text)])
}

#[cfg(test)]
pub(crate) mod tests;
