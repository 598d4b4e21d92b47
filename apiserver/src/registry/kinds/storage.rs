//! The group `storage.k8s.io`: classes of storage, and what CSI drivers tell of themselves.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::object::{self, set};
use apimachinery::{Value, names};
use serde_json::json;

use super::cells::{age_column, column, name_column, named};
use super::check::{
    At, Seen, immutable, label_key, label_selector, nonnegative, same, supported, supported_if_set,
};
use super::pods::volumes::csi_driver_name;
use super::row::Rows;
use super::{
    META_AND_SPEC, STATUS, checked, child, count_up, default_absent, default_to, keep, node_labels,
    volumes,
};
use crate::registry::{Column, Context, Strategy};

const GROUP: (&str, &str) = ("storage.k8s.io", "v1");
/// Characters that a node's name in a driver may have.
const MAX_NODE_ID: usize = 256;
const MAX_PARAMETERS: usize = 512;
const MAX_SIZE: usize = 256 << 10;
const MAX_MESSAGE: usize = 1024;
const IS_DEFAULT: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(GROUP, ("StorageClass", "storageclasses"), |row| {
        row.cluster().short(&["sc"]).strategy(Classes).columns(class_columns())
    });
    rows.add(GROUP, ("VolumeAttachment", "volumeattachments"), |row| {
        row.cluster()
            .strategy(Attachments)
            .part("status", AttachmentStatus, META_AND_SPEC)
            .columns(attachment_columns())
    });
    rows.add(GROUP, ("CSINode", "csinodes"), |row| {
        row.cluster().strategy(Nodes).columns(named([
            column("Drivers", "integer", "Number of drivers on the node.", |o, _| {
                object::list_at(o, &["spec", "drivers"]).len().into()
            }),
            age_column(),
        ]))
    });
    rows.add(GROUP, ("CSIDriver", "csidrivers"), |row| {
        row.cluster().strategy(Drivers).columns(driver_columns())
    });
    rows.add(GROUP, ("CSIStorageCapacity", "csistoragecapacities"), |row| {
        row.strategy(Capacities).columns(named([
            column("StorageClassName", "string", "Class that it is about.", |o, _| {
                object::str_at(o, &["storageClassName"]).into()
            }),
            column("Capacity", "string", "Room that there is.", |o, _| {
                o.get("capacity").filter(|c| !c.is_null()).cloned().unwrap_or("<unset>".into())
            }),
        ]))
    });
    rows.add(GROUP, ("VolumeAttributesClass", "volumeattributesclasses"), |row| {
        row.cluster().short(&["vac"]).strategy(AttributesClasses).columns(named([
            column("DriverName", "string", "Driver that the class is of.", |o, _| {
                object::str_at(o, &["driverName"]).into()
            }),
            age_column(),
        ]))
    });
}

struct Classes;

impl Strategy for Classes {
    fn default(&self, object: &mut Value) {
        default_absent(object, "reclaimPolicy", "Delete");
        default_absent(object, "volumeBindingMode", "Immediate");
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            provisioner(errors, &root.at("provisioner"));
            parameters(errors, &root.at("parameters"), true);
            let policy = root.at("reclaimPolicy");
            if !policy.is_empty() {
                supported(errors, &policy, &["Delete", "Retain"]);
            }
            let mode = root.at("volumeBindingMode");
            if mode.is_set() {
                supported(errors, &mode, &["Immediate", "WaitForFirstConsumer"]);
            } else {
                errors.push(mode.required(""));
            }
            topologies(errors, &root.at("allowedTopologies"));
        })
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate(context, object);
        let root = At::root(object);
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if !same(root.at(field).value(), old.get(field).unwrap_or(&Value::Null)) {
                errors.push(root.at(field).forbidden(format!("updates to {field} are forbidden.")));
            }
        }
        let was = old.get("volumeBindingMode").unwrap_or(&Value::Null);
        immutable(&mut errors, &root.at("volumeBindingMode"), was);
        errors
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        for term in At::root(object).at("allowedTopologies").items() {
            for (i, rule) in term.at("matchLabelExpressions").items().enumerate() {
                let path = term.path().child("matchLabelExpressions").index(i).child("key");
                if let Some(text) = node_labels::deprecated(rule.at("key").str()) {
                    warnings.push(format!("{path}: {text}"));
                }
            }
        }
        warnings
    }
}

fn provisioner(errors: &mut ErrorList, at: &At<'_>) {
    if at.is_empty() {
        errors.push(at.required(""));
        return;
    }
    let lower = at.str().to_lowercase();
    let messages = names::qualified_name(&lower);
    errors.extend(messages.into_iter().map(|m| at.invalid_as(lower.as_str(), m)));
}

fn size_of(map: &At<'_>) -> usize {
    map.entries().map(|(key, value)| key.len() + value.str().len()).sum()
}

