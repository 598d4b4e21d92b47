//! JSON.

use smallvec::{SmallVec, smallvec};

use super::scalar;
use super::syntax::{self, Bad, Cursor, MAX_DEPTH, Quoted};
use super::time;
use super::{DecodeError, Decoded, FieldValidation, Schema};
use crate::schema::{MessageId, Registry, SchemaOr, Type};
use crate::{Map, Value};

/// At most this many unknown and duplicate fields are reported, as upstream limits them.
const MAX_REPORTED: usize = 100;

/// Decodes one JSON object to its canonical form.
pub fn decode(
    schema: Schema<'_>,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    let mut decoder = Decoder::new(schema.registry, bytes, validation);
    decoder.root = Some(schema.message);
    let result = decoder.document(schema.message);
    decoder.finish(result, validation)
}

/// Decodes one JSON value without a schema, as upstream decodes a custom resource; duplicate
/// fields are reported as validation asks.
pub fn decode_untyped(bytes: &[u8], validation: FieldValidation) -> Result<Decoded, DecodeError> {
    untyped(bytes, validation, Numbers::Go)
}

/// Any JSON value, for the fields that hold one as it is.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, String> {
    match untyped(bytes, FieldValidation::Ignore, Numbers::AsTheyAre) {
        Ok(decoded) => Ok(decoded.object),
        Err(e) => Err(e.to_string()),
    }
}

fn untyped(
    bytes: &[u8],
    validation: FieldValidation,
    numbers: Numbers,
) -> Result<Decoded, DecodeError> {
    let mut decoder = Decoder::new(Registry::builtin(), bytes, validation);
    decoder.numbers = numbers;
    let report = decoder.report;
    let result = decoder.any(report).and_then(|value| decoder.end().map(|()| value));
    decoder.finish(result, validation)
}

/// What numbers without a type become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    /// What they say.
    AsTheyAre,
    /// As Go decodes and writes them: `int64`, or else `float64`, of which those without a fraction
    /// are written as integers.
    Go,
}

/// Why decoding ends before the end.
enum Stop {
    /// Not JSON; the checker says why.
    Syntax,
    /// What one of Go's own `UnmarshalJSON` returns: it goes before any error of a type.
    Fatal(String),
}

impl From<Bad> for Stop {
    fn from(_: Bad) -> Self {
        Self::Syntax
    }
}

type Step<T> = Result<T, Stop>;

/// Where in the object the decoder is.
#[derive(Clone, Copy)]
enum At<'a> {
    /// Slot of a message.
    Field(MessageId, u16),
    Key(Quoted<'a>),
    Index(usize),
}

struct Decoder<'a> {
    registry: &'a Registry,
    cursor: Cursor<'a>,
    root: Option<MessageId>,
    numbers: Numbers,
    /// Unknown and duplicate fields are wanted.
    report: bool,
    reports: Vec<String>,
    /// The first value of a wrong type. Go decodes on, and so do we: a later error may outrank it.
    mismatch: Option<String>,
    /// `apiVersion` or `kind` is no string: upstream finds that before anything else.
    bad_kind: Option<String>,
    path: Vec<At<'a>>,
    /// Length of the path at the outermost type that unmarshals itself: errors below name the
    /// struct that holds it.
    unmarshaler: Option<usize>,
    depth: usize,
}

impl<'a> Decoder<'a> {
    fn new(registry: &'a Registry, bytes: &'a [u8], validation: FieldValidation) -> Self {
        Self {
            registry,
            cursor: Cursor::new(bytes),
            root: None,
            numbers: Numbers::AsTheyAre,
            report: validation != FieldValidation::Ignore,
            reports: Vec::new(),
            mismatch: None,
            bad_kind: None,
            path: Vec::new(),
            unmarshaler: None,
            depth: 0,
        }
    }

