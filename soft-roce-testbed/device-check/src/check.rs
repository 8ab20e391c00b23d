//! The check itself: one message across and one back, compared byte by byte.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ibverbs::{
    CompletionQueue, Context, MemoryRegion, PreparedQueuePair, ProtectionDomain, QueuePair,
    ibv_qp_type, ibv_wc,
};

/// Words in a message: one page.
const MESSAGE_WORDS: usize = 512;
/// Round trips of one check.
const ROUND_TRIPS: u64 = 100;
/// An emulated device answers within milliseconds; this long means never.
const COMPLETION_LIMIT: Duration = Duration::from_secs(20);
/// Acknowledge timeout (4.096 us times two to this power: 67 ms) and retries: finite on purpose.
const ACK_TIMEOUT_EXPONENT: u8 = 14;
const RETRIES: u8 = 6;

/// `IBV_GID_TYPE_ROCE_V2`, which the crate does not name.
const GID_TYPE_ROCE_V2: u32 = 2;

/// What was found.
pub(crate) struct Report {
    one: String,
    two: String,
    least_round_trip: Duration,
}

/// What is wrong with a device.
#[derive(Debug)]
pub(crate) enum CheckError {
    /// No device has a GID for the address.
    NoDevice(Ipv4Addr),
    /// A verbs call failed.
    Verbs(&'static str, io::Error),
    /// A completion with an error status.
    Completion(String),
    /// No completion.
    Silent,
    /// Other bytes than were sent.
    Corrupt {
        word: usize,
        sent: u64,
        received: u64,
    },
}

/// Checks the two devices that own `one` and `two`.
pub(crate) fn between(one: Ipv4Addr, two: Ipv4Addr) -> Result<Report, CheckError> {
    let (first_name, first, first_gid) = open(one)?;
    let (second_name, second, second_gid) = open(two)?;
    let first_queue = first
        .create_cq(16, 1)
        .map_err(verbs("create a completion queue"))?;
    let second_queue = second
        .create_cq(16, 2)
        .map_err(verbs("create a completion queue"))?;
    let first_domain = first
        .alloc_pd()
        .map_err(verbs("allocate a protection domain"))?;
    let second_domain = second
        .alloc_pd()
        .map_err(verbs("allocate a protection domain"))?;
    let first_prepared = prepare(&first_domain, &first_queue, first_gid)?;
    let second_prepared = prepare(&second_domain, &second_queue, second_gid)?;
    let (first_endpoint, second_endpoint) = (first_prepared.endpoint(), second_prepared.endpoint());
    let mut near = End {
        pair: first_prepared
            .handshake(second_endpoint)
            .map_err(verbs("connect the first queue pair"))?,
        queue: &first_queue,
        memory: first_domain
            .allocate::<u64>(2 * MESSAGE_WORDS)
            .map_err(verbs("register memory"))?,
    };
    let mut far = End {
        pair: second_prepared
            .handshake(first_endpoint)
            .map_err(verbs("connect the second queue pair"))?,
        queue: &second_queue,
        memory: second_domain
            .allocate::<u64>(2 * MESSAGE_WORDS)
            .map_err(verbs("register memory"))?,
    };
    let mut least_round_trip = Duration::MAX;
    for round in 0..ROUND_TRIPS {
        let began = Instant::now();
        carry(&mut near, &mut far, round)?;
        carry(&mut far, &mut near, round ^ u64::MAX)?;
        least_round_trip = least_round_trip.min(began.elapsed());
    }
    Ok(Report {
        one: first_name,
        two: second_name,
        least_round_trip,
    })
}

/// One end: the first half of its memory is sent from, the second half received into.
struct End<'a> {
    pair: QueuePair<'a>,
    queue: &'a CompletionQueue<'a>,
    memory: MemoryRegion<u64>,
}