fn parameters(errors: &mut ErrorList, at: &At<'_>, may_be_empty: bool) {
    if at.len() > MAX_PARAMETERS {
        errors.push(at.too_long(MAX_PARAMETERS));
        return;
    }
    if at.value().get("").is_some() {
        errors.push(at.invalid_as("", "field can not be empty."));
    }
    if size_of(at) > MAX_SIZE {
        errors.push(at.too_long(MAX_SIZE));
    }
    if !may_be_empty && at.is_empty() {
        errors.push(at.required("must contain at least one key/value pair"));
    }
}

/// Values that a term asks of each label.
type Term<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn topologies(errors: &mut ErrorList, at: &At<'_>) {
    let mut terms: Vec<Term<'_>> = Vec::new();
    for item in at.items() {
        let mut term = Term::new();
        for rule in item.at("matchLabelExpressions").items() {
            let values = rule.at("values");
            if values.is_empty() {
                errors.push(values.required(""));
            }
            let mut set = BTreeSet::new();
            for value in values.items() {
                if !set.insert(value.str()) {
                    errors.push(value.duplicate());
                }
            }
            let key = rule.at("key");
            label_key(errors, &key);
            if term.insert(key.str(), set).is_some() {
                errors.push(key.duplicate());
            }
        }
        if terms.contains(&term) {
            let path = item.path().child("matchLabelExpressions");
            errors.push(FieldError::duplicate(&path, ""));
        }
        terms.push(term);
    }
}

fn class_columns() -> Vec<Column> {
    let name = Column {
        cell: |o, _| {
            let default = IS_DEFAULT.iter().any(|a| object::annotation(o, a) == Some("true"));
            let name = object::name(o);
            if default { format!("{name} (default)").into() } else { name.into() }
        },
        ..name_column()
    };
    vec![
        name,
        column("Provisioner", "string", "What makes its volumes.", |o, _| {
            object::str_at(o, &["provisioner"]).into()
        }),
        column("ReclaimPolicy", "string", "What becomes of volumes without a claim.", |o, _| {
            o.get("reclaimPolicy").cloned().unwrap_or_else(|| "Delete".into())
        }),
        column("VolumeBindingMode", "string", "When claims get volumes.", |o, _| {
            o.get("volumeBindingMode").cloned().unwrap_or_else(|| "Immediate".into())
        }),
        column("AllowVolumeExpansion", "string", "Claims may grow.", |o, _| {
            object::bool_at(o, &["allowVolumeExpansion"]).into()
        }),
        age_column(),
    ]
}

struct Attachments;

impl Strategy for Attachments {
    fn default(&self, object: &mut Value) {
        default_attachment(object);
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["status"], json!({"attached": false}));
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["status"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            attachment(errors, root);
            let spec = root.at("spec");
            csi_driver_name(
                errors,
                &At::new(spec.at("attacher").value(), Path::new("spec.attacher")),
            );
            let volume = spec.down(&["source", "persistentVolumeName"]);
            if volume.is_set() {
                super::check::invalid_each(errors, &volume, names::dns1123_subdomain(volume.str()));
            }
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            attachment(errors, root);
            immutable(errors, &root.at("spec"), &old["spec"]);
        })
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn default_attachment(object: &mut Value) {
    if let Some(volume) = object.pointer_mut("/spec/source/inlineVolumeSpec")
        && volume.is_object()
    {
        volumes::default_sources(volume);
    }
}

fn attachment(errors: &mut ErrorList, root: &At<'_>) {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let spec = root.at("spec");
    if spec.at("attacher").is_empty() {
        errors.push(spec.at("attacher").required(""));
    }
    let source = spec.at("source");
    let (inline, volume) = (source.at("inlineVolumeSpec"), source.at("persistentVolumeName"));
    match (inline.is_set(), volume.is_set()) {
        (false, false) => errors.push(source.required(ONE)),
        (true, true) => errors.push(source.forbidden(ONE)),
        (false, true) if volume.is_empty() => {
            errors.push(volume.required("must specify non empty persistentVolumeName"));
        }
        (true, false) => volumes::inline_volume(errors, &inline),
        (false, true) => {}
    }
    let node = spec.at("nodeName");
    let messages = names::dns1123_subdomain(node.str());
    errors.extend(messages.into_iter().map(|m| node.invalid_as(node.str(), m)));
    let status = root.at("status");
    let metadata = status.at("attachmentMetadata");
    if size_of(&metadata) > MAX_SIZE {
        errors.push(metadata.too_long(MAX_SIZE));
    }
    for error in ["attachError", "detachError"].map(|f| status.at(f)) {
        if error.at("message").len() > MAX_MESSAGE {
            errors.push(error.at("message").too_long(MAX_SIZE));
        }
        let code = error.at("errorCode");
        if code.int() < 0 {
            errors.push(code.invalid(super::check::range_message(0, i64::from(i32::MAX))));
        }
    }
}