    fn finish(
        self,
        result: Step<Value>,
        validation: FieldValidation,
    ) -> Result<Decoded, DecodeError> {
        let malformed = |text: String| Err(DecodeError::Malformed(text));
        let unread = |e: String| {
            Err(DecodeError::Unread(format!("couldn't get version/kind; json parse error: {e}")))
        };
        if result.is_err() || self.mismatch.is_some() {
            // Go looks at the whole text first.
            if let Err(e) = syntax::check(self.cursor.bytes) {
                return unread(e);
            }
            if let Some(e) = self.bad_kind {
                return unread(e);
            }
        }
        match (result, self.mismatch) {
            (Err(Stop::Fatal(e)), _) | (Ok(_), Some(e)) => malformed(e),
            (Err(Stop::Syntax), _) => unread("invalid JSON".into()),
            (Ok(_), None) if validation == FieldValidation::Strict && !self.reports.is_empty() => {
                Err(DecodeError::Strict(self.reports))
            }
            (Ok(object), None) => Ok(Decoded { object, warnings: self.reports }),
        }
    }

    fn document(&mut self, id: MessageId) -> Step<Value> {
        match self.cursor.peek() {
            b'{' => {}
            b'n' => self.cursor.word(b"null")?,
            _ => {
                let what = self.skip_naming()?;
                let e = format!(
                    "json: cannot unmarshal {what} into Go value of type struct {{ APIVersion \
                     string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \
                     \"json:\\\"kind,omitempty\\\"\" }}"
                );
                self.bad_kind = Some(e.clone());
                self.mismatch = Some(e);
            }
        }
        let object = match self.cursor.peek() {
            b'{' => self.message(id, None)?,
            _ => None,
        };
        self.end()?;
        Ok(object.unwrap_or_else(|| scalar::zero(self.registry, &Type::Message(id), false)))
    }

    fn end(&mut self) -> Step<()> {
        self.cursor.peek();
        if self.cursor.pos < self.cursor.bytes.len() { Err(Stop::Syntax) } else { Ok(()) }
    }

    /// Decodes a value of a type. `prior` is what an earlier field of the same name left.
    /// `None` is Go's zero value.
    fn value(&mut self, ty: &'a Type, pointer: bool, prior: Option<Value>) -> Step<Option<Value>> {
        let first = self.cursor.peek();
        if first == b'n' {
            self.cursor.word(b"null")?;
            return self.null(ty, pointer, prior);
        }
        match ty {
            Type::Message(id) => self.message(*id, prior),
            Type::List(elem) => self.list(elem, prior),
            Type::Map(elem) => self.map(elem, prior),
            Type::SchemaOr(or, id) => self.schema_or(*or, *id),
            ty => self.leaf(ty, first),
        }
    }

    /// A value that holds no others of a type, apart from [`value`](Self::value) so that nesting
    /// takes little of the stack.
    fn leaf(&mut self, ty: &'a Type, first: u8) -> Step<Option<Value>> {
        match ty {
            Type::String => match first {
                b'"' => Ok(Some(self.cursor.string()?.text().into_owned().into())),
                _ => self.mismatched(),
            },
            Type::Bool => match first {
                b't' | b'f' => Ok(Some(self.bool()?.into())),
                _ => self.mismatched(),
            },
            Type::Int32 | Type::Int64 => self.int(ty),
            Type::Double => self.double(),
            Type::Bytes => self.bytes(),
            Type::Quantity => self.quantity(),
            Type::Time | Type::MicroTime => self.time(*ty == Type::MicroTime),
            Type::Duration => self.duration(),
            Type::IntOrString => self.int_or_string(),
            Type::FieldsV1 | Type::RawExtension | Type::Json => self.any(false).map(Some),
            // Those that hold others are not for here.
            Type::Message(_) | Type::List(_) | Type::Map(_) | Type::SchemaOr(..) => {
                self.mismatched()
            }
        }
    }

    /// `null` unsets what can be nil and leaves other values as they are.
    fn null(&self, ty: &Type, pointer: bool, prior: Option<Value>) -> Step<Option<Value>> {
        match ty {
            _ if pointer => Ok(None),
            Type::List(_) | Type::Map(_) | Type::Bytes => Ok(None),
            Type::Time | Type::MicroTime | Type::Quantity => Ok(None),
            Type::Duration => Err(Stop::Fatal("time: invalid duration \"\"".into())),
            Type::SchemaOr(SchemaOr::Bool, _) => {
                Err(Stop::Fatal("boolean or JSON schema expected".into()))
            }
            _ => Ok(prior),
        }
    }

    fn deeper<T>(&mut self, inside: impl FnOnce(&mut Self) -> Step<T>) -> Step<T> {
        if self.depth >= MAX_DEPTH {
            return Err(Stop::Syntax);
        }
        self.depth += 1;
        let result = inside(self);
        self.depth -= 1;
        result
    }

