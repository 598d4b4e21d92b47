//! The functions that there are: names, and what they take and give.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::types::Type;

/// One form of a function. Variables are its parameters.
pub(super) struct Overload {
    /// Called on its first argument: `a.f(b)`.
    pub member: bool,
    pub args: Vec<Type>,
    pub result: Type,
}

/// Name, arguments, result; with a dot before it, a function is called on its first argument.
const TABLE: &str = "
_?_:_ (bool, A, A) A
!_ (bool) bool
-_ (int) int
-_ (double) double
_==_ (A, A) bool
_!=_ (A, A) bool
@in (A, list(A)) bool
@in (A, map(A, B)) bool
_[_] (list(A), int) A
_[_] (map(A, B), A) B
_[_] (optional(list(A)), int) optional(A)
_[_] (optional(map(A, B)), A) optional(B)
_[?_] (list(A), int) optional(A)
_[?_] (optional(list(A)), int) optional(A)
_[?_] (map(A, B), A) optional(B)
_[?_] (optional(map(A, B)), A) optional(B)
_+_ (int, int) int
_+_ (uint, uint) uint
_+_ (double, double) double
_+_ (string, string) string
_+_ (bytes, bytes) bytes
_+_ (list(A), list(A)) list(A)
_+_ (timestamp, duration) timestamp
_+_ (duration, timestamp) timestamp
_+_ (duration, duration) duration
_-_ (int, int) int
_-_ (uint, uint) uint
_-_ (double, double) double
_-_ (timestamp, timestamp) duration
_-_ (timestamp, duration) timestamp
_-_ (duration, duration) duration
_*_ (int, int) int
_*_ (uint, uint) uint
_*_ (double, double) double
_/_ (int, int) int
_/_ (uint, uint) uint
_/_ (double, double) double
_%_ (int, int) int
_%_ (uint, uint) uint
size (string) int
size (bytes) int
size (list(A)) int
size (map(A, B)) int
.size (string) int
.size (bytes) int
.size (list(A)) int
.size (map(A, B)) int
type (A) type
dyn (A) dyn
bool (bool) bool
bool (string) bool
bytes (bytes) bytes
bytes (string) bytes
double (double) double
double (int) double
double (uint) double
double (string) double
int (int) int
int (uint) int
int (double) int
int (string) int
int (timestamp) int
int (duration) int
uint (uint) uint
uint (int) uint
uint (double) uint
uint (string) uint
string (string) string
string (bool) string
string (int) string
string (uint) string
string (double) string
string (bytes) string
string (timestamp) string
string (duration) string
string (ip) string
string (cidr) string
duration (duration) duration
duration (int) duration
duration (string) duration
timestamp (timestamp) timestamp
timestamp (int) timestamp
timestamp (string) timestamp
.contains (string, string) bool
.endsWith (string, string) bool
.startsWith (string, string) bool
.matches (string, string) bool
matches (string, string) bool
.getFullYear (timestamp) int
.getFullYear (timestamp, string) int
.getMonth (timestamp) int
.getMonth (timestamp, string) int
.getDayOfYear (timestamp) int
.getDayOfYear (timestamp, string) int
.getDayOfMonth (timestamp) int
.getDayOfMonth (timestamp, string) int
.getDate (timestamp) int
.getDate (timestamp, string) int
.getDayOfWeek (timestamp) int
.getDayOfWeek (timestamp, string) int
.getHours (timestamp) int
.getHours (timestamp, string) int
.getHours (duration) int
.getMinutes (timestamp) int
.getMinutes (timestamp, string) int
.getMinutes (duration) int
.getSeconds (timestamp) int
.getSeconds (timestamp, string) int
.getSeconds (duration) int
.getMilliseconds (timestamp) int
.getMilliseconds (timestamp, string) int
.getMilliseconds (duration) int
.charAt (string, int) string
.indexOf (string, string) int
.indexOf (string, string, int) int
.lastIndexOf (string, string) int
.lastIndexOf (string, string, int) int
.lowerAscii (string) string
.upperAscii (string) string
.replace (string, string, string) string
.replace (string, string, string, int) string
.split (string, string) list(string)
.split (string, string, int) list(string)
.substring (string, int) string
.substring (string, int, int) string
.trim (string) string
.format (string, list(dyn)) string
strings.quote (string) string
.join (list(string)) string
.join (list(string), string) string
.find (string, string) string
.findAll (string, string) list(string)
.findAll (string, string, int) list(string)
.isSorted (list(C)) bool
.min (list(C)) C
.max (list(C)) C
.sum (list(int)) int
.sum (list(uint)) uint
.sum (list(double)) double
.sum (list(duration)) duration
.indexOf (list(A), A) int
.lastIndexOf (list(A), A) int
.slice (list(A), int, int) list(A)
.flatten (list(list(A))) list(A)
.flatten (list(dyn), int) list(dyn)
.sort (list(C)) list(C)
.reverse (list(A)) list(A)
.distinct (list(A)) list(A)
lists.range (int) list(int)
sets.contains (list(A), list(A)) bool
sets.equivalent (list(A), list(A)) bool
sets.intersects (list(A), list(A)) bool
optional.of (A) optional(A)
optional.ofNonZeroValue (A) optional(A)
optional.none () optional(A)
.value (optional(A)) A
.hasValue (optional(A)) bool
.or (optional(A), optional(A)) optional(A)
.orValue (optional(A), A) A
url (string) url
isURL (string) bool
.getScheme (url) string
.getHost (url) string
.getHostname (url) string
.getPort (url) string
.getEscapedPath (url) string
.getQuery (url) map(string, list(string))
quantity (string) quantity
isQuantity (string) bool
sign (quantity) int
.sign (quantity) int
.isGreaterThan (quantity, quantity) bool
.isLessThan (quantity, quantity) bool
.compareTo (quantity, quantity) int
.asApproximateFloat (quantity) double
.asInteger (quantity) int
.isInteger (quantity) bool
.add (quantity, quantity) quantity
.add (quantity, int) quantity
.sub (quantity, quantity) quantity
.sub (quantity, int) quantity
ip (string) ip
isIP (string) bool
ip.isCanonical (string) bool
.family (ip) int
.isUnspecified (ip) bool
.isLoopback (ip) bool
.isLinkLocalMulticast (ip) bool
.isLinkLocalUnicast (ip) bool
.isGlobalUnicast (ip) bool
cidr (string) cidr
isCIDR (string) bool
.containsIP (cidr, string) bool
.containsIP (cidr, ip) bool
.containsCIDR (cidr, string) bool
.containsCIDR (cidr, cidr) bool
.ip (cidr) ip
.prefixLength (cidr) int
.masked (cidr) cidr
format.named (string) optional(format)
format.dns1123Label () format
format.dns1123Subdomain () format
format.dns1035Label () format
format.qualifiedName () format
format.dns1123LabelPrefix () format
format.dns1123SubdomainPrefix () format
format.dns1035LabelPrefix () format
format.labelValue () format
format.uri () format
format.uuid () format
format.byte () format
format.date () format
format.datetime () format
.validate (format, string) optional(list(string))
semver (string) semver
semver (string, bool) semver
isSemver (string) bool
isSemver (string, bool) bool
.isGreaterThan (semver, semver) bool
.isLessThan (semver, semver) bool
.compareTo (semver, semver) int
.major (semver) int
.minor (semver) int
.patch (semver) int
.path (authorizer, string) path_check
.group (authorizer, string) group_check
.serviceAccount (authorizer, string, string) authorizer
.resource (group_check, string) resource_check
.subresource (resource_check, string) resource_check
.namespace (resource_check, string) resource_check
.name (resource_check, string) resource_check
.fieldSelector (resource_check, string) resource_check
.labelSelector (resource_check, string) resource_check
.check (path_check, string) decision
.check (resource_check, string) decision
.errored (decision) bool
.error (decision) string
.allowed (decision) bool
.reason (decision) string
";