struct AttachmentStatus;

impl Strategy for AttachmentStatus {
    fn default(&self, object: &mut Value) {
        default_attachment(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        keep_metadata(object, old);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            attachment(errors, root);
            immutable(errors, &root.at("spec"), &old["spec"]);
        })
    }
}

/// Of metadata, a write of the status changes managers alone (`ResetObjectMetaForStatus`).
pub(super) fn keep_metadata(object: &mut Value, old: &Value) {
    for field in [
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "generation",
        "selfLink",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
    ] {
        keep(object, old, &["metadata", field]);
    }
}

fn attachment_columns() -> Vec<Column> {
    named([
        Column {
            format: "name",
            ..column("Attacher", "string", "Driver that attaches.", |o, _| {
                object::str_at(o, &["spec", "attacher"]).into()
            })
        },
        column("PV", "string", "The volume.", |o, _| {
            object::str_at(o, &["spec", "source", "persistentVolumeName"]).into()
        }),
        column("Node", "string", "The node.", |o, _| {
            object::str_at(o, &["spec", "nodeName"]).into()
        }),
        column("Attached", "boolean", "Whether it is attached.", |o, _| {
            object::bool_at(o, &["status", "attached"]).into()
        }),
        age_column(),
    ])
}

struct Nodes;

impl Strategy for Nodes {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let mut seen = Seen::default();
            for driver in root.down(&["spec", "drivers"]).items() {
                driver_on_node(errors, &driver, &mut seen);
            }
        })
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate(context, object);
        let at = At::root(object).down(&["spec", "drivers"]);
        let without_count = |driver: &Value| {
            let mut driver = driver.clone();
            object::remove(&mut driver, &["allocatable"]);
            driver
        };
        for new in at.items() {
            let name = new.at("name").str();
            let was = object::list_at(old, &["spec", "drivers"]).iter();
            for was in was.filter(|d| d["name"] == name) {
                let (new, was) = (without_count(new.value()), without_count(was));
                immutable(&mut errors, &at.of(&new), &was);
            }
        }
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn driver_on_node(errors: &mut ErrorList, driver: &At<'_>, seen: &mut Seen) {
    let (name, node) = (driver.at("name"), driver.at("nodeID"));
    csi_driver_name(errors, &name);
    if node.is_empty() {
        errors.push(node.required(""));
    }
    if node.len() > MAX_NODE_ID {
        errors.push(node.invalid(format!("must be {MAX_NODE_ID} characters or less")));
    }
    nonnegative(errors, &driver.down(&["allocatable", "count"]));
    if !seen.insert(name.str()) {
        errors.push(name.duplicate());
    }
    let mut keys = Seen::default();
    for key in driver.at("topologyKeys").strings() {
        if key.is_empty() {
            errors.push(driver.required(""));
        }
        if !keys.insert(key) {
            errors.push(FieldError::duplicate(driver.path(), key));
        }
        errors.extend(names::qualified_name(key).into_iter().map(|m| driver.invalid_as(key, m)));
    }
}

struct Drivers;

const TOKEN_WARNING: &str = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI \
     driver, set to true to prevent possible logging of tokens in volume attributes";

