//! A QEMU that ends with its test, whatever way the test ends.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use mycoram_qemu::qmp::Qmp;
use nix::unistd::Pid;

use super::guest;

/// The user `nobody`.
pub const NOBODY: u32 = 65534;
/// What libvirt and others deny their QEMUs.
pub const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
const LIMIT: Duration = Duration::from_secs(20);

/// The QEMUs to test with: those named in MYCORAM_QEMU (separated by `:`), else the one in PATH.
pub fn binaries() -> Vec<PathBuf> {
    let named = std::env::var("MYCORAM_QEMU").unwrap_or_default();
    let mut found: Vec<PathBuf> = named
        .split(':')
        .filter(|n| !n.is_empty())
        .map(PathBuf::from)
        .collect();
    if found.is_empty() {
        let default = PathBuf::from("qemu-system-x86_64");
        if Command::new(&default).arg("--version").output().is_ok() {
            found.push(default);
        } else {
            super::lacks(
                "qemu-system-x86_64 (apt install qemu-system-x86, or name one in MYCORAM_QEMU)",
            );
        }
    }
    found
}

/// How a test wants its QEMU.
pub struct Setup<'a> {
    pub binary: &'a Path,
    /// Rounds of the guest; 0 for ever.
    pub rounds: u32,
    pub ram_mib: u32,
    /// Arguments for the memory, with `SIZE` for its size.
    pub memory: &'a [&'a str],
    /// As the user nobody, in QEMU's sandbox.
    pub unprivileged: bool,
    /// With -S.
    pub paused: bool,
}

impl<'a> Setup<'a> {
    pub const MEMFD: &'a [&'a str] = &[
        "-object",
        "memory-backend-memfd,id=mem,size=SIZE,share=on",
        "-machine",
        "memory-backend=mem",
    ];

    pub fn new(binary: &'a Path) -> Self {
        Self {
            binary,
            rounds: 3,
            ram_mib: 32,
            memory: Self::MEMFD,
            unprivileged: false,
            paused: true,
        }
    }
}

pub struct Qemu {
    pub child: Child,
    pub directory: tempfile::TempDir,
}

impl Qemu {
    /// Starts it and connects to its QMP socket.
    pub fn start(setup: &Setup<'_>) -> (Self, Qmp) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let image = guest::write_image(directory.path(), setup.ram_mib << 20, setup.rounds);
        // Ours before QEMU starts: the connection waits in its backlog, nobody polls for a path.
        let socket = directory.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&listener);

        let mut command = Command::new(setup.binary);
        for argument in setup.memory {
            command.arg(argument.replace("SIZE", &format!("{}M", setup.ram_mib)));
        }
        command
            .args(["-m", &format!("{}M", setup.ram_mib), "-accel", "tcg"])
            .args(guest::ARGUMENTS)
            .arg(image)
            .arg("-chardev")
            .arg(format!("socket,id=qmp,fd={number},server=on,wait=off"))
            .args(["-mon", "chardev=qmp,mode=control"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if setup.paused {
            command.arg("-S");
        }
        if setup.unprivileged {
            command.args(["-sandbox", SANDBOX]).uid(NOBODY).gid(NOBODY);
        }
        // SAFETY: fcntl and prctl are async-signal-safe and concern this process only.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::fcntl(number, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let qemu = Self { child, directory };
        let qmp = Qmp::connect(&socket, LIMIT).unwrap();
        (qemu, qmp)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Reads serial output until `wanted` came; fails when the guest found a wrong page.
    pub fn expect_serial(&mut self, wanted: u8) {
        let mut byte = [0];
        loop {
            let out = self.child.stdout.as_mut().unwrap();
            assert_eq!(
                out.read(&mut byte).unwrap(),
                1,
                "QEMU ended before it said {}",
                char::from(wanted)
            );
            assert_ne!(byte[0], b'X', "the guest found a wrong page");
            if byte[0] == wanted {
                return;
            }
        }
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub fn assert_good(&mut self) {
        self.expect_serial(b'D');
        assert_eq!(self.wait().code(), Some(guest::GOOD));
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
