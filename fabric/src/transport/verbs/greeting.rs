//! What the two ends say in the private data of rdma_cm's messages. Pure: bytes in, values out.
//!
//! ```text
//!   request     magic 4 | version 2 | length 2 | ticket 16 | checksum 8           32 bytes
//!   acceptance  magic 4 | version 2 | length 2 | checksum 8                       16 bytes
//!   rejection   magic 4 | version 2 | length 2 | reason 2 | zero 6 | checksum 8   24 bytes
//! ```
//!
//! Little-endian; the checksum is XXH3 of all before it. rdma_cm pads what it delivers with zeros, up
//! to 56 bytes in a request. A message that cannot be read is refused, never guessed at.

use twox_hash::XxHash3_64;

use crate::transport::{TICKET_BYTES, Ticket};

/// Version of the data protocol: greetings, and what queue pairs may do.
pub(super) const VERSION: u16 = 1;

const MAGIC: u32 = u32::from_le_bytes(*b"MyVb");
const HEADER_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 8;
/// Bytes of a request.
pub(super) const REQUEST_BYTES: usize = HEADER_BYTES + TICKET_BYTES + CHECKSUM_BYTES;
/// Bytes of an acceptance.
pub(super) const ACCEPTANCE_BYTES: usize = HEADER_BYTES + CHECKSUM_BYTES;
/// Bytes of a rejection.
pub(super) const REJECTION_BYTES: usize = HEADER_BYTES + 8 + CHECKSUM_BYTES;

/// Why a memory node lets a connection not in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// No such ticket: never given, revoked, or its epoch is too low.
    Ticket,
    /// The request is of another version, or not of this protocol.
    Version,
    /// The bound on connections is reached, or the device has no queue pair left.
    Busy,
    /// It came in on a device that the pool is not registered with.
    WrongDevice,
}

/// Why a greeting cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GreetingError {
    #[error("it is too short, or not of this protocol")]
    Foreign,
    #[error("it is of version {0}")]
    Version(u16),
    #[error("it is damaged")]
    Damaged,
}

fn seal<const N: usize>(body: &[u8]) -> [u8; N] {
    let mut message = [0; N];
    message[..4].copy_from_slice(&MAGIC.to_le_bytes());
    message[4..6].copy_from_slice(&VERSION.to_le_bytes());
    message[6..8].copy_from_slice(&(N as u16).to_le_bytes());
    message[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);
    let sum = XxHash3_64::oneshot(&message[..N - CHECKSUM_BYTES]);
    message[N - CHECKSUM_BYTES..].copy_from_slice(&sum.to_le_bytes());
    message
}

/// The body, when all around it is right.
fn open<const N: usize>(bytes: &[u8]) -> Result<&[u8], GreetingError> {
    let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(GreetingError::Foreign);
    };
    if header[..4] != MAGIC.to_le_bytes() {
        return Err(GreetingError::Foreign);
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != VERSION {
        return Err(GreetingError::Version(version));
    }
    if usize::from(u16::from_le_bytes([header[6], header[7]])) != N || bytes.len() < N {
        return Err(GreetingError::Damaged);
    }
    let (message, sum) = bytes[..N].split_at(N - CHECKSUM_BYTES);
    if XxHash3_64::oneshot(message).to_le_bytes() != *sum {
        return Err(GreetingError::Damaged);
    }
    Ok(&message[HEADER_BYTES..])
}

pub(super) fn encode_request(ticket: &Ticket) -> [u8; REQUEST_BYTES] {
    seal(&ticket.secret)
}

pub(super) fn decode_request(bytes: &[u8]) -> Result<Ticket, GreetingError> {
    let body = open::<REQUEST_BYTES>(bytes)?;
    let secret = body.try_into().map_err(|_| GreetingError::Damaged)?;
    Ok(Ticket { secret })
}

/// What a memory node answers, so that nothing else is taken for one.
pub(super) fn encode_acceptance() -> [u8; ACCEPTANCE_BYTES] {
    seal(&[])
}

pub(super) fn decode_acceptance(bytes: &[u8]) -> Result<(), GreetingError> {
    open::<ACCEPTANCE_BYTES>(bytes).map(|_| ())
}

pub(super) fn encode_rejection(reason: Rejection) -> [u8; REJECTION_BYTES] {
    let code: u16 = match reason {
        Rejection::Ticket => 1,
        Rejection::Version => 2,
        Rejection::Busy => 3,
        Rejection::WrongDevice => 4,
    };
    seal(&code.to_le_bytes())
}

pub(super) fn decode_rejection(bytes: &[u8]) -> Result<Rejection, GreetingError> {
    let body = open::<REJECTION_BYTES>(bytes)?;
    if body[2..].iter().any(|&byte| byte != 0) {
        return Err(GreetingError::Damaged);
    }
    match u16::from_le_bytes([body[0], body[1]]) {
        1 => Ok(Rejection::Ticket),
        2 => Ok(Rejection::Version),
        3 => Ok(Rejection::Busy),
        4 => Ok(Rejection::WrongDevice),
        _ => Err(GreetingError::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_fits_into_what_rdma_cm_carries_and_survives_its_padding() {
        let ticket = Ticket { secret: [7; 16] };
        let mut padded = [0; 56];
        padded[..REQUEST_BYTES].copy_from_slice(&encode_request(&ticket));
        assert!(decode_request(&padded) == Ok(ticket));
    }

    #[test]
    fn every_rejection_comes_back_as_it_went() {
        for reason in [
            Rejection::Ticket,
            Rejection::Version,
            Rejection::Busy,
            Rejection::WrongDevice,
        ] {
            assert_eq!(decode_rejection(&encode_rejection(reason)), Ok(reason));
        }
    }

    #[test]
    fn an_acceptance_is_nothing_else() {
        assert_eq!(decode_acceptance(&encode_acceptance()), Ok(()));
        let rejection = encode_rejection(Rejection::Busy);
        assert_eq!(decode_acceptance(&rejection), Err(GreetingError::Damaged));
        assert_eq!(decode_acceptance(&[0; 56]), Err(GreetingError::Foreign));
    }

    #[test]
    fn another_version_is_named() {
        let mut request = encode_request(&Ticket { secret: [1; 16] });
        request[4] = 9;
        assert_eq!(
            decode_request(&request).err(),
            Some(GreetingError::Version(9))
        );
    }

    proptest! {
        #[test]
        fn a_changed_bit_is_noticed(secret in any::<[u8; 16]>(), bit in 0..REQUEST_BYTES * 8) {
            let mut request = encode_request(&Ticket { secret });
            request[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_request(&request).is_err());
        }

        #[test]
        fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(decode_request(&noise).is_err());
            prop_assert!(decode_acceptance(&noise).is_err());
            prop_assert!(decode_rejection(&noise).is_err());
        }
    }
}