    fn message(&mut self, id: MessageId, prior: Option<Value>) -> Step<Option<Value>> {
        if self.cursor.peek() != b'{' {
            return self.mismatched();
        }
        let (mut map, merging) = match prior {
            Some(Value::Object(map)) => (map, true),
            _ => (Map::new(), false),
        };
        self.deeper(|d| d.members(id, &mut map, merging))?;
        scalar::fill(self.registry, id, &mut map);
        Ok(Some(Value::Object(map)))
    }

    fn members(&mut self, id: MessageId, map: &mut Map, merging: bool) -> Step<()> {
        let registry = self.registry;
        let shape = registry.shape(id);
        let mut seen: SmallVec<[u64; 2]> = smallvec![0; shape.slots.len().div_ceil(64)];
        let mut more = self.cursor.open(b'}');
        while more {
            let key = self.cursor.string()?;
            let name = key.text();
            let found = shape.find(registry, &name);
            if found.is_none() && self.report {
                self.report("unknown", &name);
            }
            self.cursor.expect(b':')?;
            let Some(i) = found else {
                self.cursor.skip(self.depth)?;
                more = self.cursor.more(b'}')?;
                continue;
            };
            let (word, bit) = (i / 64, 1 << (i % 64));
            let again = seen[word] & bit != 0;
            if again && self.report {
                self.report("duplicate", &name);
            }
            seen[word] |= bit;
            let field = shape.slots[i].field(registry);
            let prior = if again || merging { map.remove(&field.json) } else { None };
            self.path.push(At::Field(id, i as u16));
            let value = self.value(&field.ty, field.pointer, prior)?;
            self.path.pop();
            if let Some(value) = value
                && (field.empty_counts || scalar::shown(field, &value))
            {
                map.insert(field.json.clone(), value);
            }
            more = self.cursor.more(b'}')?;
        }
        Ok(())
    }

    fn list(&mut self, elem: &'a Type, prior: Option<Value>) -> Step<Option<Value>> {
        if self.cursor.peek() != b'[' {
            return self.mismatched();
        }
        let mut items = Vec::new();
        // Go decodes into the elements that a former field of this name left.
        let mut former = match prior {
            Some(Value::Array(items)) => items.into_iter(),
            _ => Vec::new().into_iter(),
        };
        self.deeper(|d| {
            let mut more = d.cursor.open(b']');
            while more {
                d.path.push(At::Index(items.len()));
                let item = d.value(elem, false, former.next())?;
                d.path.pop();
                items.push(item.unwrap_or_else(|| scalar::zero(d.registry, elem, false)));
                more = d.cursor.more(b']')?;
            }
            Ok(())
        })?;
        Ok(Some(Value::Array(items)))
    }

    fn map(&mut self, elem: &'a Type, prior: Option<Value>) -> Step<Option<Value>> {
        if self.cursor.peek() != b'{' {
            return self.mismatched();
        }
        // Keys of a former field of this name stay, and are no duplicates.
        let mut map = Map::new();
        self.deeper(|d| {
            let mut more = d.cursor.open(b'}');
            while more {
                let key = d.cursor.string()?;
                let name = key.text();
                if d.report && map.contains_key(&*name) {
                    d.report("duplicate", &name);
                }
                d.cursor.expect(b':')?;
                d.path.push(At::Key(key));
                let value = d.value(elem, false, None)?;
                d.path.pop();
                let value = value.unwrap_or_else(|| scalar::zero(d.registry, elem, false));
                map.insert(name.into_owned(), value);
                more = d.cursor.more(b'}')?;
            }
            Ok(())
        })?;
        if let Some(Value::Object(mut merged)) = prior {
            merged.extend(map);
            map = merged;
        }
        Ok(Some(Value::Object(map)))
    }

    fn bool(&mut self) -> Step<bool> {
        if self.cursor.peek() == b't' {
            self.cursor.word(b"true")?;
            return Ok(true);
        }
        self.cursor.word(b"false")?;
        Ok(false)
    }

    fn int(&mut self, ty: &Type) -> Step<Option<Value>> {
        if !matches!(self.cursor.peek(), b'-' | b'0'..=b'9') {
            return self.mismatched();
        }
        let text = self.cursor.number()?;
        match parse_int(text, *ty == Type::Int32) {
            Some(n) => Ok(Some(n.into())),
            None => {
                self.mismatch(&format!("number {text}"));
                Ok(None)
            }
        }
    }

