//! Descriptions of types and fields, from the schemas that `k8s-openapi` makes of its types.

use k8s_openapi::api::admissionregistration::v1 as admissionregistration;
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::authorization::v1 as authorization;
use k8s_openapi::api::autoscaling::v1 as autoscaling;
use k8s_openapi::api::autoscaling::v2 as autoscaling_v2;
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::certificates::v1 as certificates;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::api::flowcontrol::v1 as flowcontrol;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::api::node::v1 as node;
use k8s_openapi::api::policy::v1 as policy;
use k8s_openapi::api::rbac::v1 as rbac;
use k8s_openapi::api::scheduling::v1 as scheduling;
use k8s_openapi::api::storage::v1 as storage;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::SchemaGenerator;
use serde_json::{Map, Value};

/// Definitions by OpenAPI name.
pub struct Descriptions {
    definitions: Map<String, Value>,
}

macro_rules! definitions {
    ($($ty:ty),* $(,)?) => {{
        let mut generator = SchemaGenerator::default();
        $(
            let _ = generator.subschema_for::<$ty>();
        )*
        generator.take_definitions(false)
    }};
}

impl Descriptions {
    /// Makes all of them: some milliseconds and megabytes, to be dropped after use. Types that are
    /// reached from one of these need not be named.
    pub fn load() -> Self {
        let definitions = definitions! {
            admissionregistration::MutatingWebhookConfiguration, admissionregistration::ValidatingAdmissionPolicy, admissionregistration::ValidatingAdmissionPolicyBinding, admissionregistration::ValidatingWebhookConfiguration, apps::ControllerRevision, apps::DaemonSet, apps::Deployment, apps::ReplicaSet, apps::StatefulSet, authentication::SelfSubjectReview, authentication::TokenRequest, authentication::TokenReview, authorization::LocalSubjectAccessReview, authorization::SelfSubjectAccessReview, authorization::SelfSubjectRulesReview, authorization::SubjectAccessReview, autoscaling::Scale, autoscaling_v2::HorizontalPodAutoscaler, batch::CronJob, batch::Job, certificates::CertificateSigningRequest, coordination::Lease, core::Binding, core::ConfigMap, core::Endpoints, core::Event, core::LimitRange, core::Namespace, core::Node, core::PersistentVolume, core::PersistentVolumeClaim, core::Pod, core::PodTemplate, core::ReplicationController, core::ResourceQuota, core::Secret, core::Service, core::ServiceAccount, discovery::EndpointSlice, events::Event, flowcontrol::FlowSchema, flowcontrol::PriorityLevelConfiguration, networking::IPAddress, networking::Ingress, networking::IngressClass, networking::NetworkPolicy, networking::ServiceCIDR, node::RuntimeClass, policy::Eviction, policy::PodDisruptionBudget, rbac::ClusterRole, rbac::ClusterRoleBinding, rbac::Role, rbac::RoleBinding, scheduling::PriorityClass, storage::CSIDriver, storage::CSINode, storage::StorageClass, storage::VolumeAttachment, meta::DeleteOptions, meta::Status,
        };
        Self { definitions }
    }

    /// What a type is.
    pub fn message(&self, name: &str) -> Option<&str> {
        self.definitions.get(name)?.get("description")?.as_str()
    }

    /// What a field is.
    pub fn field(&self, message: &str, field: &str) -> Option<&str> {
        let properties = self.definitions.get(message)?.get("properties")?;
        properties.get(field)?.get("description")?.as_str()
    }
}
