//! A memory node in a process of its own: the test executable, started once more.
//!
//! The executable must have an ignored test named `victim_process` that calls [`run`]; started with
//! [`POOL_VARIABLE`] set it serves until it is killed or its standard input ends (so it never outlives
//! the test), otherwise it does nothing.

#![allow(dead_code, reason = "the simulated fabric has victims of its own")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use mycoram_fabric::transport::{DataServer, Export, TICKET_BYTES, Ticket};
use mycoram_fabric::units::{Epoch, RegionId, RemoteAddr, Rkey, TenantId};

use super::{Victim, VictimFacts};

/// Bytes of the pool, in the environment of the process.
pub(crate) const POOL_VARIABLE: &str = "MYCORAM_TEST_VICTIM_POOL_BYTES";
const READY: &str = "victim-ready";

/// The body of the ignored test `victim_process`. `serve` starts a server over a pool of that size.
pub(crate) fn run(serve: impl FnOnce(usize) -> Box<dyn DataServer>) {
    let Some(bytes) = std::env::var(POOL_VARIABLE)
        .ok()
        .and_then(|text| text.parse::<usize>().ok())
    else {
        return;
    };
    let server = serve(bytes);
    let (tenant, secret) = (TenantId::new(7), [7; TICKET_BYTES]);
    server
        .admit(Ticket { secret }, tenant, RegionId::new(7), Epoch::new(7))
        .expect("a first session");
    let export = server
        .export(tenant, 0, bytes as u64)
        .expect("the whole pool");
    println!(
        "\n{READY} {} {} {} {}",
        server.address(),
        export.addr.get(),
        export.rkey.get(),
        export.bytes
    );
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(0);
}

/// A memory node in another process.
pub(crate) struct ProcessVictim {
    process: Child,
    facts: VictimFacts,
}

impl ProcessVictim {
    /// Starts this executable again and waits until it serves.
    pub(crate) fn start(pool_bytes: usize) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("our own path"))
            .args(["victim_process", "--exact", "--ignored", "--nocapture"])
            .env(POOL_VARIABLE, pool_bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test executable starts again");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        for line in lines.map_while(Result::ok) {
            let mut words = line.split_whitespace();
            if words.next() != Some(READY) {
                continue;
            }
            let mut next = || words.next().expect("five words");
            let facts = VictimFacts {
                address: next().parse().expect("an address"),
                ticket: Ticket {
                    secret: [7; TICKET_BYTES],
                },
                export: Export {
                    addr: RemoteAddr::new(next().parse().expect("an address")),
                    rkey: Rkey::new(next().parse().expect("a key")),
                    bytes: next().parse().expect("a length"),
                },
            };
            return Self { process, facts };
        }
        let status = process.wait();
        panic!("the victim process ended before it served: {status:?}");
    }

    /// Its process id, for checks that stop it instead.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Victim for ProcessVictim {
    fn facts(&self) -> VictimFacts {
        self.facts
    }

    fn kill(&mut self) {
        self.process.kill().expect("our own child");
        self.process.wait().expect("our own child");
    }
}

impl Drop for ProcessVictim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
