//! Child processes of a bench: each where it belongs, and none that outlives the bench, however that ends.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};

use crate::placement;

/// Puts what `command` starts on `cpu`, and has the kernel kill it when the thread that starts it ends: a
/// signal, say, that ends this process runs nobody's `drop`.
pub(crate) fn tie(command: &mut Command, cpu: Option<usize>) -> &mut Command {
    let parent = getpid();
    // SAFETY: between fork and exec the closure makes a few system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            placement::pin(cpu)?;
            set_pdeathsig(Signal::SIGKILL)?;
            // It may have ended before it was asked for.
            if getppid() == parent {
                Ok(())
            } else {
                Err(Errno::ESRCH.into())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    use nix::sys::signal::kill;
    use nix::unistd::Pid;

    const HANG: Duration = Duration::from_secs(60);

    #[test]
    #[ignore = "not a test: the process that is ended in the middle of what it does"]
    fn a_bench() {
        let mut command = Command::new("sleep");
        let mut child = tie(command.arg("600"), None).spawn().expect("it runs");
        println!("child {}", child.id());
        // Until whoever started it ends it, or ends.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = child.kill();
        let _ = child.wait();
    }

    fn runs(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Whoever inherits it may leave it a zombie.
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    #[test]
    fn a_child_ends_with_a_bench_that_a_signal_ends() {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
            let mut bench = Command::new(std::env::current_exe().expect("a path"))
                .args([
                    "--exact",
                    "child::tests::a_bench",
                    "--ignored",
                    "--nocapture",
                ])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("it runs");
            let lines = BufReader::new(bench.stdout.take().expect("piped")).lines();
            let child: i32 = lines
                .map_while(Result::ok)
                .find_map(|line| line.split_once("child ")?.1.trim().parse().ok())
                .expect("a number");
            assert!(runs(child));
            kill(Pid::from_raw(bench.id().cast_signed()), signal).expect("our child");
            bench.wait().expect("our child");
            let until = Instant::now() + HANG;
            while runs(child) {
                if Instant::now() > until {
                    let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
                    panic!("it outlives {signal}");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
