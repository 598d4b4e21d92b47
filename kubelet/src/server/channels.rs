//! The WebSocket protocols of exec and attach: one byte of each message names its stream.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

/// The channel that says how the command ended.
const ERROR: u8 = 3;

/// A protocol, by what sets it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Its name, which the answer repeats; none if the client offered none.
    pub name: Option<&'static str>,
    /// Clients can close a channel of their own.
    pub closes: bool,
    /// The end is told as a status in JSON; otherwise only a failure is, in words.
    status: bool,
    /// Messages are text, with the data in base64.
    base64: bool,
}

const fn protocol(name: &'static str, closes: bool, status: bool, base64: bool) -> Protocol {
    Protocol { name: Some(name), closes, status, base64 }
}

/// Those of exec and attach, the best first.
const ALL: [Protocol; 5] = [
    protocol("v5.channel.k8s.io", true, true, false),
    protocol("v4.channel.k8s.io", false, true, false),
    protocol("v4.base64.channel.k8s.io", false, true, true),
    protocol("channel.k8s.io", false, false, false),
    protocol("base64.channel.k8s.io", false, false, true),
];

impl Protocol {
    /// The best of those that a client offers. One that offers none speaks the oldest.
    pub fn choose(offered: &[String]) -> Option<Self> {
        if offered.is_empty() {
            return Some(Self { name: None, closes: false, status: false, base64: false });
        }
        ALL.into_iter().find(|p| offered.iter().any(|o| Some(o.as_str()) == p.name))
    }

    /// A message for a client; `None` if the protocol does not tell it.
    pub fn encode(self, channel: u8, data: &[u8]) -> Option<Message> {
        let told;
        let data = match channel == ERROR && !self.status && !data.is_empty() {
            true => {
                told = failure(data)?;
                told.as_bytes()
            }
            false => data,
        };
        if self.base64 {
            let channel = char::from(b'0' + channel);
            return Some(Message::Text(format!("{channel}{}", STANDARD.encode(data)).into()));
        }
        let mut message = Vec::with_capacity(data.len() + 1);
        message.push(channel);
        message.extend_from_slice(data);
        Some(Message::Binary(message.into()))
    }

    /// Channel and data of a client's message; `None` if it is none.
    pub fn decode(self, message: &Message) -> Option<(u8, Bytes)> {
        match (message, self.base64) {
            (Message::Binary(data), false) => {
                let (channel, _) = data.split_first()?;
                Some((*channel, data.slice(1..)))
            }
            (Message::Text(text), true) => {
                let (channel, rest) = text.as_bytes().split_first()?;
                Some((channel.checked_sub(b'0')?, STANDARD.decode(rest).ok()?.into()))
            }
            _ => None,
        }
    }
}

/// The words of a status that is a failure.
fn failure(status: &[u8]) -> Option<String> {
    let Ok(status) = serde_json::from_slice::<serde_json::Value>(status) else {
        return Some(String::from_utf8_lossy(status).into_owned());
    };
    match status.get("status").and_then(|s| s.as_str()) {
        Some("Success") => None,
        _ => Some(status.get("message").and_then(|m| m.as_str()).unwrap_or_default().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(offered: &[&str]) -> Option<Protocol> {
        let offered: Vec<String> = offered.iter().map(|o| (*o).to_owned()).collect();
        Protocol::choose(&offered)
    }

    #[test]
    fn the_best_protocol_is_chosen() {
        for (offered, want) in [
            (&["channel.k8s.io", "v4.channel.k8s.io"][..], Some(Some("v4.channel.k8s.io"))),
            (&["channel.k8s.io"], Some(Some("channel.k8s.io"))),
            (&[], Some(None)),
            (&["chat"], None),
        ] {
            assert_eq!(choose(offered).map(|p| p.name), want, "{offered:?}");
        }
    }

    #[test]
    fn messages_carry_their_channel() {
        let binary = choose(&["channel.k8s.io"]).unwrap();
        assert_eq!(binary.encode(1, b"x"), Some(Message::Binary(vec![1, b'x'].into())));
        let base64 = choose(&["base64.channel.k8s.io"]).unwrap();
        let message = base64.encode(1, b"x").unwrap();
        assert_eq!(message, Message::Text("1eA==".into()));
        assert_eq!(base64.decode(&message), Some((1, Bytes::from_static(b"x"))));
        assert_eq!(base64.decode(&Message::Text("!".into())), None);
        assert_eq!(binary.decode(&Message::Binary(Bytes::new())), None);
    }

    #[test]
    fn old_clients_hear_of_failures_only() {
        let (old, new) = (choose(&[]).unwrap(), choose(&["v4.channel.k8s.io"]).unwrap());
        let well = br#"{"status":"Success"}"#;
        let ill = br#"{"status":"Failure","message":"exit 3"}"#;
        assert_eq!(old.encode(ERROR, well), None);
        assert_eq!(old.encode(ERROR, ill), Some(Message::Binary(b"\x03exit 3".to_vec().into())));
        assert!(new.encode(ERROR, well).is_some());
    }
}
