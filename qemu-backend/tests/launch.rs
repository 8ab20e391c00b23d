//! Starting real QEMUs: what comes back from them, and what does not start at all.

mod support;

use std::ffi::OsString;
use std::path::Path;

use mycoram_fabric::units::ByteCount;
use mycoram_qemu::attach::{AttachOptions, attach};
use mycoram_qemu::launch::{Backing, Outcome, SpawnError, merge, spawn};
use support::guest;
use support::qemu::binaries;
use support::zero_pages::ZeroPages;

const RAM: ByteCount = ByteCount::new(32 << 20);

fn arguments(directory: &Path, more: &[&str]) -> Vec<OsString> {
    let image = guest::write_image(directory, RAM.get() as u32, 2);
    let mut arguments: Vec<OsString> = vec!["-accel".into(), "tcg".into()];
    arguments.extend(guest::ARGUMENTS.iter().map(OsString::from));
    arguments.push(image.into());
    // Our own output is the test's.
    arguments.extend(["-serial", "null"].map(OsString::from));
    arguments.retain(|a| a != "stdio");
    arguments.remove(arguments.iter().position(|a| a == "-serial").unwrap());
    arguments.extend(more.iter().map(OsString::from));
    arguments
}

#[test]
fn a_started_qemu_has_its_memory_where_it_can_be_attached() {
    for binary in binaries() {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        for backing in [
            Backing::Memfd,
            Backing::File(shm.path().to_owned()),
            Backing::File(shm.path().join("a,b")),
        ] {
            for machine in [&[][..], &["-M", "q35"], &["-machine", "pc,usb=off"]] {
                let directory = tempfile::tempdir().unwrap();
                let merged = merge(&arguments(directory.path(), machine), RAM, &backing).unwrap();
                let (mut qemu, mut qmp) =
                    spawn(&binary, &merged.arguments, &directory.path().join("qmp")).unwrap();
                let attached =
                    attach(qemu.pid(), Some(&mut qmp), &AttachOptions::default()).unwrap();
                assert_eq!(attached.bytes, RAM.get());
                let _faults = ZeroPages::serve(&attached).unwrap();
                qmp.cont().unwrap();
                let status = qemu.wait().unwrap();
                assert_eq!(Outcome::Ended(Some(status)).exit_code(), guest::GOOD as u8);
            }
        }
    }
}

#[test]
fn a_qemu_that_gives_up_passes_its_code_on() {
    for binary in binaries() {
        let directory = tempfile::tempdir().unwrap();
        let merged = merge(
            &arguments(directory.path(), &["-no-such-option"]),
            RAM,
            &Backing::Memfd,
        )
        .unwrap();
        let error = spawn(&binary, &merged.arguments, &directory.path().join("qmp")).unwrap_err();
        let SpawnError::Ended { status } = error else {
            panic!("{error:?}");
        };
        assert_eq!(Outcome::Ended(Some(status)).exit_code(), 1);
    }
}

#[test]
fn a_qemu_that_is_killed_gives_128_and_the_signal() {
    for binary in binaries() {
        let directory = tempfile::tempdir().unwrap();
        let merged = merge(&arguments(directory.path(), &[]), RAM, &Backing::Memfd).unwrap();
        let (mut qemu, _qmp) =
            spawn(&binary, &merged.arguments, &directory.path().join("qmp")).unwrap();
        qemu.pidfd()
            .send_signal(nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        assert_eq!(Outcome::Ended(Some(qemu.wait().unwrap())).exit_code(), 137);
    }
}

#[test]
fn a_program_that_is_not_there_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let error = spawn(
        Path::new("/nonexistent/qemu"),
        &[],
        &directory.path().join("qmp"),
    )
    .unwrap_err();
    assert!(matches!(error, SpawnError::Program { .. }));
    assert!(error.to_string().contains("--qemu"), "{error}");
    let long = directory.path().join("x".repeat(200));
    assert!(matches!(
        spawn(Path::new("true"), &[], &long),
        Err(SpawnError::Socket { .. })
    ));
}