/// Sends one message from one end to the other and compares it.
fn carry(from: &mut End<'_>, to: &mut End<'_>, seed: u64) -> Result<(), CheckError> {
    let pattern = |word: usize| {
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(word as u64)
    };
    for word in 0..MESSAGE_WORDS {
        from.memory[word] = pattern(word);
    }
    // SAFETY: both regions outlive their queue pairs' use of them: each completion is awaited below,
    // before either region is touched again or dropped.
    unsafe {
        to.pair
            .post_receive(&mut to.memory, MESSAGE_WORDS.., 1)
            .map_err(verbs("post a receive"))?;
        from.pair
            .post_send(&mut from.memory, ..MESSAGE_WORDS, 2)
            .map_err(verbs("post a send"))?;
    }
    await_one(from.queue)?;
    await_one(to.queue)?;
    for word in 0..MESSAGE_WORDS {
        let (sent, received) = (pattern(word), to.memory[MESSAGE_WORDS + word]);
        if sent != received {
            return Err(CheckError::Corrupt {
                word,
                sent,
                received,
            });
        }
    }
    Ok(())
}

fn await_one(queue: &CompletionQueue<'_>) -> Result<(), CheckError> {
    let mut completions = [ibv_wc::default(); 1];
    let deadline = Instant::now() + COMPLETION_LIMIT;
    while Instant::now() < deadline {
        if let Some(completion) = queue
            .poll(&mut completions)
            .map_err(verbs("poll a completion queue"))?
            .first()
        {
            return match completion.error() {
                None => Ok(()),
                Some((status, vendor)) => Err(CheckError::Completion(format!(
                    "{status:?} (vendor {vendor})"
                ))),
            };
        }
        std::thread::yield_now();
    }
    Err(CheckError::Silent)
}

/// Opens the device that has a GID for `address`. The index is good for now: it was just looked up.
fn open(address: Ipv4Addr) -> Result<(String, Context, u32), CheckError> {
    let [a, b, c, d] = address.octets();
    let mapped = 0x0000_ffff_0000_0000 | u64::from(u32::from_be_bytes([a, b, c, d]));
    let devices = ibverbs::devices().map_err(verbs("list devices"))?;
    for device in devices.iter() {
        // A device that cannot be opened is not the one; the address decides.
        let Ok(context) = device.open() else { continue };
        let found = context.gid_table().iter().find(|entry| {
            entry.gid.subnet_prefix() == 0
                && entry.gid.interface_id() == mapped
                && entry.gid_type == GID_TYPE_ROCE_V2
        });
        if let Some(index) = found.map(|entry| entry.gid_index) {
            let name = device
                .name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            return Ok((name, context, index));
        }
    }
    Err(CheckError::NoDevice(address))
}

fn prepare<'a>(
    domain: &'a ProtectionDomain<'a>,
    queue: &'a CompletionQueue<'a>,
    gid: u32,
) -> Result<PreparedQueuePair<'a>, CheckError> {
    let mut builder = domain.create_qp(queue, queue, ibv_qp_type::IBV_QPT_RC);
    builder
        .set_gid_index(gid)
        .set_timeout(ACK_TIMEOUT_EXPONENT)
        .set_retry_count(RETRIES)
        .set_rnr_retry(RETRIES);
    builder.build().map_err(verbs("create a queue pair"))
}

fn verbs(what: &'static str) -> impl FnOnce(io::Error) -> CheckError {
    move |source| CheckError::Verbs(what, source)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, least) = (MESSAGE_WORDS * 8, self.least_round_trip.as_micros());
        write!(
            f,
            "{} and {}: {ROUND_TRIPS} round trips of {bytes} bytes, the fastest {least} us",
            self.one, self.two
        )
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice(address) => write!(f, "no RDMA device has a RoCE v2 GID for {address}"),
            Self::Verbs(what, source) => write!(f, "cannot {what}: {source}"),
            Self::Completion(status) => write!(f, "the device reported {status}"),
            Self::Silent => write!(f, "no completion within {} s", COMPLETION_LIMIT.as_secs()),
            Self::Corrupt {
                word,
                sent,
                received,
            } => write!(
                f,
                "word {word} was sent as {sent:#x} and received as {received:#x}"
            ),
        }
    }
}

impl std::error::Error for CheckError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Verbs(_, source) => Some(source),
            _ => None,
        }
    }
}
