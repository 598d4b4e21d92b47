//! Reading the data file that `hack/schema` writes.
//!
//! One fact a line: `v group/version`, under it `k Kind message`; `e Kind message` for a kind of
//! every group version; `m message [a]`, under it its fields, `name number type flags options`.

use std::collections::{HashMap, HashSet};

use super::{Field, ListType, Message, MessageId, Registry, SchemaOr, Type};
use crate::gvk::GroupVersionKind;

const HEADER: &str = "# coxswain schema format 1: ";
const JSON_SCHEMA: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Builds a registry from the text of a data file.
pub(super) fn parse(text: &str) -> Result<Registry, String> {
    if !text.starts_with(HEADER) {
        return Err("not a schema file of format 1".into());
    }
    let lines = || {
        text.lines()
            .enumerate()
            .skip(1)
            .map(|(i, line)| (i + 1, line))
            .filter(|(_, l)| !l.is_empty())
    };
    let mut registry = Registry::default();
    for (_, line) in lines() {
        if let Some(rest) = line.strip_prefix("m ") {
            let (name, flags) = rest.split_once(' ').unwrap_or((rest, ""));
            let id = MessageId(registry.messages.len() as u32);
            registry.by_name.insert(name.to_owned(), id);
            registry.messages.push(Message {
                name: name.to_owned(),
                fields: Vec::new(),
                atomic: flags.contains('a'),
                open: false,
            });
        }
    }
    let mut loader = Loader { registry, versions: Vec::new(), every: Vec::new(), message: None };
    for (number, line) in lines() {
        loader.line(line).map_err(|e| format!("line {number}: {e}"))?;
    }
    loader.finish()
}

struct Loader<'a> {
    registry: Registry,
    versions: Vec<&'a str>,
    every: Vec<(&'a str, MessageId)>,
    message: Option<MessageId>,
}

impl<'a> Loader<'a> {
    fn line(&mut self, line: &'a str) -> Result<(), String> {
        let (first, rest) = line.split_once(' ').ok_or("one word")?;
        match first {
            "v" => self.versions.push(rest),
            "k" | "e" => {
                let (kind, name) = rest.split_once(' ').ok_or("no message")?;
                let id = self.named(name)?;
                if first == "e" {
                    self.every.push((kind, id));
                } else {
                    let version = self.versions.last().ok_or("kind without version")?;
                    self.kind(version, kind, id);
                }
            }
            "m" => {
                let name = rest.split(' ').next().unwrap_or(rest);
                self.message = Some(self.named(name)?);
            }
            name => {
                let id = self.message.ok_or("field without message")?;
                let field = self.field(name, rest, id)?;
                self.registry.messages[id.0 as usize].fields.push(field);
            }
        }
        Ok(())
    }

    fn named(&self, name: &str) -> Result<MessageId, String> {
        self.registry.by_name(name).ok_or_else(|| format!("no message {name}"))
    }

    fn kind(&mut self, version: &str, kind: &str, id: MessageId) {
        let gvk = GroupVersionKind::from_api_version(version, kind);
        self.registry.kinds.insert(gvk, id);
    }

