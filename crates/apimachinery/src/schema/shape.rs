//! What the codecs look up for every field they meet, derived once from the registry.

use super::{Field, MessageId, Registry, Type};

/// A field of a message's JSON object.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The message that declares the field: the object's own or one inlined in it.
    pub(crate) owner: MessageId,
    /// Index among the owner's fields.
    pub(crate) index: u16,
    /// The inlined messages on the way to the owner, outermost first.
    pub(crate) through: Box<[MessageId]>,
}

impl Slot {
    pub(crate) fn field<'r>(&self, registry: &'r Registry) -> &'r Field {
        &registry.message(self.owner).fields[self.index as usize]
    }
}

/// Indexes of one message.
#[derive(Debug)]
pub(crate) struct Shape {
    /// The fields of its JSON object in Go's order, inlined messages flattened.
    pub(crate) slots: Box<[Slot]>,
    /// Indexes into `slots`, by JSON name.
    names: Box<[u16]>,
    /// Indexes into `slots` of the fields that JSON always shows.
    pub(crate) always: Box<[u16]>,
    /// Indexes into `slots` of lists whose objects show their version and kind.
    pub(crate) shows: Box<[u16]>,
    /// Indexes into the message's own fields that protobuf carries, by number.
    pub(crate) numbers: Box<[u16]>,
    /// The message as a type, for lists that have it as their element.
    pub(crate) ty: Type,
}

impl Shape {
    pub(super) fn all(registry: &Registry) -> Vec<Shape> {
        (0..registry.messages.len()).map(|i| Self::of(registry, MessageId(i as u32))).collect()
    }

    fn of(registry: &Registry, id: MessageId) -> Shape {
        let mut slots = Vec::new();
        flatten(registry, id, &mut Vec::new(), &mut slots);
        let mut names: Vec<u16> = (0..slots.len() as u16).collect();
        names.sort_by_key(|&i| slots[i as usize].field(registry).json.as_str());
        let those = |wanted: fn(&Field) -> bool| -> Box<[u16]> {
            (0..slots.len() as u16).filter(|&i| wanted(slots[i as usize].field(registry))).collect()
        };
        let always = those(|field| !field.omitempty);
        let shows = those(|field| field.shows.is_some());
        let fields = &registry.message(id).fields;
        let mut numbers: Vec<u16> =
            (0..fields.len() as u16).filter(|&i| fields[i as usize].number != 0).collect();
        numbers.sort_by_key(|&i| fields[i as usize].number);
        Shape {
            slots: slots.into(),
            names: names.into(),
            always,
            shows,
            numbers: numbers.into(),
            ty: Type::Message(id),
        }
    }

    /// Index of the slot that JSON shows under a name.
    pub(crate) fn find(&self, registry: &Registry, name: &str) -> Option<usize> {
        self.names
            .binary_search_by_key(&name, |&i| self.slots[i as usize].field(registry).json.as_str())
            .ok()
            .map(|at| self.names[at] as usize)
    }

    /// Index of the message's own field with a protobuf number.
    pub(crate) fn numbered(&self, fields: &[Field], number: u32) -> Option<usize> {
        self.numbers
            .binary_search_by_key(&number, |&i| fields[i as usize].number)
            .ok()
            .map(|at| self.numbers[at] as usize)
    }
}

fn flatten(registry: &Registry, id: MessageId, through: &mut Vec<MessageId>, out: &mut Vec<Slot>) {
    for (index, field) in registry.message(id).fields.iter().enumerate() {
        match field.ty {
            Type::Message(inner) if field.inline => {
                through.push(inner);
                flatten(registry, inner, through, out);
                through.pop();
            }
            _ => out.push(Slot {
                owner: id,
                index: index as u16,
                through: through.as_slice().into(),
            }),
        }
    }
}
