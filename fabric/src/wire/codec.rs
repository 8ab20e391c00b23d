//! How values stand in a body: little-endian, in the order of their fields, every list with a bound.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::transport::{TICKET_BYTES, Ticket, TransportKind};
use crate::units::{
    ByteCount, Epoch, ExtentIndex, Incarnation, RegionId, RemoteAddr, Rkey, TenantId,
};

/// Why a body is not a message. The connection it came over is at an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The body ends inside of a field.
    #[error("the body is shorter than its message")]
    Short,
    /// Bytes are left behind the last field.
    #[error("the body is {extra} bytes longer than its message")]
    Long {
        /// How many.
        extra: usize,
    },
    /// A number that stands for nothing.
    #[error("{value} is no {what}")]
    Unknown {
        /// What it should stand for.
        what: &'static str,
        /// What came.
        value: u64,
    },
    /// A list longer than its bound.
    #[error("a list of {count} is announced, at most {limit} are taken")]
    TooMany {
        /// Announced.
        count: u32,
        /// The bound.
        limit: u32,
    },
    /// A text that is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
}

/// The bytes of a body that are still to be read.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Reads a list of at most `limit` values. What is allocated is bounded by what was received.
    pub(crate) fn list<T: Wire>(&mut self, limit: u32) -> Result<Vec<T>, Malformed> {
        let count = u32::get(self)?;
        if count > limit {
            return Err(Malformed::TooMany { count, limit });
        }
        (0..count).map(|_| T::get(self)).collect()
    }

    /// Reads a text of at most `limit` bytes.
    pub(crate) fn text(&mut self, limit: u32) -> Result<String, Malformed> {
        let count = u32::get(self)?;
        if count > limit {
            return Err(Malformed::TooMany { count, limit });
        }
        let bytes = self.bytes(count as usize)?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| Malformed::Text)
    }

    /// That nothing is left.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(Malformed::Long { extra }),
        }
    }
}

/// Appends a list; the reader's bound is the caller's to keep.
pub(crate) fn put_list<T: Wire>(list: &[T], out: &mut Vec<u8>) {
    // A list that long cannot be in memory; the reader would refuse it anyway.
    u32::try_from(list.len()).unwrap_or(u32::MAX).put(out);
    for value in list {
        value.put(out);
    }
}

/// Appends a text.
pub(crate) fn put_text(text: &str, out: &mut Vec<u8>) {
    u32::try_from(text.len()).unwrap_or(u32::MAX).put(out);
    out.extend_from_slice(text.as_bytes());
}

/// A value that can stand in a body.
pub(crate) trait Wire: Sized {
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads it.
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed>;
}

macro_rules! wire_integers {
    ($($integer:ty),*) => {$(
        impl Wire for $integer {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                from.array().map(Self::from_le_bytes)
            }
        }
    )*};
}
wire_integers!(u8, u16, u32, u64);

macro_rules! wire_numbers {
    ($($number:ty: $inner:ty),* $(,)?) => {$(
        impl Wire for $number {
            fn put(&self, out: &mut Vec<u8>) {
                self.get().put(out);
            }
            fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                <$inner>::get(from).map(Self::new)
            }
        }
    )*};
}
wire_numbers!(
    ByteCount: u64, Epoch: u64, ExtentIndex: u32, Incarnation: u64, RegionId: u64,
    RemoteAddr: u64, Rkey: u32, TenantId: u64,
);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Malformed::Unknown {
                what: "truth value",
                value: other.into(),
            }),
        }
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(if bool::get(from)? {
            Some(T::get(from)?)
        } else {
            None
        })
    }
}

impl Wire for Ticket {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.secret);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let secret: [u8; TICKET_BYTES] = from.array()?;
        Ok(Self { secret })
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        from.array()
    }
}

impl Wire for TransportKind {
    fn put(&self, out: &mut Vec<u8>) {
        let number: u8 = match self {
            Self::Verbs => 1,
            Self::Tcp => 2,
            Self::Sim => 3,
        };
        number.put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match u8::get(from)? {
            1 => Ok(Self::Verbs),
            2 => Ok(Self::Tcp),
            3 => Ok(Self::Sim),
            other => Err(Malformed::Unknown {
                what: "transport",
                value: other.into(),
            }),
        }
    }
}

impl Wire for SocketAddr {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::V4(v4) => {
                4u8.put(out);
                out.extend_from_slice(&v4.ip().octets());
            }
            Self::V6(v6) => {
                6u8.put(out);
                out.extend_from_slice(&v6.ip().octets());
            }
        }
        self.port().put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let ip = match u8::get(from)? {
            4 => Ipv4Addr::from(from.array::<4>()?).into(),
            6 => Ipv6Addr::from(from.array::<16>()?).into(),
            other => {
                return Err(Malformed::Unknown {
                    what: "address family",
                    value: other.into(),
                });
            }
        };
        Ok(Self::new(ip, u16::get(from)?))
    }
}

/// A struct whose fields stand one behind the other.
macro_rules! wire_struct {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl $crate::wire::codec::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::wire::codec::Wire::put(&self.$field, out);)*
                let _ = out;
            }
            fn get(from: &mut $crate::wire::codec::Reader<'_>) -> Result<Self, $crate::wire::codec::Malformed> {
                let _ = &from;
                Ok(Self { $($field: $crate::wire::codec::Wire::get(from)?,)* })
            }
        }
    };
}
pub(crate) use wire_struct;
