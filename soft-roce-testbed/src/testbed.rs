//! The front door: decides where a command runs, boots that place, retries a boot that got stuck.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::booted::{Booted, NotUp, Vessel, ending_of};
use crate::guest::{BootError, GuestPlan, emulator_words, file};
use crate::host::{self, HostError};
use crate::kernel::KernelSeries;
use crate::kernel_store::KernelStore;
use crate::machine::Accelerator;
use crate::topology::{Topology, TopologyError};

/// A median boot takes 6 s under emulation; a busy machine gets ten times that and more.
const DEFAULT_BOOT_LIMIT: Duration = Duration::from_secs(100);
/// One boot in twenty is slow or stuck; two in a row are a finding.
const BOOT_ATTEMPTS: u32 = 2;

/// Where the caller wants a command to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// On the host if it can, else in a guest.
    Auto,
    /// On the host or not at all.
    Host,
    /// In a guest, whatever the host can do.
    Guest,
}

/// Where it does run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On this host, with its own kernel.
    Host,
    /// In a booted kernel of this series.
    Guest(KernelSeries),
}

/// What a test bed is to be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to run. Default: auto.
    pub wanted: Wanted,
    /// Kernel of the guest; `None` leaves `Auto` free to take the host.
    pub kernel: Option<KernelSeries>,
    /// Kernel of the guest when none is named. Default: 7.2, whose rxe lives in network namespaces.
    pub unnamed_kernel: KernelSeries,
    /// Devices. Default: a pair.
    pub topology: Topology,
    /// Guest's processors. Default 1: with two, emulation panics about once in 120 boots.
    pub vcpus: u8,
    /// Guest's memory in MiB. Default 3072; the throw-away layer over the root lives in half of it.
    pub memory_mib: u32,
    /// How long a boot, with its devices, may take before it counts as stuck. Default 100 s.
    pub boot_limit: Duration,
    /// State of the test bed: kernels, logs, runs. Default `target/testbed` of the checkout.
    pub state_dir: PathBuf,
    /// Directory that comes back from the guest. Default `state_dir/out`.
    pub out_dir: PathBuf,
    /// Arguments that make this program call [`crate::inside::serve`].
    pub inside_arguments: Vec<String>,
}

impl Options {
    /// The defaults, with state under `state_dir`.
    pub fn new(state_dir: PathBuf, inside_arguments: Vec<String>) -> Self {
        let out_dir = state_dir.join("out");
        Self {
            wanted: Wanted::Auto,
            kernel: None,
            unnamed_kernel: KernelSeries::V7_2,
            topology: Topology::Pair,
            vcpus: 1,
            memory_mib: 3072,
            boot_limit: DEFAULT_BOOT_LIMIT,
            state_dir,
            out_dir,
            inside_arguments,
        }
    }
}