impl Strategy for Drivers {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        for (field, value) in [
            ("attachRequired", true),
            ("podInfoOnMount", false),
            ("storageCapacity", false),
            ("requiresRepublish", false),
            ("seLinuxMount", false),
        ] {
            default_absent(spec, field, value);
        }
        default_absent(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        default_to(spec, "volumeLifecycleModes", json!(["Persistent"]));
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        count_up(object, old, &["spec"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| driver(errors, &root.at("spec")))
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            driver(errors, &spec);
            // Upstream names the field so.
            let shown = spec.at("attachRequired").value();
            let attach = At::new(shown, spec.path().child("attachedRequired"));
            let was = |field: &str| object::get(old, &["spec", field]).unwrap_or(&Value::Null);
            immutable(errors, &attach, was("attachRequired"));
            immutable(errors, &spec.at("volumeLifecycleModes"), was("volumeLifecycleModes"));
        })
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let requests = |o: &Value| o["spec"]["tokenRequests"].clone();
        let told = object::get(object, &["spec", "serviceAccountTokenInSecrets"]);
        let new = object::list_at(object, &["spec", "tokenRequests"]);
        let changed = old.is_none_or(|old| !same(&requests(old), &requests(object)));
        if changed && !new.is_empty() && told.is_none_or(Value::is_null) {
            return vec![TOKEN_WARNING.to_owned()];
        }
        Vec::new()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn driver(errors: &mut ErrorList, spec: &At<'_>) {
    for (field, shown) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        if !spec.at(field).is_set() {
            errors.push(spec.at(shown).required(""));
        }
    }
    supported_if_set(
        errors,
        &spec.at("fsGroupPolicy"),
        &["File", "None", "ReadWriteOnceWithFSType"],
    );
    let requests = spec.at("tokenRequests");
    let mut audiences = Seen::default();
    for request in requests.items() {
        let (audience, seconds) = (request.at("audience"), request.at("expirationSeconds"));
        if !audiences.insert(audience.str()) {
            errors.push(FieldError::duplicate(audience.path(), audience.str()));
            continue;
        }
        if seconds.opt_int().is_some_and(|s| s < 600) {
            errors.push(seconds.invalid("may not specify a duration less than 10 minutes"));
        }
        if seconds.int() > 1 << 32 {
            errors.push(seconds.invalid("may not specify a duration larger than 2^32 seconds"));
        }
    }
    let modes = spec.at("volumeLifecycleModes");
    for mode in modes.strings().filter(|m| !matches!(*m, "Persistent" | "Ephemeral")) {
        errors.push(FieldError::not_supported(modes.path(), mode, &["Persistent", "Ephemeral"]));
    }
    if !spec.at("seLinuxMount").is_set() {
        errors.push(spec.at("seLinuxMount").required(""));
    }
    let period = spec.at("nodeAllocatableUpdatePeriodSeconds");
    if period.opt_int().is_some_and(|p| p < 10) {
        errors.push(period.invalid("must be greater than or equal to 10 seconds"));
    }
    let secrets = spec.at("serviceAccountTokenInSecrets");
    if secrets.is_set() && requests.is_empty() {
        errors.push(
            secrets
                .invalid("serviceAccountTokenInSecrets is set but no tokenRequests are specified"),
        );
    }
}

fn driver_columns() -> Vec<Column> {
    named([
        column("AttachRequired", "boolean", "Volumes must be attached.", |o, _| {
            object::get(o, &["spec", "attachRequired"]).cloned().unwrap_or(true.into())
        }),
        column("PodInfoOnMount", "boolean", "Mounts are told of the pod.", |o, _| {
            object::bool_at(o, &["spec", "podInfoOnMount"]).into()
        }),
        column("StorageCapacity", "boolean", "It tells what room there is.", |o, _| {
            object::bool_at(o, &["spec", "storageCapacity"]).into()
        }),
        column("TokenRequests", "string", "Audiences of tokens for mounts.", |o, _| {
            match object::get(o, &["spec", "tokenRequests"]).and_then(Value::as_array) {
                None => "<unset>".into(),
                Some(list) => {
                    let all: Vec<&str> =
                        list.iter().map(|t| object::str_at(t, &["audience"])).collect();
                    all.join(",").into()
                }
            }
        }),
        column("RequiresRepublish", "boolean", "Mounts are renewed.", |o, _| {
            object::bool_at(o, &["spec", "requiresRepublish"]).into()
        }),
        column("Modes", "string", "Kinds of volumes.", |o, _| {
            let modes = object::list_at(o, &["spec", "volumeLifecycleModes"]);
            let modes: Vec<&str> = modes.iter().filter_map(Value::as_str).collect();
            super::cells::or_none(&modes.join(","))
        }),
        age_column(),
    ])
}

struct Capacities;

impl Strategy for Capacities {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            label_selector(errors, &root.at("nodeTopology"));
            let class = root.at("storageClassName");
            let messages = names::dns1123_subdomain(class.str());
            errors.extend(messages.into_iter().map(|m| class.invalid_as(class.str(), m)));
            let capacity = root.at("capacity");
            if let Some(amount) = capacity.quantity().filter(|q| q.sign() < 0) {
                let text = "must be greater than or equal to 0";
                errors.push(capacity.invalid_as(amount.to_string(), text));
            }
        })
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate(context, object);
        for field in ["nodeTopology", "storageClassName"] {
            let was = old.get(field).unwrap_or(&Value::Null);
            immutable(&mut errors, &At::root(object).at(field), was);
        }
        errors
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        node_labels::selector(&mut warnings, &At::root(object).at("nodeTopology"));
        warnings
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

struct AttributesClasses;

impl Strategy for AttributesClasses {
    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            provisioner(errors, &root.at("driverName"));
            parameters(errors, &root.at("parameters"), false);
        })
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let root = At::root(object);
        let mut errors = ErrorList::new();
        for field in ["driverName", "parameters"] {
            if !same(root.at(field).value(), old.get(field).unwrap_or(&Value::Null)) {
                errors.push(root.at(field).forbidden(format!("updates to {field} are forbidden.")));
            }
        }
        errors.extend(self.validate(context, object));
        errors
    }
}
