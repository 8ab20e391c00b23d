//! Control messages there and back, and what is no message.

use proptest::prelude::*;

use super::*;

fn round_trip_request(request: &Request) {
    let frame = request.encode(Epoch::new(9));
    let (head, body) = frame.split_first_chunk().expect("a header");
    let header = decode_header(head).expect("own header");
    assert_eq!(header.epoch, Epoch::new(9));
    assert_eq!(Request::decode(&header, body).as_ref(), Ok(request));
}

fn round_trip_response(response: &Response) {
    let frame = response.encode(Epoch::new(0));
    let (head, body) = frame.split_first_chunk().expect("a header");
    let header = decode_header(head).expect("own header");
    assert_eq!(Response::decode(&header, body).as_ref(), Ok(response));
}

fn report() -> StatusReport {
    StatusReport {
        incarnation: Incarnation::new(5),
        transport: TransportKind::Tcp,
        data: "[::1]:7000".parse().expect("an address"),
        uptime_ms: 1,
        draining: true,
        hugepages: false,
        capacity: ByteCount::mib(64),
        lent: ByteCount::mib(16),
        free: ByteCount::mib(32),
        unzeroed: ByteCount::mib(16),
        extents: 1,
        tenants: 2,
        regions: 3,
        orphans: 4,
        sessions: 5,
        control_connections: 6,
        data_connections: 7,
    }
}

#[test]
fn every_message_is_read_as_it_was_written() {
    let indexes: Vec<_> = (0..MAX_BATCH_EXTENTS as u32)
        .map(ExtentIndex::new)
        .collect();
    let ticket = Ticket { secret: [7; 16] };
    for request in [
        Request::Hello,
        Request::Open(Open {
            tenant: TenantId::new(1),
            region: RegionId::new(2),
            token: Token([3; 16]),
            owner: 4,
            create: true,
            grant: None,
        }),
        Request::Open(Open {
            tenant: TenantId::new(1),
            region: RegionId::new(2),
            token: Token([3; 16]),
            owner: 4,
            create: false,
            grant: Some(SignedGrant::from_bytes(vec![5; 200]).expect("short enough")),
        }),
        Request::Ticket(TicketRequest { replaces: None }),
        Request::Dismiss(ticket),
        Request::Ticket(TicketRequest {
            replaces: Some(ticket),
        }),
        Request::Allocate(Allocate {
            extent_bytes: ByteCount::mib(16),
            indexes: indexes.clone(),
        }),
        Request::List {
            from: ExtentIndex::new(3),
        },
        Request::Free { indexes },
        Request::Release,
        Request::KeepAlive,
        Request::Status,
    ] {
        round_trip_request(&request);
    }
    let grant = Grant {
        index: ExtentIndex::new(1),
        addr: RemoteAddr::new(4096),
        rkey: Rkey::new(9),
    };
    for response in [
        Response::Welcome(Welcome {
            incarnation: Incarnation::new(1),
            transport: TransportKind::Verbs,
            data: "10.0.0.1:7000".parse().expect("an address"),
            capacity: ByteCount::mib(1),
        }),
        Response::Opened(Opened {
            extents: 1,
            extent_bytes: ByteCount::mib(16),
        }),
        Response::TicketGiven(ticket),
        Response::Dismissed,
        Response::Granted(vec![grant; MAX_BATCH_EXTENTS]),
        Response::Freed { extents: 2 },
        Response::Released { extents: 2 },
        Response::Alive(Alive { drain_ms: Some(5) }),
        Response::StatusReport(report()),
        Response::Refused(Refusal::EpochTooLow {
            requested: Epoch::new(1),
            current: Epoch::new(2),
        }),
        Response::Refused(Refusal::Device {}),
        Response::Refused(Refusal::GrantForOther {
            what: crate::wire::GrantField::Owner,
        }),
        Response::Refused(Refusal::GrantExpired {
            not_after_ms: 1,
            now_ms: 2,
        }),
    ] {
        round_trip_response(&response);
    }
}

#[test]
fn a_list_over_its_bound_is_malformed() {
    let indexes = vec![ExtentIndex::new(0); MAX_BATCH_EXTENTS + 1];
    let frame = Request::Free { indexes }.encode(Epoch::new(0));
    let (head, body) = frame.split_first_chunk().expect("a header");
    let header = decode_header(head).expect("own header");
    assert!(matches!(
        Request::decode(&header, body),
        Err(ControlError::Body(Malformed::TooMany { .. }))
    ));
}

proptest! {
    /// Any body under a valid header is either a message that encodes to the same bytes, or malformed.
    #[test]
    fn no_body_is_read_as_something_that_it_is_not(
        kind in prop_oneof![0..12u16, 0x8000..0x800cu16, Just(0x80ff)],
        body in proptest::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..128),
    ) {
        let header = Header::seal(Magic::Control, VERSION, kind, Epoch::new(1), &body).expect("short");
        if let Ok(request) = Request::decode(&header, &body) {
            prop_assert_eq!(&request.encode(Epoch::new(1))[HEADER_BYTES..], &body[..]);
        }
        if let Ok(response) = Response::decode(&header, &body) {
            prop_assert_eq!(&response.encode(Epoch::new(1))[HEADER_BYTES..], &body[..]);
        }
    }
}