    fn double(&mut self) -> Step<Option<Value>> {
        if !matches!(self.cursor.peek(), b'-' | b'0'..=b'9') {
            return self.mismatched();
        }
        let text = self.cursor.number()?;
        match text.parse::<f64>() {
            Ok(x) if x.is_finite() => Ok(Some(scalar::double(x))),
            _ => {
                self.mismatch(&format!("number {text}"));
                Ok(None)
            }
        }
    }

    fn bytes(&mut self) -> Step<Option<Value>> {
        if self.cursor.peek() != b'"' {
            return self.mismatched();
        }
        let text = self.cursor.string()?.text();
        match scalar::base64_decode(&text) {
            Ok(bytes) => Ok(Some(scalar::base64_encode(&bytes).into())),
            Err(e) => {
                self.mismatch.get_or_insert(e);
                Ok(None)
            }
        }
    }

    fn quantity(&mut self) -> Step<Option<Value>> {
        let depth = self.depth;
        // Go looks at the bytes between the quotes, escapes and all.
        let raw = match self.cursor.peek() {
            b'"' => self.cursor.string()?.raw(),
            _ => self.cursor.skip(depth)?,
        };
        let text = String::from_utf8_lossy(raw);
        scalar::quantity(&text).map(|q| Some(q.into())).map_err(Stop::Fatal)
    }

