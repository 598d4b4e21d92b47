//! Types: what the checker knows of a value before there is one.

use std::fmt;
use std::sync::Arc;

/// A record with declared fields.
pub trait Structure: Send + Sync + 'static {
    /// The name that errors and `type()` show.
    fn name(&self) -> &str;

    /// The type of a property, by its name in JSON.
    fn field(&self, property: &str) -> Option<Type>;
}

/// The type of an expression.
#[derive(Clone)]
pub enum Type {
    /// Something was wrong; goes with everything.
    Error,
    /// Known only when there is a value.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Object(Arc<dyn Structure>),
    /// A type of a library: `kubernetes.Quantity`; `optional_type` has a parameter.
    Opaque(&'static str, Arc<[Type]>),
    /// The type of a type.
    Type,
    /// To be found out; in declarations, the parameters of a function.
    Var(u32),
}

impl Type {
    pub fn list(of: Type) -> Self {
        Self::List(Arc::new(of))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Self::Map(Arc::new(key), Arc::new(value))
    }

    pub fn optional(of: Type) -> Self {
        Self::Opaque("optional_type", Arc::new([of]))
    }

    pub(super) fn opaque(name: &'static str) -> Self {
        Self::Opaque(name, Arc::new([]))
    }

    pub(super) fn is_dyn_or_error(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// The parameter of an optional type.
    pub(super) fn unwrapped(&self) -> (&Type, bool) {
        match self {
            Self::Opaque("optional_type", of) => (of.first().unwrap_or(&Type::Dyn), true),
            other => (other, false),
        }
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        use Type as T;
        match (self, other) {
            (T::List(a), T::List(b)) => a == b,
            (T::Map(a, b), T::Map(c, d)) => a == c && b == d,
            (T::Object(a), T::Object(b)) => a.name() == b.name(),
            (T::Opaque(a, p), T::Opaque(b, q)) => a == b && p == q,
            (T::Var(a), T::Var(b)) => a == b,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error => write!(f, "!error!"),
            Self::Dyn => write!(f, "dyn"),
            Self::Null => write!(f, "null"),
            Self::Bool => write!(f, "bool"),
            Self::Int => write!(f, "int"),
            Self::Uint => write!(f, "uint"),
            Self::Double => write!(f, "double"),
            Self::String => write!(f, "string"),
            Self::Bytes => write!(f, "bytes"),
            Self::Timestamp => write!(f, "timestamp"),
            Self::Duration => write!(f, "duration"),
            Self::List(of) => write!(f, "list({of})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Object(of) => write!(f, "{}", of.name()),
            Self::Opaque(name, of) if of.is_empty() => write!(f, "{name}"),
            Self::Opaque(name, of) => {
                let of: Vec<String> = of.iter().map(ToString::to_string).collect();
                write!(f, "{name}({})", of.join(", "))
            }
            Self::Type => write!(f, "type"),
            Self::Var(n) => write!(f, "_var{n}"),
        }
    }
}

/// What is known of type variables so far. Trials that fail are taken back.
#[derive(Default)]
pub(super) struct Unifier {
    bound: Vec<Option<Type>>,
}

impl Unifier {
    pub fn fresh(&mut self) -> Type {
        self.bound.push(None);
        Type::Var((self.bound.len() - 1) as u32)
    }

    fn bound(&self, var: u32) -> Option<&Type> {
        self.bound.get(var as usize).and_then(Option::as_ref)
    }

    fn bind(&mut self, var: u32, ty: Type) {
        if let Some(slot) = self.bound.get_mut(var as usize) {
            *slot = Some(ty);
        }
    }

    /// Whether values of one type may stand where the other is wanted; what follows for
    /// variables is remembered if they do.
    pub fn assignable(&mut self, pairs: &[(Type, Type)]) -> bool {
        let before = self.bound.clone();
        let fits = pairs.iter().all(|(a, b)| self.unify(a, b));
        if !fits {
            self.bound = before;
        }
        fits
    }

    fn unify(&mut self, a: &Type, b: &Type) -> bool {
        use Type as T;
        match (a, b) {
            (T::Var(x), T::Var(y)) if x == y => true,
            (other, T::Var(var)) | (T::Var(var), other) => self.unify_var(*var, other),
            (T::Dyn | T::Error, _) | (_, T::Dyn | T::Error) => true,
            (T::Null, other) | (other, T::Null) => {
                matches!(other, T::Null | T::Opaque(..) | T::Object(_) | T::Duration | T::Timestamp)
            }
            (T::List(a), T::List(b)) => self.unify(a, b),
            (T::Map(a, b), T::Map(c, d)) => self.unify(a, c) && self.unify(b, d),
            (T::Opaque(a, p), T::Opaque(b, q)) => {
                a == b
                    && p.len() == q.len()
                    && p.iter().zip(q.iter()).all(|(p, q)| self.unify(p, q))
            }
            (a, b) => a == b,
        }
    }

    fn unify_var(&mut self, var: u32, other: &Type) -> bool {
        match self.bound(var).cloned() {
            Some(bound) => {
                if !self.unify(&bound, other) {
                    return false;
                }
                // The more general of the two holds from now on.
                if matches!(other, Type::Dyn) && !self.occurs(var, other) {
                    self.bind(var, Type::Dyn);
                }
                true
            }
            None if matches!(other, Type::Var(o) if self.resolves_to(*o, var)) => true,
            None if self.occurs(var, other) => false,
            None => {
                self.bind(var, other.clone());
                true
            }
        }
    }

    fn resolves_to(&self, from: u32, var: u32) -> bool {
        let mut at = from;
        loop {
            if at == var {
                return true;
            }
            match self.bound(at) {
                Some(Type::Var(next)) if *next != at => at = *next,
                _ => return false,
            }
        }
    }

    fn occurs(&self, var: u32, within: &Type) -> bool {
        match within {
            Type::Var(v) => *v == var || self.bound(*v).is_some_and(|t| self.occurs(var, t)),
            Type::List(of) => self.occurs(var, of),
            Type::Map(key, value) => self.occurs(var, key) || self.occurs(var, value),
            Type::Opaque(_, of) => of.iter().any(|t| self.occurs(var, t)),
            _ => false,
        }
    }

    /// The type with what is known put in; what is not stays, or becomes `dyn`.
    pub fn resolve(&self, ty: &Type, open_is_dyn: bool) -> Type {
        match ty {
            Type::Var(var) => match self.bound(*var) {
                Some(bound) => self.resolve(bound, open_is_dyn),
                None if open_is_dyn => Type::Dyn,
                None => ty.clone(),
            },
            Type::List(of) => Type::list(self.resolve(of, open_is_dyn)),
            Type::Map(key, value) => {
                Type::map(self.resolve(key, open_is_dyn), self.resolve(value, open_is_dyn))
            }
            Type::Opaque(name, of) => {
                Type::Opaque(name, of.iter().map(|t| self.resolve(t, open_is_dyn)).collect())
            }
            other => other.clone(),
        }
    }

    /// A declared type with its parameters replaced by variables of its own.
    pub fn instantiate(&mut self, ty: &Type, params: &mut Vec<(u32, Type)>) -> Type {
        match ty {
            Type::Var(param) => match params.iter().find(|(p, _)| p == param) {
                Some((_, var)) => var.clone(),
                None => {
                    let var = self.fresh();
                    params.push((*param, var.clone()));
                    var
                }
            },
            Type::List(of) => Type::list(self.instantiate(of, params)),
            Type::Map(key, value) => {
                let key = self.instantiate(key, params);
                Type::map(key, self.instantiate(value, params))
            }
            Type::Opaque(name, of) => {
                let of: Vec<Type> = of.iter().map(|t| self.instantiate(t, params)).collect();
                Type::Opaque(name, of.into())
            }
            other => other.clone(),
        }
    }
}