/// Why no place was found.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// The host was asked for and cannot.
    #[error("the test bed cannot run on this host: {0}; run it in a guest with --inside guest")]
    Host(#[from] HostError),
    /// The guest recipes are for this processor only.
    #[error("guests are known for x86_64 only; this machine is {arch}")]
    Architecture {
        /// What it is.
        arch: &'static str,
    },
    /// Kernel and topology do not go together.
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

/// A test bed that is not up yet.
#[derive(Debug, Clone)]
pub struct Testbed {
    options: Options,
    place: Place,
}

impl Testbed {
    /// Decides where to run; loads `rdma_rxe` on the host if that is the place.
    pub fn detect(options: Options) -> Result<Self, DetectError> {
        let place = match (options.wanted, options.kernel) {
            (Wanted::Host, _) => {
                host::usable()?;
                Place::Host
            }
            (Wanted::Auto, None) if host::usable().is_ok() => Place::Host,
            (Wanted::Auto | Wanted::Guest, kernel) => {
                Place::Guest(kernel.unwrap_or(options.unnamed_kernel))
            }
        };
        if let Place::Guest(series) = place {
            options.topology.checked_for(series)?;
            if std::env::consts::ARCH != "x86_64" {
                return Err(DetectError::Architecture {
                    arch: std::env::consts::ARCH,
                });
            }
        }
        Ok(Self { options, place })
    }

    /// Where commands will run.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Brings the place up with its devices. A stuck boot, and the known crash of emulated kernels, is
    /// tried once more; nothing else is.
    pub fn boot(&self) -> Result<Booted, BootError> {
        let options = &self.options;
        fs::create_dir_all(&options.out_dir).map_err(file(&options.out_dir))?;
        let mut attempt = 1;
        let mut booted = loop {
            let vessel = self.start()?;
            let console = vessel.console_log.clone();
            // `greet` drops the vessel of a guest that did not come up, and its files with it: hold the log open.
            let emulator_log = fs::File::open(vessel.run_dir.join("qemu.log")).ok();
            match Booted::greet(vessel, options.topology, options.boot_limit) {
                Ok(booted) => break booted,
                Err(NotUp::Stuck(diagnosis)) if attempt < BOOT_ATTEMPTS => {
                    eprintln!("testbed: boot stuck ({diagnosis}); trying once more")
                }
                Err(NotUp::Ended(diagnosis, _))
                    if attempt < BOOT_ATTEMPTS && diagnosis.is_known_emulation_fault() =>
                {
                    eprintln!(
                        "testbed: {diagnosis}, a known fault of emulation; booting once more"
                    );
                }
                Err(NotUp::Stuck(diagnosis)) => {
                    return Err(BootError::Stuck {
                        limit_s: options.boot_limit.as_secs(),
                        diagnosis,
                        console,
                    });
                }
                Err(NotUp::Ended(diagnosis, status)) => {
                    return Err(BootError::Ended {
                        ending: ending_of(status),
                        diagnosis,
                        emulator: emulator_words(emulator_log),
                        console,
                    });
                }
                Err(NotUp::Refused(said)) => return Err(BootError::Topology { said, console }),
                Err(NotUp::Interrupted(signal)) => return Err(BootError::Interrupted { signal }),
                Err(NotUp::Frame(error)) => return Err(error.into()),
            }
            attempt += 1;
        };
        let place = match self.place {
            Place::Host => "host",
            Place::Guest(_) => "guest",
        };
        booted.add_environment("MYCORAM_TESTBED", place.to_owned());
        booted.add_environment(
            "MYCORAM_TESTBED_OUT",
            options.out_dir.to_string_lossy().into_owned(),
        );
        if let Place::Guest(series) = self.place {
            booted.add_environment("MYCORAM_TESTBED_KERNEL", series.to_string());
        }
        Ok(booted)
    }

    fn start(&self) -> Result<Vessel, BootError> {
        let options = &self.options;
        match self.place {
            Place::Host => host::start(&options.state_dir, &options.inside_arguments),
            Place::Guest(series) => {
                let kernel = KernelStore::new(options.state_dir.join("kernels")).kernel(series)?;
                GuestPlan {
                    kernel: &kernel,
                    series_name: series.name(),
                    accelerator: accelerator(),
                    vcpus: options.vcpus,
                    memory_mib: options.memory_mib,
                    state_dir: &options.state_dir,
                    out_dir: &options.out_dir,
                    inside_arguments: &options.inside_arguments,
                }
                .start()
            }
        }
    }
}

fn accelerator() -> Accelerator {
    if kvm_is_usable() {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    }
}

/// Whether guests can run at the processor's own speed: some hosts have a `/dev/kvm` that opens, and
/// then interprets every instruction, because their processor does not offer virtualisation.
#[must_use]
pub fn kvm_is_usable() -> bool {
    let opens = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    opens && has_virtualisation(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

/// A place as users write it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{asked:?} is not one of auto, host, guest")]
pub struct WantedError {
    asked: Box<str>,
}

impl FromStr for Wanted {
    type Err = WantedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "host" => Ok(Self::Host),
            "guest" => Ok(Self::Guest),
            _ => Err(WantedError { asked: text.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_was_named_is_booted() {
        let mut options = Options::new("/nowhere".into(), Vec::new());
        options.kernel = Some(KernelSeries::V6_1);
        assert_eq!(
            Testbed::detect(options.clone()).unwrap().place(),
            Place::Guest(KernelSeries::V6_1)
        );
        options.topology = Topology::Nodes(3);
        assert!(matches!(
            Testbed::detect(options),
            Err(DetectError::Topology(_))
        ));
    }

    #[test]
    fn an_open_device_without_the_processor_flag_is_not_trusted() {
        assert!(has_virtualisation(
            "model name: x\nflags\t\t: fpu vmx sse\n"
        ));
        assert!(!has_virtualisation("flags\t\t: fpu sse vmxx\nbugs: svm\n"));
    }
}
