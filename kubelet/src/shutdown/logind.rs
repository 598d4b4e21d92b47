//! systemd-logind, as far as shutdowns go: it tells of one, and waits with it for whoever holds a lock
//! (<https://www.freedesktop.org/wiki/Software/systemd/inhibit/>).

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, bail};

use super::dbus::{BUS, Connection, Message, Object};
use super::wire::Value;

const MANAGER: &str = "org.freedesktop.login1.Manager";
const LOGIND: Object<'static> =
    Object { name: "org.freedesktop.login1", path: "/org/freedesktop/login1", interface: MANAGER };
const SYSTEMD: Object<'static> = Object {
    name: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const SIGHUP: i32 = 1;

/// While it is held, shutdown waits, up to logind's longest delay.
pub type Lock = OwnedFd;

/// A connection to logind, for as long as it is the same one.
pub struct Logind {
    bus: Connection,
    /// Its name on the bus: anybody there may send signals that look like its own.
    owner: String,
}

impl Logind {
    /// Connects to the bus at this address, and follows logind's signals from now on.
    ///
    /// # Errors
    /// There is no bus, or no logind on it.
    pub async fn connect(address: &str) -> anyhow::Result<Self> {
        let mut bus = Connection::open(address).await?;
        let (name, path) = (LOGIND.name, LOGIND.path);
        for rule in [
            format!(
                "type='signal',interface='{MANAGER}',member='PrepareForShutdown',path='{path}'"
            ),
            format!(
                "type='signal',sender='{}',interface='{}',member='NameOwnerChanged',arg0='{name}'",
                BUS.name, BUS.interface
            ),
        ] {
            bus.call(BUS, "AddMatch", &[Value::Text(rule)]).await?;
        }
        let mut logind = Self { bus, owner: String::new() };
        // It may have to be started by the bus before it has a name there.
        logind.is_preparing().await?;
        let answer = logind.bus.call(BUS, "GetNameOwner", &[Value::text(name)]).await?;
        match one(&answer)? {
            Value::Text(owner) => logind.owner = owner,
            other => bail!("GetNameOwner: {other:?}"),
        }
        Ok(logind)
    }

    async fn property(&mut self, name: &str) -> anyhow::Result<Value> {
        let properties = Object { interface: "org.freedesktop.DBus.Properties", ..LOGIND };
        let arguments = [Value::text(MANAGER), Value::text(name)];
        let answer = self.bus.call(properties, "Get", &arguments).await?;
        match one(&answer)? {
            Value::Variant(value) => Ok(*value),
            other => bail!("{name}: {other:?}"),
        }
    }

    /// How long a lock delays shutdown at most (`InhibitDelayMaxSec` in logind.conf(5)).
    ///
    /// # Errors
    /// The bus's or logind's; so with all of these.
    pub async fn longest_delay(&mut self) -> anyhow::Result<Duration> {
        match self.property("InhibitDelayMaxUSec").await? {
            Value::Uint64(micros) => Ok(Duration::from_micros(micros)),
            _ => bail!("InhibitDelayMaxUSec from logind is not a uint64 as expected"),
        }
    }

    /// Whether a shutdown has begun.
    pub async fn is_preparing(&mut self) -> anyhow::Result<bool> {
        match self.property("PreparingForShutdown").await? {
            Value::Bool(now) => Ok(now),
            other => bail!("PreparingForShutdown: {other:?}"),
        }
    }

    /// Takes a lock. There is none to be had while a shutdown is under way.
    pub async fn inhibit(&mut self) -> anyhow::Result<Lock> {
        let why = "Kubelet needs time to handle node shutdown";
        let arguments = ["shutdown", "kubelet", why, "delay"].map(Value::text);
        let mut answer = self.bus.call(LOGIND, "Inhibit", &arguments).await?;
        let value = one(&answer).context("failed creating systemd inhibitor")?;
        let place = match value {
            Value::Descriptor(place) => usize::try_from(place)?,
            other => bail!("failed creating systemd inhibitor: {other:?}"),
        };
        if place >= answer.descriptors.len() {
            bail!("failed storing inhibit lock file descriptor: it did not come");
        }
        Ok(answer.descriptors.swap_remove(place))
    }

    /// Has logind read its configuration again, some time soon.
    pub async fn reload(&mut self) -> anyhow::Result<()> {
        let unit =
            [Value::text("systemd-logind.service"), Value::text("all"), Value::Int32(SIGHUP)];
        let sent = self.bus.call(SYSTEMD, "KillUnit", &unit).await;
        sent.context("unable to reload logind conf").map(drop)
    }

    /// What logind tells next: that a shutdown begins, or (`false`) that there is none any more.
    /// Nothing is lost if it is not waited for to the end.
    ///
    /// # Errors
    /// The connection is lost, or this logind has ended.
    pub async fn told(&mut self) -> anyhow::Result<bool> {
        loop {
            let signal = self.bus.signal().await.context("D-Bus")?;
            let sender = signal.head.sender.as_deref();
            if sender == Some(&self.owner) && signal.is(MANAGER, "PrepareForShutdown") {
                match one(&signal)? {
                    Value::Bool(now) => return Ok(now),
                    other => {
                        bail!("PrepareForShutdown event was not bool type as expected: {other:?}")
                    }
                }
            }
            if sender == Some(BUS.name) && signal.is(BUS.interface, "NameOwnerChanged") {
                let of_logind = [Value::text(LOGIND.name)];
                let values = signal.values()?;
                let now = values.get(2);
                if values.starts_with(&of_logind) && now != Some(&Value::text(&self.owner)) {
                    bail!("logind has ended");
                }
            }
        }
    }
}

/// The first value of a message.
fn one(message: &Message) -> anyhow::Result<Value> {
    message.values()?.into_iter().next().context("D-Bus: an answer without a value")
}
