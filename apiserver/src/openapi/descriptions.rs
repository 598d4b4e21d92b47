//! What fields mean, in upstream's words: taken at run time from the types of `k8s_openapi`.

use std::collections::HashMap;

use apimachinery::Value;
use k8s_openapi::schemars::SchemaGenerator;
use k8s_openapi::schemars::generate::SchemaSettings;

/// Descriptions of one type and of its fields.
#[derive(Debug, Default)]
pub(super) struct Description {
    pub(super) text: String,
    pub(super) fields: HashMap<String, String>,
}

macro_rules! kinds {
    ($generator:ident, $($module:path { $($kind:ident)* })*) => {$({
        use $module as types;
        $($generator.subschema_for::<types::$kind>();)*
    })*};
}

/// All types that the kinds of the API lead to, by their OpenAPI name.
pub(super) fn all() -> HashMap<String, Description> {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    kinds! { generator,
        k8s_openapi::api::admissionregistration::v1 { MutatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration }
        k8s_openapi::api::admissionregistration::v1beta1 { MutatingAdmissionPolicy MutatingAdmissionPolicyBinding }
        k8s_openapi::api::apps::v1 { ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet }
        k8s_openapi::api::authentication::v1 { SelfSubjectReview TokenRequest TokenReview }
        k8s_openapi::api::authorization::v1 { LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview }
        k8s_openapi::api::autoscaling::v1 { HorizontalPodAutoscaler Scale }
        k8s_openapi::api::autoscaling::v2 { HorizontalPodAutoscaler }
        k8s_openapi::api::batch::v1 { CronJob Job }
        k8s_openapi::api::certificates::v1 { CertificateSigningRequest }
        k8s_openapi::api::certificates::v1beta1 { ClusterTrustBundle PodCertificateRequest }
        k8s_openapi::api::coordination::v1 { Lease }
        k8s_openapi::api::coordination::v1beta1 { LeaseCandidate }
        k8s_openapi::api::core::v1 { Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount }
        k8s_openapi::api::discovery::v1 { EndpointSlice }
        k8s_openapi::api::events::v1 { Event }
        k8s_openapi::api::flowcontrol::v1 { FlowSchema PriorityLevelConfiguration }
        k8s_openapi::api::networking::v1 { IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR }
        k8s_openapi::api::networking::v1beta1 { IPAddress ServiceCIDR }
        k8s_openapi::api::node::v1 { RuntimeClass }
        k8s_openapi::api::policy::v1 { Eviction PodDisruptionBudget }
        k8s_openapi::api::rbac::v1 { ClusterRole ClusterRoleBinding Role RoleBinding }
        k8s_openapi::api::resource::v1 { DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice }
        k8s_openapi::api::resource::v1beta1 { DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice }
        k8s_openapi::api::resource::v1beta2 { DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice }
        k8s_openapi::api::scheduling::v1 { PriorityClass }
        k8s_openapi::api::storage::v1 { CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass }
        k8s_openapi::api::storage::v1beta1 { VolumeAttributesClass }
        k8s_openapi::api::storagemigration::v1beta1 { StorageVersionMigration }
        k8s_openapi::apimachinery::pkg::apis::meta::v1 { DeleteOptions Status APIResourceList APIGroup }
    }
    generator
        .take_definitions(false)
        .into_iter()
        .map(|(name, schema)| (name, read(&schema)))
        .collect()
}

fn read(schema: &Value) -> Description {
    let text =
        |schema: &Value| schema.get("description").and_then(Value::as_str).unwrap_or("").to_owned();
    let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    Description {
        text: text(schema),
        fields: fields.map(|(name, schema)| (name.clone(), text(schema))).collect(),
    }
}
