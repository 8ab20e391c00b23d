//! The messages of QMP, without the socket.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Event, QmpError};

/// A command as it goes out.
#[derive(Serialize)]
pub(super) struct Command<'a> {
    pub(super) execute: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(super) arguments: Value,
    pub(super) id: u64,
}

impl Command<'_> {
    /// One line, as QMP wants it.
    pub(super) fn to_line(&self) -> Result<Vec<u8>, QmpError> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

/// QEMU's words about a refused command.
#[derive(Deserialize)]
pub(super) struct Refusal {
    pub(super) class: Box<str>,
    pub(super) desc: Box<str>,
}

/// A message as it comes in.
pub(super) enum Message {
    Greeting,
    Return { id: Option<u64>, value: Value },
    Error { id: Option<u64>, refusal: Refusal },
    Event(Event),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    qmp: Option<Value>,
    // `Some(Value::Null)` cannot come: every answer is at least {}.
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    event: Option<Box<str>>,
    #[serde(default)]
    data: Value,
    id: Option<u64>,
}

/// Parses one line.
pub(super) fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let raw: Raw = serde_json::from_slice(line)?;
    match raw {
        Raw { qmp: Some(_), .. } => Ok(Message::Greeting),
        Raw {
            event: Some(name),
            data,
            ..
        } => Ok(Message::Event(Event { name, data })),
        Raw {
            error: Some(refusal),
            id,
            ..
        } => Ok(Message::Error { id, refusal }),
        Raw {
            value: Some(value),
            id,
            ..
        } => Ok(Message::Return { id, value }),
        _ => Err(QmpError::NotQmp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_apart() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        assert!(matches!(parse(greeting).unwrap(), Message::Greeting));
        assert!(matches!(
            parse(br#"{"return": {}, "id": 3}"#).unwrap(),
            Message::Return { id: Some(3), .. }
        ));
        let error = br#"{"error": {"class": "CommandNotFound", "desc": "The command x has not been found"}, "id": 4}"#;
        match parse(error).unwrap() {
            Message::Error {
                id: Some(4),
                refusal,
            } => assert_eq!(&*refusal.class, "CommandNotFound"),
            _ => panic!("not an error"),
        }
        let event = br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}"#;
        match parse(event).unwrap() {
            Message::Event(event) => {
                assert_eq!((&*event.name, event.data), ("RESUME", Value::Null))
            }
            _ => panic!("not an event"),
        }
    }

    #[test]
    fn other_things_are_refused() {
        assert!(matches!(
            parse(b"QEMU 7.2.22 monitor - type 'help'"),
            Err(QmpError::Malformed(_))
        ));
        assert!(matches!(parse(b"{}"), Err(QmpError::NotQmp)));
        assert!(matches!(
            parse(br#"{"return": {}, "id": "x"}"#),
            Err(QmpError::Malformed(_))
        ));
    }

    #[test]
    fn a_command_without_arguments_has_none() {
        let command = Command {
            execute: "cont",
            arguments: Value::Null,
            id: 1,
        };
        assert_eq!(
            command.to_line().unwrap(),
            b"{\"execute\":\"cont\",\"id\":1}\n"
        );
    }
}
