use std::sync::Arc;
use std::time::{Duration, Instant};
use mycoram_fabric::transport::verbs::*;
use mycoram_fabric::transport::*;
use mycoram_fabric::units::*;
fn main() {
    let addr = std::env::var("MYCORAM_RXE_ADDR_2").unwrap();
    if std::env::args().nth(1).as_deref() == Some("server") {
        let pool = Arc::new(Mapping::anonymous(16 << 20).unwrap());
        let server = VerbsServer::listen(format!("{addr}:7777").parse().unwrap(), pool, ServerLimits::default()).unwrap();
        server.admit(Ticket { secret: [1; 16] }, TenantId::new(1), RegionId::new(1), Epoch::new(1)).unwrap();
        let e = server.export(TenantId::new(1), 0, 16 << 20).unwrap();
        println!("{} {}", e.addr.get(), e.rkey.get());
        std::io::Read::read(&mut std::io::stdin(), &mut [0]).ok();
        return;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap()).arg("server")
        .stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    let mut w = line.split_whitespace().map(|w| w.parse::<u64>().unwrap());
    let (base, rkey) = (w.next().unwrap(), w.next().unwrap() as u32);
    let t = VerbsTransport::open().unwrap();
    let mem = t.register(Arc::new(Mapping::anonymous(8 << 20).unwrap())).unwrap();
    let c0 = Instant::now();
    let mut qp = t.connect(format!("{addr}:7777").parse().unwrap(), &Ticket { secret: [1; 16] }, &QueuePairConfig::default()).unwrap();
    println!("connect {:?}", c0.elapsed());
    let rd = |id, off: usize, len: usize| WorkRequest { id: WorkId(id), signaled: true,
        operation: Operation::Read { into: mem.slice(off, len).unwrap(), from: RemoteSlice { addr: RemoteAddr::new(base + off as u64), rkey: Rkey::new(rkey) } } };
    let mut out = Vec::with_capacity(64);
    for mode in ["poll", "yield", "event"] {
        let mut us = Vec::new();
        for i in 0..3000u64 {
            let s = Instant::now();
            qp.post(&[rd(i, ((i % 256) * 4096) as usize, 4096)]).unwrap();
            while qp.poll(&mut out) == 0 {
                match mode { "yield" => std::thread::yield_now(), "event" => { qp.wait(Duration::from_secs(1)); } _ => {} }
            }
            let e = s.elapsed();
            out[0].result.unwrap();
            out.clear();
            if i >= 200 { us.push(e.as_nanos() as u64); }
        }
        us.sort_unstable();
        println!("READ 4K {mode}: p50 {:.1} p99 {:.1} us", us[us.len() / 2] as f64 / 1e3, us[us.len() * 99 / 100] as f64 / 1e3);
    }
    for depth in [1usize, 8, 16, 32] {
        let total = 1500usize;
        let (mut posted, mut done) = (0, 0);
        let s = Instant::now();
        while done < total {
            while posted < total && posted - done < depth { qp.post(&[rd(posted as u64, (posted % 64) * 65536, 65536)]).unwrap(); posted += 1; }
            if qp.poll(&mut out) == 0 { std::thread::yield_now(); }
            for c in out.drain(..) { c.result.unwrap(); done += 1; }
        }
        let e = s.elapsed();
        println!("READ 64K depth {depth}: {:.1} MB/s", total as f64 * 65536.0 / 1e6 / e.as_secs_f64());
    }
    let s = Instant::now();
    for i in 0..200 { let q = t.connect(format!("{addr}:7777").parse().unwrap(), &Ticket { secret: [1; 16] }, &QueuePairConfig::default()); if let Err(e) = &q { println!("{i}: {e:?}"); break } }
    println!("connect+drop: {:?} each", s.elapsed() / 200);
    child.kill().unwrap(); child.wait().unwrap();
    let s = Instant::now();
    while !qp.wait(Duration::from_millis(100)) && qp.broken().is_none() {}
    println!("death noticed after {:?}: {:?}", s.elapsed(), qp.broken());
}