/// Types that `C` stands for: those with an order.
const ORDERED: [Type; 8] = [
    Type::Int,
    Type::Uint,
    Type::Double,
    Type::Bool,
    Type::Duration,
    Type::Timestamp,
    Type::String,
    Type::Bytes,
];

pub(super) static FUNCTIONS: LazyLock<HashMap<&'static str, Vec<Overload>>> =
    LazyLock::new(functions);

fn functions() -> HashMap<&'static str, Vec<Overload>> {
    let mut all: HashMap<&'static str, Vec<Overload>> = HashMap::new();
    for line in TABLE.lines().filter(|line| !line.is_empty()) {
        let Some((name, rest)) = line.split_once(' ') else { continue };
        let member = name.starts_with('.');
        let overloads = all.entry(name.trim_start_matches('.')).or_default();
        let forms: Vec<Option<&Type>> = match rest.contains("(C") {
            true => ORDERED.iter().map(Some).collect(),
            false => vec![None],
        };
        for ordered in forms {
            let mut reader = Reader { rest, ordered };
            reader.take("(");
            let mut args = Vec::new();
            while !reader.take(")") {
                args.push(reader.ty());
                reader.take(",");
            }
            overloads.push(Overload { member, args, result: reader.ty() });
        }
    }
    for op in ["_<_", "_<=_", "_>_", "_>=_"] {
        let overloads = all.entry(op).or_default();
        let numbers = [Type::Int, Type::Uint, Type::Double];
        let mut push = |a: &Type, b: &Type| {
            let args = vec![a.clone(), b.clone()];
            overloads.push(Overload { member: false, args, result: Type::Bool });
        };
        ORDERED.iter().for_each(|ty| push(ty, ty));
        for a in &numbers {
            numbers.iter().filter(|b| *b != a).for_each(|b| push(a, b));
        }
    }
    all
}