    /// A string for one of the types that unmarshal themselves from one.
    fn own_string(&mut self, go: &str) -> Step<std::borrow::Cow<'a, str>> {
        if self.cursor.peek() == b'"' {
            return Ok(self.cursor.string()?.text());
        }
        let what = self.skip_naming()?;
        Err(Stop::Fatal(self.worded(what, go)))
    }

    fn time(&mut self, micros: bool) -> Step<Option<Value>> {
        let text = self.own_string("string")?;
        let t = time::parse(&text, micros).map_err(Stop::Fatal)?;
        Ok((!t.is_zero()).then(|| time::format(t, micros).into()))
    }

    fn duration(&mut self) -> Step<Option<Value>> {
        let text = self.own_string("string")?;
        let nanos = time::parse_duration(&text).map_err(Stop::Fatal)?;
        Ok(Some(time::format_duration(nanos).into()))
    }

    fn int_or_string(&mut self) -> Step<Option<Value>> {
        match self.cursor.peek() {
            b'"' => Ok(Some(self.cursor.string()?.text().into_owned().into())),
            b'-' | b'0'..=b'9' => {
                let text = self.cursor.number()?;
                match parse_int(text, true) {
                    Some(n) => Ok(Some(n.into())),
                    None => Err(Stop::Fatal(self.worded(&format!("number {text}"), "int32"))),
                }
            }
            _ => {
                let what = self.skip_naming()?;
                Err(Stop::Fatal(self.worded(what, "int32")))
            }
        }
    }

    fn schema_or(&mut self, or: SchemaOr, id: MessageId) -> Step<Option<Value>> {
        match (self.cursor.peek(), or) {
            (b'{', _) => self.unmarshaling(|d| d.message(id, None)),
            (b'[', SchemaOr::Array) => self.unmarshaling(|d| {
                let registry = d.registry;
                d.list(&registry.shape(id).ty, None)
            }),
            (b'[', SchemaOr::Strings) => self.unmarshaling(|d| d.list(&Type::String, None)),
            (b't' | b'f', SchemaOr::Bool) => Ok(Some(self.bool()?.into())),
            (_, SchemaOr::Bool) => {
                self.cursor.skip(self.depth)?;
                Err(Stop::Fatal("boolean or JSON schema expected".into()))
            }
            // Upstream ignores what is neither.
            _ => {
                self.cursor.skip(self.depth)?;
                Ok(None)
            }
        }
        .map(|v| v.filter(|v| v.as_array().is_none_or(|list| !list.is_empty())))
        .map(|v| v.or(Some(Value::Null)))
    }

    /// Decodes what Go hands to a decoder of its own, which reports no fields and whose errors
    /// end the decoding.
    fn unmarshaling<T>(&mut self, inside: impl FnOnce(&mut Self) -> Step<T>) -> Step<T> {
        let report = std::mem::replace(&mut self.report, false);
        let before = self.mismatch.take();
        let outermost = self.unmarshaler.is_none();
        if outermost {
            self.unmarshaler = Some(self.path.len());
        }
        let result = inside(self);
        if outermost {
            self.unmarshaler = None;
        }
        self.report = report;
        match std::mem::replace(&mut self.mismatch, before) {
            Some(e) => result.and(Err(Stop::Fatal(e))),
            None => result,
        }
    }

    /// Any JSON, reporting duplicate fields if asked to.
    fn any(&mut self, report: bool) -> Step<Value> {
        match self.cursor.peek() {
            b'"' => Ok(self.cursor.string()?.text().into_owned().into()),
            b't' | b'f' => Ok(self.bool()?.into()),
            b'n' => {
                self.cursor.word(b"null")?;
                Ok(Value::Null)
            }
            b'-' | b'0'..=b'9' => {
                let text = self.cursor.number()?;
                any_number(text, self.numbers)
                    .ok_or_else(|| Stop::Fatal(self.worded(&format!("number {text}"), "float64")))
            }
            b'[' => self.deeper(|d| {
                let mut items = Vec::new();
                let mut more = d.cursor.open(b']');
                while more {
                    d.path.push(At::Index(items.len()));
                    items.push(d.any(report)?);
                    d.path.pop();
                    more = d.cursor.more(b']')?;
                }
                Ok(Value::Array(items))
            }),
            b'{' => self.deeper(|d| {
                let mut map = Map::new();
                let mut more = d.cursor.open(b'}');
                while more {
                    let key = d.cursor.string()?;
                    let name = key.text();
                    if report && map.contains_key(&*name) {
                        d.report("duplicate", &name);
                    }
                    d.cursor.expect(b':')?;
                    d.path.push(At::Key(key));
                    let value = d.any(report)?;
                    d.path.pop();
                    map.insert(name.into_owned(), value);
                    more = d.cursor.more(b'}')?;
                }
                Ok(Value::Object(map))
            }),
            _ => Err(Stop::Syntax),
        }
    }

    /// Skips a value of a wrong type, remembering the error.
    fn mismatched(&mut self) -> Step<Option<Value>> {
        let what = self.skip_naming()?;
        self.mismatch(what);
        Ok(None)
    }

    fn skip_naming(&mut self) -> Step<&'static str> {
        let what = match self.cursor.peek() {
            b'{' => "object",
            b'[' => "array",
            b'"' => "string",
            b't' | b'f' => "bool",
            b'n' => "null",
            _ => "number",
        };
        self.cursor.skip(self.depth)?;
        Ok(what)
    }

    fn mismatch(&mut self, what: &str) {
        if let [At::Field(id, slot)] = self.path[..] {
            let field = self.registry.shape(id).slots[slot as usize].field(self.registry);
            if field.number == 0 && (field.json == "kind" || field.json == "apiVersion") {
                self.bad_kind.get_or_insert_with(|| {
                    let name = &field.json;
                    format!(
                        "json: cannot unmarshal {what} into Go struct field .{name} of type string"
                    )
                });
            }
        }
        if self.mismatch.is_none() {
            let go = self.go_type();
            self.mismatch = Some(self.worded(what, &go));
        }
    }

    /// Go's `UnmarshalTypeError` at the present path.
    fn worded(&self, what: &str, go: &str) -> String {
        let within = self.unmarshaler.unwrap_or(self.path.len());
        let holder = self.path[..within].iter().rev().find_map(|at| match at {
            At::Field(id, _) => Some(self.registry.message(*id).short_name()),
            _ => None,
        });
        let Some(holder) = holder else {
            return format!("json: cannot unmarshal {what} into Go value of type {go}");
        };
        let mut names: Vec<&str> = Vec::new();
        for at in &self.path {
            if let At::Field(id, slot) = at {
                let slot = &self.registry.shape(*id).slots[*slot as usize];
                // Go names the embedded structs on the way.
                names.extend(slot.through.iter().map(|m| self.registry.message(*m).short_name()));
                names.push(&slot.field(self.registry).json);
            }
        }
        let names = names.join(".");
        format!("json: cannot unmarshal {what} into Go struct field {holder}.{names} of type {go}")
    }

    /// Go's name of the type expected at the present path.
    fn go_type(&self) -> String {
        let field = self.path.iter().rposition(|at| matches!(at, At::Field(..)));
        let (mut text, depth) = match field.map(|i| (self.path[i], self.path.len() - 1 - i)) {
            Some((At::Field(id, slot), depth)) => {
                let field = self.registry.shape(id).slots[slot as usize].field(self.registry);
                let text = match &field.go {
                    Some(go) => go.to_string(),
                    None => go_name(self.registry, &field.ty),
                };
                (text, depth)
            }
            _ => match self.root {
                Some(id) => (go_name(self.registry, &Type::Message(id)), 0),
                None => ("interface {}".into(), 0),
            },
        };
        for _ in 0..depth {
            let list = text.split_once('=').filter(|(name, _)| !name.contains('['));
            let plain = list.map_or(text.as_str(), |(_, under)| under);
            let elem = plain.find(']').map_or("", |end| &plain[end + 1..]);
            text = elem.to_owned();
        }
        match text.split_once('=') {
            Some((name, _)) => name.to_owned(),
            None => text,
        }
    }

    fn report(&mut self, what: &str, name: &str) {
        if self.reports.len() >= MAX_REPORTED {
            return;
        }
        let mut path = String::new();
        let dot = |path: &mut String| {
            if !path.is_empty() {
                path.push('.');
            }
        };
        for at in &self.path {
            match at {
                At::Field(id, slot) => {
                    dot(&mut path);
                    let slot = &self.registry.shape(*id).slots[*slot as usize];
                    path.push_str(&slot.field(self.registry).json);
                }
                At::Key(key) => {
                    dot(&mut path);
                    path.push_str(&key.text());
                }
                At::Index(i) => path.push_str(&format!("[{i}]")),
            }
        }
        dot(&mut path);
        path.push_str(name);
        let report = format!("{what} field {}", super::quote(&path));
        if !self.reports.contains(&report) {
            self.reports.push(report);
        }
    }
}

