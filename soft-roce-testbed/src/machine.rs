//! The QEMU command line of a guest: pure.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::initramfs::{OUT_TAG, ROOT_TAG, RUN_TAG};

/// Name of the port that carries frames, as the guest finds it under `/sys/class/virtio-ports`.
pub(crate) const CONTROL_PORT: &str = "mycoram.control";

/// Translated code kept by emulation, MiB; the default makes it translate the kernel over and over.
const TRANSLATION_CACHE_MIB: u32 = 512;

/// How the guest's processors run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    /// Plain emulation: slow, and there on every machine.
    Tcg,
}

/// Everything the command line depends on.
pub(crate) struct Machine<'a> {
    pub(crate) accelerator: Accelerator,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    pub(crate) vmlinuz: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) console_log: &'a Path,
    pub(crate) run_dir: &'a Path,
    pub(crate) out_dir: &'a Path,
    /// Descriptor number of the control socket in QEMU.
    pub(crate) control_fd: i32,
}

impl Machine<'_> {
    /// Arguments for `qemu-system-x86_64`.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add =
            |words: &[&OsStr]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
        let plain = |text: String| OsString::from(text);
        match self.accelerator {
            Accelerator::Kvm => add(&[
                "-accel".as_ref(),
                "kvm".as_ref(),
                "-cpu".as_ref(),
                "host".as_ref(),
            ]),
            Accelerator::Tcg => {
                let accelerator =
                    plain(format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"));
                add(&[
                    "-accel".as_ref(),
                    &accelerator,
                    "-cpu".as_ref(),
                    EMULATED_CPU.as_ref(),
                ]);
            }
        }
        for fixed in ["-no-user-config", "-nodefaults", "-no-reboot"] {
            add(&[fixed.as_ref()]);
        }
        for (option, value) in [
            ("-machine", plain("q35".to_owned())),
            ("-display", plain("none".to_owned())),
            ("-smp", plain(self.vcpus.to_string())),
            ("-m", plain(format!("{}M", self.memory_mib))),
            ("-kernel", self.vmlinuz.into()),
            ("-initrd", self.initramfs.into()),
            ("-append", plain(kernel_command_line(self.vcpus))),
            (
                "-chardev",
                with_path("file,id=console,path=", self.console_log, ""),
            ),
            ("-serial", plain("chardev:console".to_owned())),
            ("-device", plain("virtio-serial-pci".to_owned())),
            (
                "-chardev",
                plain(format!("socket,id=control,fd={}", self.control_fd)),
            ),
            (
                "-device",
                plain(format!(
                    "virtserialport,chardev=control,name={CONTROL_PORT}"
                )),
            ),
        ] {
            add(&[option.as_ref(), &value]);
        }
        for (tag, path, access) in [
            (ROOT_TAG, Path::new("/"), ",readonly=on"),
            (RUN_TAG, self.run_dir, ""),
            (OUT_TAG, self.out_dir, ""),
        ] {
            // multidevs: several file systems under one export must not share inode numbers.
            let share = with_path(
                &format!("local,id={tag},path="),
                path,
                &format!(",security_model=none,multidevs=remap{access}"),
            );
            let device = plain(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
            add(&["-fsdev".as_ref(), &share, "-device".as_ref(), &device]);
        }
        arguments
    }
}

/// The processor that is emulated: all that can be, save what costs the emulation much and gives this guest
/// nothing. Every access to user memory would end a translated block (SMAP), every miss walk five levels of
/// page table (LA57), and copies would go byte by byte (ERMS, FSRM).
const EMULATED_CPU: &str = "max,-smap,-smep,-umip,-la57,-erms,-fsrm";

/// Of a guest with several processors: one that has nothing to do keeps looking. Halted, it costs its wake-up
/// on the host, some 50 us, several times in each round trip of a device that is emulated on two of them.
const KEEP_LOOKING: &str = "idle=poll";

fn kernel_command_line(vcpus: u8) -> String {
    // A kernel that breaks must say so and end at once: panic=-1 resets, and -no-reboot makes that an exit.
    // What only hardens a kernel against its users is off: this one has none, and emulated it is dear. The
    // one security module that stays is the one which decides about ptrace.
    let mut words = vec![
        "console=ttyS0",
        "quiet",
        "panic=-1",
        "oops=panic",
        "mitigations=off",
        "init_on_alloc=0",
        "hardened_usercopy=off",
        "randomize_kstack_offset=off",
        "audit=0",
        "lsm=yama",
        "net.ifnames=0",
        "transparent_hugepage=madvise",
    ];
    if vcpus > 1 {
        words.push(KEEP_LOOKING);
    }
    words.join(" ")
}

/// An option value with a path in it; commas are QEMU's separators and are doubled.
fn with_path(before: &str, path: &Path, after: &str) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = before.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    bytes.extend_from_slice(after.as_bytes());
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(accelerator: Accelerator, run_dir: &str) -> String {
        let machine = Machine {
            accelerator,
            vcpus: 2,
            memory_mib: 3072,
            vmlinuz: Path::new("/k/vmlinuz"),
            initramfs: Path::new("/k/i"),
            console_log: Path::new("/l/console"),
            run_dir: Path::new(run_dir),
            out_dir: Path::new("/o"),
            control_fd: 3,
        };
        machine
            .arguments()
            .iter()
            .map(|word| word.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_root_is_read_only_and_the_shares_are_not() {
        let line = line(Accelerator::Tcg, "/r");
        assert!(line.contains(
            "-fsdev local,id=root,path=/,security_model=none,multidevs=remap,readonly=on"
        ));
        assert!(
            line.contains(
                "-fsdev local,id=run,path=/r,security_model=none,multidevs=remap -device"
            )
        );
        assert!(line.contains("-smp 2 -m 3072M") && line.contains("panic=-1"));
        assert!(line.contains("-accel tcg,thread=multi") && !line.contains("kvm"));
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert!(line(Accelerator::Kvm, "/a,b").contains("path=/a,,b,security_model"));
    }
}