struct Reader<'a> {
    rest: &'a str,
    ordered: Option<&'a Type>,
}

impl Reader<'_> {
    fn take(&mut self, text: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn ty(&mut self) -> Type {
        self.rest = self.rest.trim_start();
        let word = |c: char| !(c.is_alphanumeric() || c == '_');
        let (name, rest) = self.rest.split_at(self.rest.find(word).unwrap_or(self.rest.len()));
        self.rest = rest;
        let mut of = Vec::new();
        if matches!(name, "list" | "map" | "optional") && self.take("(") {
            while !self.take(")") {
                of.push(self.ty());
                self.take(",");
            }
        }
        let mut of = of.into_iter();
        let mut next = || of.next().unwrap_or(Type::Dyn);
        match name {
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "timestamp" => Type::Timestamp,
            "duration" => Type::Duration,
            "type" => Type::Type,
            "list" => Type::list(next()),
            "map" => Type::map(next(), next()),
            "optional" => Type::optional(next()),
            "A" => Type::Var(0),
            "B" => Type::Var(1),
            "C" => self.ordered.cloned().unwrap_or(Type::Dyn),
            other => opaque(other).map_or(Type::Dyn, Type::opaque),
        }
    }
}

/// The libraries' types, by their short names.
fn opaque(name: &str) -> Option<&'static str> {
    Some(match name {
        "url" => "kubernetes.URL",
        "quantity" => "kubernetes.Quantity",
        "ip" => "net.IP",
        "cidr" => "net.CIDR",
        "format" => "kubernetes.NamedFormat",
        "semver" => "kubernetes.Semver",
        "authorizer" => "kubernetes.authorization.Authorizer",
        "path_check" => "kubernetes.authorization.PathCheck",
        "group_check" => "kubernetes.authorization.GroupCheck",
        "resource_check" => "kubernetes.authorization.ResourceCheck",
        "decision" => "kubernetes.authorization.Decision",
        _ => return None,
    })
}

impl Type {
    /// The type of `authorizer`.
    pub fn authorizer() -> Self {
        Self::opaque("kubernetes.authorization.Authorizer")
    }

    /// The type of `authorizer.requestResource`.
    pub fn resource_check() -> Self {
        Self::opaque("kubernetes.authorization.ResourceCheck")
    }
}