fn parse_int(text: &str, narrow: bool) -> Option<i64> {
    let n: i64 = text.parse().ok()?;
    if narrow { i32::try_from(n).ok().map(i64::from) } else { Some(n) }
}

fn any_number(text: &str, numbers: Numbers) -> Option<Value> {
    /// Up to here all integers are floats, and no two of them the same.
    const EXACT: f64 = 9_007_199_254_740_991.0;
    if let Ok(n) = text.parse::<i64>() {
        return Some(n.into());
    }
    if numbers == Numbers::AsTheyAre
        && let Ok(n) = text.parse::<u64>()
    {
        return Some(n.into());
    }
    let x: f64 = text.parse().ok()?;
    let is_integer = x.fract() == 0.0 && x.abs() <= EXACT && !(x == 0.0 && x.is_sign_negative());
    if numbers == Numbers::Go && is_integer {
        return Some((x as i64).into());
    }
    serde_json::Number::from_f64(x).map(Value::Number)
}

/// How Go prints a type, where the schema does not say otherwise.
fn go_name(registry: &Registry, ty: &Type) -> String {
    match ty {
        Type::Bool => "bool".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Double => "float64".into(),
        Type::String => "string".into(),
        Type::Bytes => "[]uint8".into(),
        Type::Message(id) => registry.message(*id).go_name().to_owned(),
        Type::List(elem) => format!("[]{}", go_name(registry, elem)),
        Type::Map(elem) => format!("map[string]{}", go_name(registry, elem)),
        Type::Quantity => "resource.Quantity".into(),
        Type::IntOrString => "intstr.IntOrString".into(),
        Type::Time => "v1.Time".into(),
        Type::MicroTime => "v1.MicroTime".into(),
        Type::Duration => "v1.Duration".into(),
        Type::FieldsV1 => "v1.FieldsV1".into(),
        Type::RawExtension => "runtime.RawExtension".into(),
        Type::Json => "v1.JSON".into(),
        Type::SchemaOr(SchemaOr::Bool, _) => "v1.JSONSchemaPropsOrBool".into(),
        Type::SchemaOr(SchemaOr::Array, _) => "v1.JSONSchemaPropsOrArray".into(),
        Type::SchemaOr(SchemaOr::Strings, _) => "v1.JSONSchemaPropsOrStringArray".into(),
    }
}

#[cfg(test)]
mod tests;
