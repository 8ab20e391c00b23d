//! What this kernel can do, as a plain value: asked once, handed around, and in tests made poorer than
//! it is, so that the ways around a missing feature are walked on every machine.

use std::fmt;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::opening::{self, OpenUserfaultError, UserfaultDevice};
use super::{CallFailed, abi};

/// A feature bit of the userfaultfd handshake that Mycoram has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Feature {
    /// A fork of the target gives the child a userfaultfd of its own (4.11; needs CAP_SYS_PTRACE).
    EventFork = 1,
    /// mremap is reported (4.11).
    EventRemap = 2,
    /// MADV_DONTNEED and MADV_REMOVE are reported (4.11).
    EventRemove = 3,
    /// Shared memory can be registered (4.11). Nothing works without it.
    MissingShmem = 5,
    /// munmap is reported (4.11).
    EventUnmap = 6,
    /// Faults raise SIGBUS in the faulting thread instead of an event (4.14).
    Sigbus = 7,
    /// Events name the faulting thread (4.14).
    ThreadId = 8,
    /// Shared memory can be write-protected (5.19).
    WpShmem = 12,
    /// Pages that are not there can be write-protected (6.4).
    WpUnpopulated = 13,
    /// A page can be made to raise SIGBUS (6.6).
    Poison = 14,
    /// Write-protection that lifts itself, for dirty tracking (6.7).
    WpAsync = 15,
    /// Pages can be moved instead of copied (6.8; anonymous memory only).
    Move = 16,
}

impl Feature {
    /// All of them, by bit.
    pub const ALL: [Self; 12] = [
        Self::EventFork,
        Self::EventRemap,
        Self::EventRemove,
        Self::MissingShmem,
        Self::EventUnmap,
        Self::Sigbus,
        Self::ThreadId,
        Self::WpShmem,
        Self::WpUnpopulated,
        Self::Poison,
        Self::WpAsync,
        Self::Move,
    ];

    /// What is done without it, in one sentence.
    #[must_use]
    pub const fn without_it(self) -> &'static str {
        match self {
            Self::EventFork => {
                "no EVENT_FORK: a child of the target does not get the region's memory; it must not touch it"
            }
            Self::EventRemap => "no EVENT_REMAP: the target must not mremap the region",
            Self::EventRemove => {
                "no EVENT_REMOVE: memory that the target gives back (balloon, MADV_DONTNEED) still counts as written"
            }
            Self::MissingShmem => {
                "no MISSING_SHMEM: shared memory cannot be paged on this kernel; Linux 4.11 or newer is needed"
            }
            Self::EventUnmap => {
                "no EVENT_UNMAP: an unmapped region is noticed at its process's end, or when it is closed"
            }
            Self::Sigbus => "no SIGBUS mode: all faults are served by the agent's threads",
            Self::ThreadId => {
                "no THREAD_ID: a fault on a lost page cannot be told to its thread; the process is ended instead"
            }
            Self::WpShmem | Self::WpUnpopulated | Self::WpAsync => {
                "no WP_ASYNC on shared memory (Linux 6.7): dirty pages are found by write-protect faults"
            }
            Self::Poison => {
                "no POISON (Linux 6.6): a thread that touches a lost page gets SIGBUS sent by the agent"
            }
            Self::Move => {
                "no MOVE (Linux 6.8): a program's own far memory is a memfd, whose pages leave through pipes"
            }
        }
    }
}

/// A set of feature bits as the handshake speaks of them.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct FeatureSet(u64);

impl FeatureSet {
    /// No feature.
    pub const NONE: Self = Self(0);

    /// These features.
    #[must_use]
    pub fn of(features: &[Feature]) -> Self {
        features.iter().fold(Self::NONE, |set, f| set.with(*f))
    }
    /// From the kernel's bits; unknown ones are kept.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    /// The kernel's bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// Is it in?
    #[must_use]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u8) != 0
    }
    /// With one more.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | 1 << feature as u8)
    }
    /// With one less.
    #[must_use]
    pub const fn without(self, feature: Feature) -> Self {
        Self(self.0 & !(1 << feature as u8))
    }
    /// What both have.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(Feature::ALL.iter().filter(|feature| self.has(**feature)))
            .finish()
    }
}

/// `major.minor` of the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelRelease {
    /// Such as the 6 of 6.12.
    pub major: u16,
    /// Such as the 12 of 6.12.
    pub minor: u16,
}