    fn field(&self, name: &str, rest: &str, parent: MessageId) -> Result<Field, String> {
        // A default is JSON and may hold spaces, so it stands last.
        let (rest, default) = match rest.split_once(" default=") {
            Some((rest, default)) => {
                (rest, Some(serde_json::from_str(default).map_err(|e| e.to_string())?))
            }
            None => (rest, None),
        };
        let mut words = rest.split(' ');
        let mut word = || words.next().ok_or("too few words");
        let number = word()?.parse().map_err(|e| format!("field number: {e}"))?;
        let ty = self.ty(word()?, parent)?;
        let flags = word()?;
        let mut field = Field {
            json: name.to_owned(),
            number,
            ty,
            pointer: flags.contains('p'),
            empty_counts: flags.contains('e'),
            omitempty: flags.contains('o'),
            inline: flags.contains('n'),
            required: flags.contains('r'),
            list: ListType::Atomic,
            atomic: flags.contains('a'),
            merge_key: None,
            patch_strategy: Vec::new(),
            default,
            wrapped: flags.contains('w'),
            shows: None,
            go: None,
            values: Box::default(),
        };
        for option in words {
            match option.split_once('=').ok_or("option without value")? {
                ("list", "set") => field.list = ListType::Set,
                ("list", keys) => {
                    let keys = keys.strip_prefix("map:").ok_or("unknown list type")?;
                    field.list = ListType::Map(keys.split(',').map(str::to_owned).collect());
                }
                ("key", key) => field.merge_key = Some(key.to_owned()),
                ("patch", all) => {
                    field.patch_strategy = all.split(',').map(str::to_owned).collect();
                }
                ("shows", type_meta) => {
                    let (version, kind) = type_meta.rsplit_once('/').ok_or("no version")?;
                    field.shows = Some((version.into(), kind.into()));
                }
                // Words hold no spaces.
                ("go", name) => field.go = Some(name.replace("interface{}", "interface {}").into()),
                ("enum", values) => {
                    let values = values.split(',').map(|value| value.replace("%20", " ").into());
                    field.values = values.collect();
                }
                (other, _) => return Err(format!("unknown option {other}")),
            }
        }
        Ok(field)
    }

    fn ty(&self, text: &str, parent: MessageId) -> Result<Type, String> {
        if let Some(elem) = text.strip_prefix("[]") {
            return Ok(Type::List(Box::new(self.ty(elem, parent)?)));
        }
        if let Some(elem) = text.strip_prefix("{}") {
            return Ok(Type::Map(Box::new(self.ty(elem, parent)?)));
        }
        let schema_or = |or| Ok(Type::SchemaOr(or, self.named(JSON_SCHEMA)?));
        Ok(match text {
            "b" => Type::Bool,
            "i" => Type::Int32,
            "l" => Type::Int64,
            "d" => Type::Double,
            "s" => Type::String,
            "y" => Type::Bytes,
            "Q" => Type::Quantity,
            "I" => Type::IntOrString,
            "T" => Type::Time,
            "U" => Type::MicroTime,
            "D" => Type::Duration,
            "F" => Type::FieldsV1,
            "R" => Type::RawExtension,
            "J" => Type::Json,
            "B" => return schema_or(SchemaOr::Bool),
            "A" => return schema_or(SchemaOr::Array),
            "S" => return schema_or(SchemaOr::Strings),
            sibling if sibling.starts_with('.') => {
                let parent = &self.registry.message(parent).name;
                let package = parent.rsplit_once('.').map_or("", |(package, _)| package);
                Type::Message(self.named(&format!("{package}{sibling}"))?)
            }
            name => Type::Message(self.named(name)?),
        })
    }

    fn finish(mut self) -> Result<Registry, String> {
        let versions: HashSet<&str> = self.versions.iter().copied().collect();
        for version in versions {
            for (kind, id) in self.every.clone() {
                self.kind(version, kind, id);
            }
        }
        self.registry.messages.shrink_to_fit();
        for message in &mut self.registry.messages {
            message.fields.shrink_to_fit();
        }
        check_inlined(&self.registry)?;
        Ok(self.registry)
    }
}

/// Inlined fields must be messages, and must not inline themselves: flattening would not end.
fn check_inlined(registry: &Registry) -> Result<(), String> {
    fn depth(
        registry: &Registry,
        id: MessageId,
        known: &mut HashMap<MessageId, bool>,
    ) -> Result<(), String> {
        let name = &registry.message(id).name;
        match known.insert(id, false) {
            Some(true) => {
                known.insert(id, true);
                return Ok(());
            }
            Some(false) => return Err(format!("{name} inlines itself")),
            None => {}
        }
        for field in registry.message(id).fields.iter().filter(|f| f.inline) {
            match field.ty {
                Type::Message(inner) if !field.pointer => depth(registry, inner, known)?,
                _ => return Err(format!("{name}: inlined {} is no message", field.json)),
            }
        }
        known.insert(id, true);
        Ok(())
    }
    let mut known = HashMap::new();
    (0..registry.messages.len()).try_for_each(|i| depth(registry, MessageId(i as u32), &mut known))
}
