//! What expressions of policies and match conditions may name
//! (k8s.io/apiserver `admission/plugin/cel/compile.go`).

use std::sync::{Arc, LazyLock};

use crate::cel::{Env, Program, Structure, Type};

/// A record with a few fields.
struct Record {
    name: &'static str,
    fields: Vec<(String, Type)>,
}

impl Structure for Record {
    fn name(&self) -> &str {
        self.name
    }

    fn field(&self, property: &str) -> Option<Type> {
        self.fields.iter().find(|(name, _)| name == property).map(|(_, ty)| ty.clone())
    }
}

fn record(name: &'static str, fields: &[(&str, &Type)]) -> Type {
    let fields = fields.iter().map(|(name, ty)| ((*name).to_owned(), (*ty).clone())).collect();
    Type::Object(Arc::new(Record { name, fields }))
}

static REQUEST: LazyLock<Type> = LazyLock::new(|| {
    let text = &Type::String;
    let kind = &record(
        "kubernetes.GroupVersionKind",
        &[("group", text), ("version", text), ("kind", text)],
    );
    let resource = &record(
        "kubernetes.GroupVersionResource",
        &[("group", text), ("version", text), ("resource", text)],
    );
    let texts = Type::list(Type::String);
    let user = &record(
        "kubernetes.UserInfo",
        &[
            ("username", text),
            ("uid", text),
            ("groups", &texts),
            ("extra", &Type::map(Type::String, texts.clone())),
        ],
    );
    record(
        "kubernetes.AdmissionRequest",
        &[
            ("kind", kind),
            ("resource", resource),
            ("subResource", text),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", text),
            ("name", text),
            ("namespace", text),
            ("operation", text),
            ("userInfo", user),
            ("dryRun", &Type::Bool),
            ("options", &Type::Dyn),
        ],
    )
});

static NAMESPACE: LazyLock<Type> = LazyLock::new(|| {
    let (text, time) = (&Type::String, &Type::Timestamp);
    let texts = &Type::list(Type::String);
    let map = &Type::map(Type::String, Type::String);
    let metadata = &record(
        "kubernetes.NamespaceMetadata",
        &[
            ("name", text),
            ("generateName", text),
            ("namespace", text),
            ("labels", map),
            ("annotations", map),
            ("UID", text),
            ("creationTimestamp", time),
            ("deletionGracePeriodSeconds", &Type::Int),
            ("deletionTimestamp", time),
            ("generation", &Type::Int),
            ("resourceVersion", text),
            ("finalizers", texts),
        ],
    );
    let condition = record(
        "kubernetes.NamespaceCondition",
        &[
            ("status", text),
            ("type", text),
            ("lastTransitionTime", time),
            ("message", text),
            ("reason", text),
        ],
    );
    let conditions = &Type::list(condition);
    let status =
        &record("kubernetes.NamespaceStatus", &[("conditions", conditions), ("phase", text)]);
    let spec = &record("kubernetes.NamespaceSpec", &[("finalizers", texts)]);
    record("kubernetes.Namespace", &[("metadata", metadata), ("spec", spec), ("status", status)])
});

/// The type of `request`.
pub fn request_type() -> &'static Type {
    &REQUEST
}

/// The type of `namespaceObject`.
pub fn namespace_type() -> &'static Type {
    &NAMESPACE
}

/// What there is beside `object`, `oldObject`, `request` and `namespaceObject`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Declared {
    pub params: bool,
    pub authorizer: bool,
}

/// The variables of expressions, where objects have no declared type.
pub fn environment(declared: Declared) -> Env {
    typed_environment(declared, &Type::Dyn, &Type::Dyn)
}

/// The same with the type of the object and of the parameters.
pub fn typed_environment(declared: Declared, object: &Type, params: &Type) -> Env {
    let mut env = Env::new()
        .variable("object", object.clone())
        .variable("oldObject", object.clone())
        .variable("request", REQUEST.clone())
        .variable("namespaceObject", NAMESPACE.clone());
    if declared.params {
        env = env.variable("params", params.clone());
    }
    if declared.authorizer {
        env = env
            .variable("authorizer", Type::authorizer())
            .variable("authorizer.requestResource", Type::resource_check());
    }
    env
}

/// Compiles an expression, which must give one of some types.
///
/// # Errors
/// In upstream's words: `compilation failed: ...`, `must evaluate to bool`.
pub fn compile(source: &str, env: &Env, wanted: &[Type]) -> Result<Program, String> {
    let program = Program::compile(source, env).map_err(|e| format!("compilation failed: {e}"))?;
    let output = program.output();
    if wanted.is_empty() || wanted.contains(output) {
        return Ok(program);
    }
    Err(match wanted {
        [one] => format!("must evaluate to {one} but got {output}"),
        many => {
            let many: Vec<String> = many.iter().map(declared_name).collect();
            let output = declared_name(output);
            format!("must evaluate to one of [{}] but got {output}", many.join(" "))
        }
    })
}

/// Declared types show null by another name than errors do.
fn declared_name(ty: &Type) -> String {
    match ty {
        Type::Null => "null_type".to_owned(),
        other => other.to_string(),
    }
}

/// Compiles expressions that may name variables which were compiled before them.
pub struct Composition {
    base: Env,
    variables: Vec<(String, Type)>,
}

impl Composition {
    pub fn new(base: Env) -> Self {
        Self { base, variables: Vec::new() }
    }

    /// The environment as it is by now.
    pub fn env(&self, without_authorizer: Option<&Env>) -> Env {
        let base = without_authorizer.unwrap_or(&self.base).clone();
        let fields = self.variables.clone();
        let variables = Record { name: "kubernetes.variables", fields };
        base.variable("variables", Type::Object(Arc::new(variables)))
    }

    /// Compiles a variable; further expressions may name it.
    ///
    /// # Errors
    /// As [`compile`].
    pub fn add(&mut self, name: &str, source: &str) -> Result<Program, String> {
        match compile(source, &self.env(None), &[]) {
            Ok(program) => {
                self.variables.push((name.to_owned(), program.output().clone()));
                Ok(program)
            }
            Err(error) => {
                // What names it is not to blame.
                self.variables.push((name.to_owned(), Type::Dyn));
                Err(error)
            }
        }
    }
}