impl KernelRelease {
    /// Reads the start of `uname -r`; anything may follow the minor number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for KernelRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Whether a way to a userfaultfd is open to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is.
    Open,
    /// The kernel has it, this process may not use it.
    NotPermitted,
    /// The kernel does not have it.
    Absent,
}

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No userfaultfd to ask.
    #[error("the kernel cannot be asked for its userfaultfd features")]
    Open(#[from] OpenUserfaultError),
    /// A call failed.
    #[error("the kernel cannot be asked for its features")]
    Call(#[from] CallFailed),
    /// `uname -r` starts with no version.
    #[error("the kernel's release is not a version number")]
    Release,
}

/// What the running kernel can do for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFeatures {
    /// Its version.
    pub release: KernelRelease,
    /// userfaultfd(2) for faults of the kernel too.
    pub system_call: Way,
    /// /dev/userfaultfd.
    pub device: Way,
    /// Feature bits of the handshake.
    pub userfault: FeatureSet,
}

impl KernelFeatures {
    /// Asks the running kernel.
    pub fn probe() -> Result<Self, ProbeError> {
        let uname = nix::sys::utsname::uname().map_err(CallFailed::of("uname"))?;
        let release = uname
            .release()
            .to_str()
            .and_then(KernelRelease::parse)
            .ok_or(ProbeError::Release)?;
        let system_call = match opening::by_system_call() {
            Ok(_) => Way::Open,
            Err(Errno::ENOSYS) => Way::Absent,
            Err(_) => Way::NotPermitted,
        };
        let device = match UserfaultDevice::open() {
            Ok(_) => Way::Open,
            Err(OpenUserfaultError::Device(e)) if e.kind() == std::io::ErrorKind::NotFound => {
                Way::Absent
            }
            Err(_) => Way::NotPermitted,
        };
        let asked = opening::by_any_way()?;
        let mut api = abi::UffdioApi {
            api: abi::UFFD_API,
            ..Default::default()
        };
        // SAFETY: `api` is the structure this ioctl takes and outlives the call. The descriptor is
        // closed below, so that the handshake it has had matters to nobody.
        unsafe { abi::uffdio_api(asked.as_raw_fd(), &raw mut api) }
            .map_err(CallFailed::of("UFFDIO_API"))?;
        Ok(Self {
            release,
            system_call,
            device,
            userfault: FeatureSet::from_bits(api.features),
        })
    }

    /// The same kernel as if it lacked `feature`.
    #[must_use]
    pub const fn without(mut self, feature: Feature) -> Self {
        self.userfault = self.userfault.without(feature);
        self
    }

    /// The same kernel as if it were Linux 6.1, which knows no WP_UNPOPULATED, POISON, WP_ASYNC, MOVE.
    #[must_use]
    pub const fn as_linux_6_1(self) -> Self {
        let mut poorer = self
            .without(Feature::WpUnpopulated)
            .without(Feature::Poison)
            .without(Feature::WpAsync)
            .without(Feature::Move);
        poorer.release = KernelRelease { major: 6, minor: 1 };
        poorer
    }

    /// Does it have it?
    #[must_use]
    pub const fn has(&self, feature: Feature) -> bool {
        self.userfault.has(feature)
    }

    /// One sentence for each feature that is missing, with what is done instead. No sentence twice.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        let mut said: Option<&'static str> = None;
        Feature::ALL
            .into_iter()
            .filter(|feature| !self.has(*feature))
            .map(Feature::without_it)
            .filter(move |sentence| said.replace(sentence) != Some(*sentence))
    }
}

#[cfg(test)]
mod tests {
    use super::{Feature, FeatureSet, KernelFeatures, KernelRelease, Way};

    fn full() -> KernelFeatures {
        KernelFeatures {
            release: KernelRelease {
                major: 6,
                minor: 12,
            },
            system_call: Way::Open,
            device: Way::Open,
            userfault: FeatureSet::of(&Feature::ALL),
        }
    }

    #[test]
    fn releases_are_read_from_what_distributions_make_of_them() {
        for (text, major, minor) in [
            ("6.1.0-28-amd64", 6, 1),
            ("6.12.9+bpo-amd64", 6, 12),
            ("5.10", 5, 10),
        ] {
            assert_eq!(
                KernelRelease::parse(text),
                Some(KernelRelease { major, minor })
            );
        }
        assert_eq!(KernelRelease::parse("linux"), None);
    }

    #[test]
    fn the_bits_are_those_of_the_kernel() {
        let dirty_tracking = FeatureSet::of(&[
            Feature::WpShmem,
            Feature::WpUnpopulated,
            Feature::WpAsync,
            Feature::EventRemove,
        ]);
        assert_eq!(dirty_tracking.bits(), 0xb008);
    }

    #[test]
    fn each_missing_feature_is_said_once_with_its_fallback() {
        assert_eq!(full().missing().count(), 0);
        let said: Vec<_> = full().as_linux_6_1().missing().collect();
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(said.iter().any(|s| s.contains("POISON")));
        let no_wp = full()
            .without(Feature::WpUnpopulated)
            .without(Feature::WpShmem);
        assert_eq!(no_wp.missing().count(), 1);
    }
}
